"""Where the configuration lives, the run-level keys, and the cross-checks that Hydra cannot express."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]

from idh_lightning.config import switches
from idh_lightning.config.text import TEXT_KEYS
from idh_lightning.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR: Path = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The folder of the YAML files: inside the package when installed from a wheel, beside it in a checkout."""

STAGES: tuple[str, ...] = ("pretrain", "locate", "fit", "test", "explain", "report")
MEASURES = ("pipelines", "memory", "growth", "startup")
"""Of the benchmark."""

CONTROL_CHOICES: tuple[str | None, ...] = ("natural", None, "null", "trivial", "shortcut")
NEEDS_LOCATOR = (
    "explain: 'evidence' and 'dense_vote' need a network with a locator, and model.locator is null; expected one. Set "
    "model.locator=pretrained, or explain=grad_cam."
)
MONITORED: tuple[str, ...] = ("val/study_auroc", "val/study_accuracy", "val/loss")

_PLAIN_SECTIONS = ("", "data", "monitor", "benchmark", "paths", "pretraining")
"""Sections that are no object's keyword arguments."""

_COUNTS = (
    *(f"benchmark.{name}" for name in ("studies", "repeats", "views", "epochs", "training_studies")),
    *(f"pretraining.{name}" for name in ("batch_size", "steps_per_epoch", "validation_patients", "described_patients")),
)

_KINDS: dict[str, Any] = {
    "seed": int,
    "fold": int,
    "views": int,
    "confidence": float,
    "confirm": bool,
    "withhold": bool,
    "figures": bool,
    "format": Literal["onnx", "torch_export", "hub", "monai_bundle"],
    "output_layout": Literal["flat", "bids"],
    "studies_of": Literal["train", "validation", "test"],
    "seen": Literal["error", "exclude"],
    "data.accumulate": int,
    "data.batches.workers": int | None,  # null: chosen for the machine
    "benchmark.measure": Literal[MEASURES],
    "trainer.accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    **dict.fromkeys(_COUNTS, int),
}
"""Keys of plain sections -> what their values may be."""

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "fold": (0, math.inf),
    "views": (0, 1000),
    "confidence": (0.5, 0.999),
    "trainer.max_epochs": (1, math.inf),
    "data.accumulate": (1, math.inf),
    "data.batches.batch_size": (1, math.inf),
    "data.batches.workers": (0, math.inf),
    "cohort.patients": (1, math.inf),
    "optimizer.lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "split.validation": (0, 1),
    "split.test": (0, 1),
    "split.training_patients": (1, math.inf),
    **dict.fromkeys(_COUNTS, (1, math.inf)),
}
"""Keys -> smallest and largest value; what has a class of its own to check it is not here."""

_EXAMPLES: dict[str, str] = {
    "cohort.folder": "/data/cohort",
    "cohort.table": "/data/cohort.csv",
    "split.file": "/data/cohort.csv",
    "model.weights": "/data/resnet_10_23dataset.pth",
    "input": "/data/new_patient",
}
"""Mandatory keys -> a value as it may look; of runs the newest ones of the working folder are named."""

_OWN_WORDS = ("trainer.precision", "optimizer.fused")
"""Keys for which 'auto' is ours, not the library's."""

