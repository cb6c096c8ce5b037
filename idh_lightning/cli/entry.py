"""One way into every command: composes its configuration, and whatever is wrong with it ends in one message."""

from __future__ import annotations

import logging
import math
import os
import pkgutil
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from idh_lightning.cli.help import help_page
from idh_lightning.cli.signals import stops_on_signals
from idh_lightning.config.checks import (
    CONF_DIR,
    check_config,
    choices_with,
    dotted_keys,
    near_keys,
    near_words,
    takes,
    wrong_choice,
)
from idh_lightning.config.instantiation import silence_hydra
from idh_lightning.config.places import refuse_unfit_places
from idh_lightning.config.text import as_text, as_typed
from idh_lightning.errors import FULL_ERROR, ConfigError, exits_with_message
from idh_lightning.machine import is_first_process

_FLAGS = ("-m", "--multirun", "-r", "--run", "-h", "--help", "--resolve")
"""Options without a value: Hydra 1.3 refuses them between overrides, 1.4 takes them anywhere."""

_OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
    *("-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i"),
)
"""Options of Hydra, which may be shortened."""

_ATTACHED = re.compile(r"-(?:c(?:job|hydra|all)|i(?:all|config|defaults\S*|plugins|searchpath))")
"""Short options with their value attached."""

_COMPOSING = (ConfigCompositionException, OverrideParseException, MissingConfigException)

_PLUGIN = re.compile(r"Could not find '(hydra/(?:sweeper/optuna|launcher/(?:joblib|submitit_local|submitit_slurm)))'")
"""What Hydra says where one of its plugins is not installed."""


def entry(name: str, task: str) -> Callable[[], None]:
    """Command of that name, which composes its configuration, checks it and gives it to a function.

    What Hydra and OmegaConf refuse (an unknown key, a file that is not there, a command line that cannot be read) is
    said like every other error of this project, as are unknown and missing values, before the function is called. All
    that can be said without torch, whose import takes seconds, is said before the function is imported.

    Args:
        name: Of the module that is run and of the file in conf/.
        task: Function of a configuration, as "module:function".
    """

    @exits_with_message
    def command() -> None:
        sys.argv[1:] = as_text(sorted(sys.argv[1:], key=lambda argument: argument not in _FLAGS))
        arguments = sys.argv[1:]
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(help_page(name))
            return
        _refuse_unknown_options(name, arguments)
        begun: list[bool] = []
        asked = os.environ.get(FULL_ERROR)
        # So that Hydra raises what it finds wrong, instead of printing it in its own form.
        with _variable(FULL_ERROR, "1"), warnings.catch_warnings():
            silence_hydra()
            OmegaConf.register_new_resolver("product", _product, replace=True)
            try:
                job = _job(name, task, asked, begun)
                hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(job)()
            except (HydraException, OmegaConfBaseException) as error:
                if asked == "1" or (begun and not isinstance(error, _COMPOSING)):
                    raise
                raise _refusal(error, name, arguments) from error

    return command


def _job(name: str, task: str, asked: str | None, begun: list[bool]) -> Callable[[DictConfig], Any]:
    """Job for Hydra: checks the configuration, then imports the task and runs it; `begun` gets an item before that."""

    @exits_with_message
    def checked(config: DictConfig) -> Any:
        begun.append(True)
        overrides = task_overrides()
        try:
            plain: Any = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            raise _refusal(error, name, overrides) from error
        if "???" not in dotted_keys(plain).values():
            refuse_unfit_places(plain)  # first, since the other checks import the classes that sections name
        check_config(plain, {**HydraConfig.get().runtime.choices, "": name}, command=command_line(name, overrides))
        with stops_on_signals():
            return pkgutil.resolve_name(task)(config)

    def job(config: DictConfig) -> Any:
        # Relative paths count from where the command was started, also with hydra.job.chdir=true.
        os.chdir(HydraConfig.get().runtime.cwd)
        silence_library_warnings()
        if not HydraConfig.get().verbose:  # of libraries, warnings only: onnxscript alone has a line for each node
            logging.getLogger().setLevel(logging.WARNING)
            for ours in ("idh_lightning", "__main__"):
                logging.getLogger(ours).setLevel(logging.INFO)
        with _variable(FULL_ERROR, asked):  # what the user said, also for processes that the job starts
            return checked(config)

    job.__module__ = f"idh_lightning.{name}"  # whose last word names the log file
    return job


def composed(name: str, overrides: Sequence[str], *, hydra_too: bool = False) -> DictConfig:
    """Configuration that a command line gives, without running anything."""
    GlobalHydra.instance().clear()
    with warnings.catch_warnings():
        silence_hydra()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose(name, overrides=list(overrides), return_hydra_config=hydra_too)
    GlobalHydra.instance().clear()
    return config


@cache
def _defaults(name: str) -> DictConfig:
    """Configuration of a command without overrides, to be read and not changed."""
    return composed(name, [], hydra_too=True)


