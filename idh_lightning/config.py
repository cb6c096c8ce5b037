"""Where the configuration lives, the run-level keys, and the cross-checks that Hydra cannot express."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from idh_lightning import switches
from idh_lightning.errors import ConfigError
from idh_lightning.overrides import TEXT_KEYS

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR: Path = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The folder of the YAML files: inside the package when installed from a wheel, beside it in a checkout."""

STAGES: tuple[str, ...] = ("fit", "test", "explain", "report")
CONTROLS: tuple[str | None, ...] = ("natural", None, "null", "trivial", "shortcut")
NEEDS_LOCATOR = (
    "explain: 'evidence' needs a network with a locator, and model.focus is null; expected a stage such as blocks.1. "
    "Set model.focus, or explain=grad_cam."
)
MONITORED: tuple[str, ...] = ("val/study_auroc", "val/study_accuracy", "val/loss")

_GROUPS = (
    "cohort",
    "data",
    "split",
    "augment",
    "model",
    "objective",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "explain",
    "explanation",
    "evaluation",
    "logger",
)
_PLAIN_SECTIONS: dict[str, tuple[str, ...]] = {
    "": (
        "name",
        "seed",
        "fold",
        "control",
        "stages",
        "checkpoint",
        "monitor",
        "paths",
        "figures",
        "benchmark",
        "seen",
        "seen_by",
        "runs",
        "part",
        "methods",
        "other_seeds",
        "permuted_labels",
        "output",
        "device",
        *_GROUPS,
    ),
    "data": ("grid", "crop", "missing", "calibrate_on", "preprocessing", "store", "accumulate", "batches"),
    "monitor": ("metric", "mode"),
    "benchmark": (
        "measure",
        "ways",
        "tasks",
        "studies",
        "repeats",
        "views",
        "epochs",
        "training_studies",
        "growth",
    ),
    "paths": ("data", "store", "bank", "run"),
}
"""Sections that are no object's keyword arguments -> the keys they may have."""

_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check_config(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> None:
    """Refuse a composed configuration that would fail later, or do something else than it says.

    Args:
        config: The composed configuration as plain dictionaries and lists, interpolations resolved.
        choices: Config group -> the file chosen, as Hydra reports it; used to name the file of a wrong key.

    Raises:
        ConfigError: Listing every unknown key and every contradiction.
    """
    faults = [*_misread(config, "", choices), *_not_text(config, "", choices), *_contradictions(config, choices)]
    if faults:
        raise ConfigError("\n".join(faults))


def _misread(section: Any, path: str, choices: Mapping[str, str | None]) -> Iterable[str]:
    """Yield one message per key that nothing will read, and per value that is none of those that its reader names."""
    if isinstance(section, list):
        for index, item in enumerate(section):
            yield from _misread(item, f"{path}[{index}]", choices)
        return
    if not isinstance(section, Mapping):
        return
    allowed: Iterable[str] | None = _PLAIN_SECTIONS.get(path)
    named: Mapping[str, tuple[Any, ...]] = {}
    reader = "a run" if not path else f"section '{path}'"
    if "_target_" in section:
        reader = str(section["_target_"])
        allowed, named = _keywords(reader, path, choices)
    for key, value in section.items():
        inner = f"{path}.{key}" if path else str(key)
        if allowed is not None and key not in allowed and key not in _HYDRA_KEYS:
            near = difflib.get_close_matches(str(key), list(allowed), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            yield (
                f"{_file_of(inner, choices)}: found the key '{inner}', which {reader} does not know; "
                f"expected one of {', '.join(allowed)}.{hint} Correct or remove it."
            )
        if key in named and value not in named[key]:
            known = ", ".join(map(str, named[key]))
            yield f"{_file_of(inner, choices)}: found {inner}={value}; expected one of {known}. Correct it."
        yield from _misread(value, inner, choices)


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
) -> tuple[tuple[str, ...] | None, dict[str, tuple[Any, ...]]]:
    """Return the keyword arguments of a `_target_`, None if it takes any; and the values of those that name theirs."""
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
    named = {one.name: get_args(one.annotation) for one in parameters if get_origin(one.annotation) is Literal}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None, named
    return tuple(parameter.name for parameter in parameters if parameter.name != "self"), named


def _file_of(path: str, choices: Mapping[str, str | None]) -> str:
    """Return the file, or the two files, in which a key can have been written."""
    group = path.split(".")[0]
    chosen, experiment = choices.get(group), choices.get("experiment")
    file = f"conf/{group}/{chosen}.yaml" if chosen else "conf/train.yaml"
    return f"{file} or conf/experiment/{experiment}.yaml" if experiment else file


def _contradictions(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> Iterable[str]:
    stages = config.get("stages", ["report"])
    if not isinstance(stages, list) or not stages or any(stage not in STAGES for stage in stages):
        yield f"stages: found {stages}; expected a list out of {', '.join(STAGES)}. Correct it."
    elif "fit" not in stages and "test" in stages and not config.get("checkpoint"):
        yield (
            "checkpoint: found none while stages has 'test' without 'fit'; expected the path of a run's "
            "checkpoints/best.ckpt. Give checkpoint=PATH, or add 'fit'."
        )
    yield from switches.refused(config)
    calibrate_on = config.get("data", {}).get("calibrate_on", "training")
    if calibrate_on not in ("training", "synthetic"):
        yield f"data.calibrate_on: found '{calibrate_on}'; expected training or synthetic. Correct it."
    control = config.get("control", "natural")
    if control not in CONTROLS:
        yield f"control: found '{control}'; expected natural, null, trivial or shortcut. Correct it."
    elif control != "natural" and choices.get("cohort") not in (None, "phantom"):  # None: that of a run
        yield (
            f"control: found '{control or 'null'}' with cohort={choices.get('cohort')}; expected cohort=phantom, since "
            "only the synthetic cohort has controls. Remove the control."
        )
    explained = str(config.get("explain", {}).get("_target_", ""))
    if explained.endswith(".Evidence") and config.get("model", {}).get("focus", True) is None:
        yield NEEDS_LOCATOR
    monitor = config.get("monitor", {})
    if isinstance(monitor, Mapping) and monitor:
        if monitor.get("metric") not in MONITORED:
            known = ", ".join(MONITORED)
            yield f"monitor.metric: found '{monitor.get('metric')}'; expected one of {known}. Correct it."
        elif monitor.get("mode") != ("min" if monitor["metric"] == "val/loss" else "max"):
            mode, metric = monitor.get("mode"), monitor["metric"]
            yield f"monitor.mode: found '{mode}' for {metric}; expected the other. Correct it."