_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check_config(config: Mapping[str, Any], choices: Mapping[str, str | None], *, command: str = "") -> None:
    """Refuse a composed configuration that would fail later, or do something else than it says.

    Args:
        config: The composed configuration as plain dictionaries and lists, interpolations resolved.
        choices: Config group -> the file chosen, as Hydra reports it; used to name the file of a wrong key. "" -> the
            file of the command.
        command: What was typed, to be repeated with what is missing.

    Raises:
        ConfigError: Listing every value that is missing, every unknown key and every contradiction.
    """
    known = dotted_keys(config)
    if missing := [key for key, value in known.items() if value == "???"]:
        examples = [f"{key}={example_of(key)}" for key in missing]
        whole = f"{command} {shlex.join(examples)}" if command else " ".join(examples)
        raise ConfigError(f"{', '.join(missing)}: found none; expected a value. For example: {whole}")
    faults = [
        *_absent(choices),
        *_misread(config, "", choices, known),
        *_not_text(config, "", choices),
        *_contradictions(config, choices),
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _absent(choices: Mapping[str, str | None]) -> Iterator[str]:
    """Yield one message per optional choice that conf/ has no file for: Hydra goes on without it."""
    for group, chosen in choices.items():
        if group and chosen and (CONF_DIR / group).is_dir() and not (CONF_DIR / group / f"{chosen}.yaml").is_file():
            yield wrong_choice(group, chosen)[0]


def wrong_choice(group: str, chosen: object) -> tuple[str, str | None]:
    """Message for a choice that conf/ has no file for, and the one that is probably meant; None where none is near."""
    files = sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml"))
    near = next(iter(near_words(str(chosen), files)), None)
    hint = f" Did you mean {group}={near}?" if near else ""
    return f"{group}: found '{chosen}'; expected one of {', '.join(files)}.{hint} Correct it.", near


def example_of(key: str) -> str:
    """Value that a mandatory key may have: the newest run in the working folder, where a run is asked for."""
    if key not in ("checkpoint", "runs"):
        return _EXAMPLES.get(key, "VALUE")
    runs = sorted(Path("outputs").glob("20*/*/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
    newest = [str(file.parent.parent) for file in runs[-2:]] or ["outputs/2026-01-31/12-00-00_phantom"]
    return newest[-1] if key == "checkpoint" else f"[{','.join(newest)}]"


def dotted_keys(section: Any, path: str = "") -> dict[str, Any]:
    """Every key of a nested mapping, sections included, as it is written on a command line, and its value."""
    found: dict[str, Any] = {}
    for key, value in section.items() if isinstance(section, Mapping) else ():
        inner = f"{path}.{key}" if path else str(key)
        found |= {inner: value, **dotted_keys(value, inner)}
    return found


@cache
def _plain_keys(path: str) -> tuple[str, ...] | None:
    """Keys of a plain section, which are those that the files in conf/ give it; None where any key may stand."""
    if path not in _PLAIN_SECTIONS:
        return None
    own, commands, experiments = (
        [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))]
        for folder in (CONF_DIR / path, CONF_DIR, CONF_DIR / "experiment")
    )
    if path:
        sections = [*own, *(one.get(path, {}) for one in (*commands, *experiments))]
    else:
        sections = [*own, *experiments, {folder.name: None for folder in CONF_DIR.iterdir() if folder.is_dir()}]
    keys = dict.fromkeys(key for section in sections for key in section)
    return tuple(key for key in keys if key not in ("defaults", "hydra", "experiment", "sweep"))


def choices_with(key: str) -> list[str]:
    """Choices of a key's config group whose file has that key; the one that is named like it alone, if there is one."""
    group, _, rest = key.partition(".")
    found = []
    for file in sorted((CONF_DIR / group).glob("*.yaml")) if rest else ():
        if rest in dotted_keys(yaml.safe_load(file.read_text(encoding="utf-8"))):
            found.append(file.stem)
    return [rest] if rest in found else found


_OFTEN_MEANT = {"device": "trainer.accelerator", "batch_size": "data.batches.batch_size"}
"""Words of other programs, where several keys end alike or none does."""


def near_keys(key: str, known: Sequence[str], most: int = 3) -> list[str]:
    """Known keys that a wrong one may mean: those that end alike, then those that are spelt alike."""
    last = key.rpartition(".")[2]
    if (often := _OFTEN_MEANT.get(key)) in known:
        return [str(often)]
    own = [one for one in known if one.startswith("hydra.") == key.startswith("hydra.") and "._" not in f".{one}"]
    ends: dict[str, list[str]] = {}
    for one in own:
        ends.setdefault(one.rpartition(".")[2], []).append(one)
    same = sorted(ends.get(last, []), key=lambda one: one.count("."))
    if "." not in key and same:
        return same[:most]
    alike = [*near_words(key, own), *(one for end in near_words(last, list(ends)) for one in ends[end])]
    section = key.partition(".")[0]
    within = [one for one in (*same, *alike) if one.startswith(f"{section}.")]
    return list(dict.fromkeys(within if any(one.startswith(f"{section}.") for one in own) else [*same, *alike]))[:most]


def near_words(word: str, known: Sequence[str]) -> list[str]:
    """Words that are spelt like another or begin with it."""
    begun = [one for one in known if len(word) > 2 and one.startswith(word)]
    return list(dict.fromkeys([*begun, *difflib.get_close_matches(word, known, cutoff=0.7)]))


def takes(config: Mapping[str, Any], key: str) -> bool:
    """Whether the object of a key's section would take it, though the configuration does not list it."""
    path, _, last = key.rpartition(".")
    section: Any = config
    for part in path.split("."):
        section = section.get(part) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        return False
    if "_target_" not in section:
        return bool(path) and path not in _PLAIN_SECTIONS
    allowed, _ = _keywords(str(section["_target_"]), path, {})
    return allowed is None or last in allowed


def _misread(section: Any, path: str, choices: Mapping[str, str | None], known: Iterable[str]) -> Iterable[str]:
    """Yield one message per key that nothing will read, and per value that its reader cannot take."""
    if isinstance(section, list):
        for index, item in enumerate(section):
            yield from _misread(item, f"{path}[{index}]", choices, known)
        return
    if not isinstance(section, Mapping):
        return
    allowed: Iterable[str] | None = _plain_keys(path)
    kinds: Mapping[str, Any] = {}
    reader = "a run" if not path else f"section '{path}'"
    if "_target_" in section:
        reader = str(section["_target_"])
        allowed, kinds = _keywords(reader, path, choices)
    for key, value in section.items():
        inner = f"{path}.{key}" if path else str(key)
        if allowed is not None and key not in allowed and key not in _HYDRA_KEYS:
            others = [one for one in known if one != inner and not one.startswith(f"{inner}.")]
            near = near_words(str(key), list(allowed))[:1] or near_keys(inner, others)
            hint = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
            expected = f"one of {', '.join(allowed)}" if path else "one that is there without a +"
            yield (
                f"{_file_of(inner, choices)}: found the key '{inner}', which {reader} does not know; "
                f"expected {expected}.{hint} Correct or remove it."
            )
        kind = _KINDS.get(inner, kinds.get(str(key), Any))
        low, high = _RANGES.get(inner, (-math.inf, math.inf))
        if inner not in _OWN_WORDS and not _fits(value, kind):
            shown = "null" if value is None else value
            yield f"{_file_of(inner, choices)}: found {inner}={shown}; expected {_in_words(kind)}. Correct it."
        elif isinstance(value, int | float) and not low <= value <= high:
            ends = f"at least {low}" if high == math.inf else f"{low} to {high}"
            yield f"{_file_of(inner, choices)}: found {inner}={value}; expected {ends}. Correct it."
        yield from _misread(value, inner, choices, known)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of YAML can be what an annotation says; of kinds that YAML cannot hold everything can."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        alike = inner if origin is not tuple else ()
        return isinstance(value, list) and all(_fits(one, alike[0]) for one in value if alike)
    if isinstance(kind, type) and kind in _PLAIN_KINDS:
        return isinstance(value, _PLAIN_KINDS[kind]) and (kind in (bool, object) or not isinstance(value, bool))
    return True


_PLAIN_KINDS: dict[Any, Any] = {
    int: int,
    float: (int, float),
    bool: bool,
    str: (str, int, float),
    Path: (str, int, float),
    types.NoneType: types.NoneType,
}
"""Annotation -> what YAML makes of a good value; text may look like a number."""


def _in_words(kind: Any) -> str:
    """Annotation in words."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, inner)))
    words = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null", str: "text"}
    return words.get(kind, "a path" if kind is Path else "a list")


def _not_text(value: Any, path: str, choices: Mapping[str, str | None], text: bool = False) -> Iterable[str]:
    """Yield one message per identifier, path or word that YAML took for a number or a truth value (12_1, 1e3, yes)."""
    if isinstance(value, list):
        for item in value:
            yield from _not_text(item, path, choices, text)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else str(key)
            known = text or TEXT_KEYS.fullmatch(inner) is not None
            # A whole number as a spelling of the vocabulary (0, 1) is its own text.
            yield from _not_text(key if known and isinstance(key, bool | float) else None, inner, choices, known)
            yield from _not_text(item, inner, choices, known)
    elif text and isinstance(value, bool | int | float):
        yield (
            f"{_file_of(path, choices)}: found {value!r} in '{path}', which is text; YAML reads words like 12_1, 0012, "
            "1e3, yes and no as numbers or truth values. Write it in quotes."
        )


def _keywords(
    target: str, path: str, choices: Mapping[str, str | None]
) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """Return the keyword arguments of a `_target_`, None if it takes any; and their annotations."""
    module_name, _, name = target.rpartition(".")
    try:
        called = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{_file_of(path, choices)}: '{path}._target_' is '{target}', which cannot be imported ({error}); "
            "expected the full name of a class or function. Correct it."
        ) from error
    try:
        parameters = inspect.signature(called, eval_str=True).parameters.values()
    except (NameError, TypeError, AttributeError):  # types that only a type checker can read
        parameters = inspect.signature(called).parameters.values()
    kinds = {one.name: one.annotation for one in parameters if one.annotation is not inspect.Parameter.empty}
    if isinstance(called, type) and any(isinstance(kind, str) for kind in kinds.values()):
        with suppress(NameError):  # fields of a parent class are annotated in its own module
            kinds |= {name: kind for name, kind in get_type_hints(called).items() if name in kinds}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None, kinds
    return tuple(parameter.name for parameter in parameters if parameter.name != "self"), kinds


def _file_of(path: str, choices: Mapping[str, str | None]) -> str:
    """Return the file, or the two files, in which a key can have been written."""
    group = path.split(".")[0]
    chosen, experiment = choices.get(group), choices.get("experiment")
    file = f"conf/{group}/{chosen}.yaml" if chosen else f"conf/{choices.get('', 'train')}.yaml"
    return f"{file} or conf/experiment/{experiment}.yaml" if experiment else file


def _wrong_stages(config: Mapping[str, Any]) -> Iterator[str]:
    stages = config.get("stages", ["report"])
    if not isinstance(stages, list) or not stages or any(stage not in STAGES for stage in stages):
        yield f"stages: found {stages}; expected a list out of {', '.join(STAGES)}. Correct it."
    elif "pretrain" in stages and len(stages) > 1:
        yield f"stages: found {stages}; expected 'pretrain' on its own. Set stages=[pretrain]."
    elif "pretrain" in stages and not config.get("pretraining"):
        yield "stages: found 'pretrain' without its settings; expected them. Take experiment=pretrain_locator."
    elif "locate" in stages and "fit" not in stages:
        yield f"stages: found {stages}; expected 'fit' as well, which uses the locator. Add 'fit' to stages."
    elif "locate" in stages and (config.get("model") or {}).get("locator", "") is None:
        yield "stages: found 'locate' with model.locator=null; expected a locator. Set model.locator=pretrained."
    elif (model := config.get("model") or {}).get("harmonise") and model.get("locator", "") is None:
        yield (
            "model.harmonise: found with model.locator=null; expected a locator, on whose tumour the radiomics head "
            "reads. Set model.locator=pretrained, or model.harmonise=null."
        )
    elif "fit" not in stages and "test" in stages and not config.get("checkpoint"):
        yield (
            "checkpoint: found none while stages has 'test' without 'fit'; expected the path of a run's "
            "checkpoints/best.ckpt. Give checkpoint=PATH, or add 'fit'."
        )
    elif "fit" in stages and "test" not in stages and (lost := [one for one in ("explain", "report") if one in stages]):
        yield f"stages: found {stages}; {lost[0]} needs the predictions of 'test'. Add 'test' to stages."


def _contradictions(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> Iterable[str]:
    yield from _wrong_stages(config)
    yield from switches.refused_switches(config)
    split = config.get("split") or {}
    if "folds" in split and not 0 <= split["fold"] < (number := split["folds"] * split.get("repeats", 1)):
        last = number - 1
        yield f"fold: found {split['fold']} of {split['folds']} folds; expected 0 to {last}. Correct it or split.folds."
    calibrate_on = config.get("data", {}).get("calibrate_on", "training")
    if calibrate_on not in ("training", "synthetic"):
        yield f"data.calibrate_on: found '{calibrate_on}'; expected training or synthetic. Correct it."
    control = config.get("control", "natural")
    if control not in CONTROL_CHOICES:
        yield f"control: found '{control}'; expected natural, null, trivial or shortcut. Correct it."
    elif control != "natural" and choices.get("cohort") not in (None, "phantom"):  # None: that of a run
        yield (
            f"control: found '{control or 'null'}' with cohort={choices.get('cohort')}; expected cohort=phantom, since "
            "only the synthetic cohort has controls. Remove the control."
        )
    explained = str((config.get("explain") or {}).get("_target_", ""))
    if explained.endswith((".Evidence", ".DenseVote")) and (config.get("model") or {}).get("locator", True) is None:
        yield NEEDS_LOCATOR
    monitor = config.get("monitor", {})
    if isinstance(monitor, Mapping) and monitor:
        if monitor.get("metric") not in MONITORED:
            known = ", ".join(MONITORED)
            yield f"monitor.metric: found '{monitor.get('metric')}'; expected one of {known}. Correct it."
        elif monitor.get("mode") != ("min" if monitor["metric"] == "val/loss" else "max"):
            mode, metric = monitor.get("mode"), monitor["metric"]
            yield f"monitor.mode: found '{mode}' for {metric}; expected the other. Correct it."