def silence_library_warnings() -> None:
    """Hide warnings of libraries that a user can do nothing about."""
    silence_hydra()
    for message in (
        "torch.jit.script. is deprecated",  # timm_3d 1.0.1
        ".*does not have many workers.*",  # the queue has its own
        ".*smaller than the logging interval.*",  # a small cohort
        ".*Checkpoint directory .* exists.*",
        ".*Experiment logs directory .* exists.*",  # the run folder, which holds the configuration already
        ".*module.s. in eval mode at the start of training.*",  # the frozen stem
        ".*LeafSpec.* is deprecated.*",  # lightning 2.6.6
    ):
        warnings.filterwarnings("ignore", message=message)
    if not is_first_process():
        logging.disable(logging.INFO)  # the first of several processes speaks for all
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _product(*factors: int) -> int:
    """Product of numbers, for the number of folds in conf/sweep/folds.yaml."""
    return math.prod(factors)


def task_overrides() -> list[str]:
    """Overrides of the run that is under way, as they were typed; none outside Hydra."""
    if not HydraConfig.initialized():
        return []
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(typed)


def command_line(name: str, overrides: Sequence[str]) -> str:
    """Command as it is typed into a shell."""
    return shlex.join(["python", "-m", f"idh_lightning.{name}", *map(as_typed, overrides)])


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set or unset an environment variable for a while."""
    before = os.environ.pop(name, None)
    os.environ.update({} if value is None else {name: value})
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({} if before is None else {name: before})


def _refusal(error: Exception, name: str, arguments: Sequence[str]) -> ConfigError:
    """Error that says what is wrong with each override, or what Hydra says where nothing is known to be wrong."""
    parser = OverridesParser.create()
    parsed, faults = [], []
    swept = bool({"-m", "--multirun"} & set(arguments)) or "hydra.mode=MULTIRUN" in arguments
    for text in arguments:
        if text.startswith("-"):
            continue
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException:
            faults.append(_unreadable(text))
    faults += [_several(one) for one in parsed if one.is_sweep_override() and not swept]
    faults = faults or _mended(name, [*_wrong_choices(parsed), *_unknown_keys(name, parsed)], arguments)
    said = " ".join(str(error).split())
    if absent := _PLUGIN.search(said):
        faults.append(
            f"{absent[1]}: needs a package that is not installed; expected the extra 'sweeps'. "
            "pip install 'idh_lightning[sweeps]'"
        )
    return ConfigError(
        "\n".join(faults)
        or f"{command_line(name, arguments)}: {said}. Expected overrides that fit conf/{name}.yaml. Correct them."
    )


def _refuse_unknown_options(name: str, arguments: Sequence[str]) -> None:
    """Raise a ConfigError that names every option which Hydra does not have."""
    words = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    faults = []
    for word in words:
        if not any(option.startswith(word) for option in _OPTIONS) and not _ATTACHED.fullmatch(word):
            near = near_words(word, [*_OPTIONS, *(["--resume", "--rerun"] if name == "train" else [])])
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            faults.append(
                f"{word}: {name} has no such option; expected settings as KEY=VALUE.{hint} To see what there is: "
                f"{command_line(name, ['--help'])}"
            )
    if faults:
        raise ConfigError("\n".join(faults))


def _unreadable(text: str) -> str:
    key, sign, value = text.partition("=")
    if not sign:
        return f"{text}: found no '=' in it; expected KEY=VALUE, such as seed=1. Correct it."
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"{key}: found {value or 'nothing'}, which cannot be read as a value; expected one with brackets and quotes "
        "closed, and text that holds any of ,=:()[]{}'\"\\$ in quotes of its own. If it is text, give "
        + shlex.quote(f'{key}="{quoted}"')
        + "."
    )


def _several(one: Override) -> str:
    key, _, value = str(one.input_line).partition("=")
    text = shlex.quote(f'{key}="{value}"')
    return (
        f"{key}: found several values, {value}; expected one. For a run with each of them add -m; a list is written "
        f"{key}=[{value}], and text with a comma {text}."
    )


class _WrongOverride(NamedTuple):
    """Override that cannot be taken.

    Attributes:
        text: As it was typed.
        message: What is wrong with it.
        better: What is probably meant; None where nothing is near, or where it can only be left out.
        lost: Those of its values that nothing is near to, where others stay.
    """

    text: str
    message: str
    better: str | Sequence[str] | None = None
    lost: Sequence[str] = ()


def _mended(name: str, wrong: Sequence[_WrongOverride], arguments: Sequence[str]) -> list[str]:
    """Messages of all that is wrong, the last with a command line in which all of it is put right."""
    messages = [one.message for one in wrong]
    if any(one.better for one in wrong):
        better = {one.text: one.better for one in wrong}
        repeated: list[str] = []
        for argument in arguments:
            found = better.get(argument, argument)
            repeated += [found] if isinstance(found, str) else found or []
        lost = [word for one in wrong for word in (one.lost if one.better else [one.text])]
        then = f"Then, without {', '.join(lost)}:" if lost else "Then:"
        messages[-1] += f" {then} {command_line(name, repeated)}"
    return messages


def _wrong_choices(overrides: Sequence[Override]) -> Iterator[_WrongOverride]:
    """Yield each override that chooses what conf/ has no file for, with all of its choices put right."""
    for one in overrides:
        place, value = one.key_or_group, one.value()
        if not (CONF_DIR / place).is_dir() or one.is_delete() or isinstance(value, Mapping | Glob):
            continue
        messages: list[str] = []
        kept: list[str] = []
        lost: list[str] = []
        for choice in _values(one):
            if choice is None or (CONF_DIR / place / f"{choice}.yaml").is_file():
                kept.append("null" if choice is None else str(choice))
                continue
            message, near = wrong_choice(place, choice)
            messages.append(message)
            (kept if near else lost).append(near or str(choice))
        if messages:
            choices = ",".join(dict.fromkeys(kept))
            better = f"{one.get_key_element()}={f'[{choices}]' if isinstance(value, list) else choices}"
            text = str(one.input_line)
            yield _WrongOverride(text, "\n".join(messages), better if kept else None, lost if kept else ())


def _values(override: Override) -> list[Any]:
    value = override.value()
    listed = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return [getattr(one, "text", one) for one in listed]


def _unknown_keys(name: str, overrides: Sequence[Override]) -> Iterator[_WrongOverride]:
    """Yield each override of a key that the composed configuration does not have."""
    choices: list[Override] = []
    others: list[Override] = []
    for one in overrides:
        is_choice = (CONF_DIR / one.key_or_group).is_dir() or one.key_or_group.startswith("hydra/")
        (choices if is_choice and one.package is None else others).append(one)
    config = _defaults(name)
    groups = {str(group) for group in config.hydra.runtime.choices}
    for one in [one for one in choices if not (one.is_add() or one.key_or_group in groups)]:
        if not one.key_or_group.startswith("hydra/"):
            choices.remove(one)
            listed = ", ".join(sorted(group for group in groups if not group.startswith("hydra")))
            group = one.key_or_group
            words = f"{group}: {name} makes no such choice; expected one of {listed}. Leave {one.input_line} out."
            yield _WrongOverride(str(one.input_line), words)
    with suppress(HydraException, OmegaConfBaseException):
        config = composed(name, [_first(one) for one in choices], hydra_too=True) if choices else config
    plain: Any = OmegaConf.to_container(config, resolve=False)
    known = [*dotted_keys(plain), *(folder.name for folder in CONF_DIR.iterdir() if folder.is_dir())]
    for one in others:
        key, text = one.key_or_group, str(one.input_line)
        if key in known or one.is_add() or one.is_force_add() or key.startswith("hydra/"):
            continue
        group = key.partition(".")[0]
        chosen = next((each for each in choices if each.key_or_group == group), None)
        elsewhere = [f"{group}={choice}" for choice in choices_with(key)] if group in groups else []
        if elsewhere:
            yield _of_another_choice(one, elsewhere, chosen)
            continue
        near = _near(plain, known, one)
        message = f"{key}: {name} has no such setting; expected a key of conf/{name}.yaml or of the files it chooses."
        better = None
        if near:
            sign, value = "~" if one.is_delete() else "", text.partition("=")[2]
            if len(near) == 1 or near[0].rpartition(".")[2] != key.rpartition(".")[2]:  # else any may be meant
                better = f"{sign}{near[0]}" + (f"={value}" if value or not sign else "")
            message += f" Did you mean {' or '.join(near)}?"
        else:
            message += f" To see all: {command_line(name, ['--cfg', 'job'])}"
        yield _WrongOverride(text, message, better)


def _near(config: Mapping[str, Any], known: Sequence[str], override: Override) -> list[str]:
    """Keys that the key of an override may mean: a neighbour spelt like it, then itself with a +, then others."""
    key = override.key_or_group
    path, _, last = key.rpartition(".")
    neighbours = [one.rpartition(".")[2] for one in known if path and one.rpartition(".")[0] == path]
    if alike := near_words(last, neighbours):
        return [f"{path}.{alike[0]}"]
    return [f"+{key}"] if takes(config, key) and not override.is_delete() else near_keys(key, known)


def _of_another_choice(override: Override, elsewhere: Sequence[str], chosen: Override | None) -> _WrongOverride:
    """Override of a key that only other choices of its group have."""
    text, key = str(override.input_line), override.key_or_group
    made = chosen.input_line if chosen else "the choice made"
    message = f"{key}: a setting of {' or '.join(elsewhere)}, and not of {made}."
    if chosen:
        return _WrongOverride(text, f"{message} Leave it out, or choose {' or '.join(elsewhere)}.", lost=[text])
    if len(elsewhere) > 1:
        return _WrongOverride(text, f"{message} Add the one that you mean.")
    return _WrongOverride(text, message, [elsewhere[0], text])


def _first(override: Override) -> str:
    """Choice with the first of its values, where it is swept over."""
    swept = override.is_sweep_override()
    return f"{override.get_key_element()}={_values(override)[0]}" if swept else str(override.input_line)
