"""`--rerun RUN_FOLDER` and `--resume FOLDER`: from a run to the command line that repeats it or goes on with it.

And the folder of a run, before Hydra writes into it: its own, with nobody else in it, its recipe as it was.
"""

from __future__ import annotations

import itertools
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from idh_lightning.cli.entry import composed
from idh_lightning.config.text import as_text, as_typed
from idh_lightning.errors import ConfigError, IDHError, StorageError
from idh_lightning.machine import is_first_process
from idh_lightning.runs.state import LATER_STARTS, RunState, claimed

logger = logging.getLogger(__name__)

MAY_DIFFER: tuple[str, ...] = (
    "checkpoint",
    "stages",
    "paths",
    "logger",
    "figures",
    "explanation",
    "callbacks.progress",
    "cohort.workers",
    "data.batches.workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
"""Settings that change where and how a run is computed, not what it has learnt and predicted."""


_SET_ANEW = ("hydra.mode=", "hydra.sweep.dir=", "hydra.sweep.subdir=", "hydra.output_subdir=")


def expanded(arguments: Sequence[str]) -> list[str]:
    """Return the command line with `--rerun FOLDER` or `--resume FOLDER` replaced by the overrides that it stands for.

    - `--rerun RUN [overrides]`: the overrides of that run, then the new ones, in a new run folder.
    - `--resume RUN [overrides]`: the overrides of that run and `checkpoint=last`, in the same run folder.
    - `--resume SWEEP [overrides]`: the same for a sweep: finished runs are kept, the others gone on with.

    What is resumed keeps its recipe: of a sweep, other settings than `MAY_DIFFER` are refused here, of a run by
    `RunFolder`, which sees the folders that are named without `--resume` as well.

    Args:
        arguments: As given, without the program's name.

    Raises:
        ConfigError: If the folder is not one of ours, or the configuration files have changed so that the same
            overrides would now give another recipe; every setting that differs is listed. If a sweep would go on
            with another recipe.
    """
    for option in ("--rerun", "--resume"):
        for index, argument in enumerate(arguments):
            if argument == option or argument.startswith(f"{option}="):
                rest = list(arguments)
                del rest[index]
                folder = argument.partition("=")[2] or (rest.pop(index) if index < len(rest) else "")
                if not folder:
                    raise ConfigError(f"{option}: found no folder after it; expected one. Give {option} RUN_FOLDER.")
                changed = {_key(one) for one in rest}
                place = Path(folder).absolute()
                if option == "--resume" and (place / "multirun.yaml").is_file():
                    _refuse_other_sweep(place, rest)
                kept = [one for one in _overrides(option, place) if _key(one) not in changed]
                return [*kept, *rest]
    return list(arguments)


def _key(override: str) -> str:
    """Key of an override; Hydra refuses a config group that is chosen twice."""
    return override.partition("=")[0].lstrip("+~")


def _refuse_other_sweep(folder: Path, given: Sequence[str]) -> None:
    """Raise a ConfigError if a sweep would go on with another recipe than its finished runs have."""
    keys = [_key(one) for one in given if not one.startswith("-")]
    allowed = ("hydra.", "hydra/", *(f"{section}." for section in MAY_DIFFER))
    if other := [key for key in keys if not f"{key}.".startswith(allowed)]:
        raise ConfigError(
            f"--resume {folder}: found {', '.join(other)}, which would make the recipes of its runs false; expected "
            f"settings of hydra or of {', '.join(MAY_DIFFER)}. Leave them out, or start a new sweep with them."
        )


def _overrides(option: str, folder: Path) -> list[str]:
    sweep = folder / "multirun.yaml"
    if option == "--resume" and sweep.is_file():
        return _overrides_of_sweep(folder, yaml.safe_load(sweep.read_text(encoding="utf-8"))["hydra"])
    try:
        overrides: list[str] = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{option} {folder}: {error.strerror} ({error.filename}); expected the folder of a run or, for --resume, "
            "of a sweep. Give the one that the run printed."
        ) from error
    if not isinstance(config, dict) or not {"checkpoint", "stages"} <= set(config) or not isinstance(overrides, list):
        raise ConfigError(
            f"{option} {folder}: holds no training (.hydra/config.yaml has no stages); expected the folder of a run of "
            "python -m idh_lightning.train. Give the one that the run printed; other commands are given once more."
        )
    if config["checkpoint"] == "last":
        overrides = [one for one in overrides if not one.startswith("checkpoint=")]
    try:
        now = OmegaConf.to_container(composed("train", as_text(overrides)), resolve=False)
    except HydraException as error:
        raise ConfigError(
            f"{option} {folder}: what it was started with fits no conf/train.yaml any more "
            f"({' '.join(str(error).split())}); expected the same recipe. Restore conf/ as it was, or start a new run."
        ) from error
    if different := list(_differences(now, config)):
        raise ConfigError(
            f"{option} {folder}: the configuration files have changed since that run: {'; '.join(different)}. Expected "
            "the same recipe. Restore conf/ as it was (provenance.json says the commit), or start a new run."
        )
    _warn_of_other_code(folder)
    if option == "--rerun":
        return overrides
    again = [*overrides, f"hydra.run.dir={_quoted(folder)}"]
    # A run that began from another one's weights and came to no checkpoint of its own begins there once more.
    begun = (folder / "checkpoints" / "last.ckpt").is_file() or RunState(folder, go_on=True).is_finished("fit")
    return again if config["checkpoint"] and not begun else [*again, "checkpoint=last"]


RESUMED_SEED = 1_000_003
"""Of the sampler of a sweep that goes on, with the number of its trials so far."""


def _overrides_of_sweep(folder: Path, hydra: Mapping[str, Any]) -> list[str]:
    """Return the command line of a sweep once more; of an Optuna sweep, for the trials that are still to do."""
    settings = [one for one in hydra["overrides"]["hydra"] if not one.startswith(_SET_ANEW)]
    task = [one for one in hydra["overrides"]["task"] if not one.startswith("checkpoint=")]
    again = ["--multirun", *settings, *task, f"hydra.sweep.dir={_quoted(folder)}", "checkpoint=last"]
    again.append(f"hydra.output_subdir={LATER_STARTS}")  # the recipes of its runs stay as they are
    if "optuna" in str(hydra["sweeper"]["_target_"]):
        from idh_lightning.runs.sweeps import remaining_trials

        asked = int(hydra["sweeper"]["n_trials"])
        first = len(list(folder.glob("*/.hydra")))
        # A trial that goes on is a new one with the same settings, so that its number may be another.
        again += [
            f"hydra.sweeper.n_trials={remaining_trials(folder, asked)}",
            f"hydra.sweep.subdir=from{first}_${{hydra.job.num}}",
        ]
        if "seed" in (hydra["sweeper"].get("sampler") or {}):  # from the same seed it would draw the same trials again
            again.append(f"hydra.sweeper.sampler.seed={RESUMED_SEED + first}")
    return again


def _differences(now: Any, then: Any, path: str = "") -> Iterator[str]:
    """Yield one message per setting that is not what it was."""
    if path in MAY_DIFFER:
        return
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for key in {**now, **then}:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(now.get(key), then.get(key), inner)
    elif now != then:
        yield f"{path} was {then!r}, is {now!r}"


def _warn_of_other_code(folder: Path) -> None:
    from idh_lightning.provenance import PROVENANCE, git_commit  # not above, since it takes torch along

    file = folder / PROVENANCE
    written = json.loads(file.read_text(encoding="utf-8")).get("git_commit") if file.is_file() else None
    if written != (now := git_commit()) and written is not None:
        sys.stderr.write(f"Note: that run was made by commit {written}; this is {now}.\n")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"


class RunFolder(Callback):
    """Hydra callback that claims the folder of a run before its recipe is written there, and holds it to the end.

    Two runs of one second would else share the folder that is named after it.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held = ExitStack()

    def on_run_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Claim the folder of a run; end with a message if it is in use or holds a run with another recipe."""
        self._claim_or_end(config, "hydra.run.dir", str(config_name))

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Claim the folder of a sweep; its runs claim theirs."""
        self._claim_or_end(config, "hydra.sweep.dir", "")

    def _refuse_search_without_score(self, config: DictConfig) -> None:
        missing = [stage for stage in ("test", "report") if stage not in config.get("stages", [])]
        if "optuna" in str(config.hydra.sweeper.get("_target_")) and missing:
            raise ConfigError(
                f"stages: found no {' and no '.join(missing)} in a search by Optuna; expected both, since they give "
                "the ROC-AUC of validation patients that it searches by. Leave stages out, or add them."
            )

    def _claim_or_end(self, config: DictConfig, key: str, command: str) -> None:
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # the folder's name may hold a choice
        try:
            if key == "hydra.sweep.dir":
                self._refuse_search_without_score(config)
            self._claim(config, key, command)
        except IDHError as error:  # which would only make Hydra warn
            sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
            sys.exit(2)
        finally:
            hydra.cfg = before

    def _claim(self, config: DictConfig, key: str, command: str) -> None:
        if not is_first_process():  # of several processes of a run the first one has claimed it
            return
        asked: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        given = [*asked["hydra"], *asked["task"]]
        folder = Path(OmegaConf.select(config, key))
        try:
            if not any(one.startswith((f"{key}=", "output=")) for one in given):
                folder = made_anew(folder)
                with read_write(config), read_write(config.hydra), open_dict(config):
                    OmegaConf.update(config, "output" if "output" in config else key, str(folder))
                    if key == "hydra.sweep.dir":  # Hydra composes the runs of a sweep anew
                        config.hydra.overrides.hydra.append(f"{key}={_quoted(folder)}")
            self._held.enter_context(claimed(folder))
            if command and (folder / ".hydra" / "config.yaml").is_file():
                _keep_recipe(config, folder, command)
        except ConfigError:
            self._held.close()
            raise
        except OSError as error:
            there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
            setting = "output" if "output" in config else key
            raise StorageError(
                f"{there}: cannot be written ({error.strerror}), so {folder} cannot be made; expected a folder that "
                f"this user may write. Start in a folder of your own, or give {setting}=FOLDER."
            ) from error


def made_anew(folder: Path) -> Path:
    """Make a folder that was not there, with _2, _3, ... at the end of its name if need be, and return it."""
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        return place
    raise AssertionError  # the count has no end


def _keep_recipe(config: DictConfig, folder: Path, command: str) -> None:
    """Have Hydra leave the recipe in a run folder as it is, or raise a ConfigError if it would no longer be true.

    Only a run that begins anew in a folder where no training was finished gets a new recipe.
    """
    finished = RunState(folder, go_on=True).is_finished("fit")
    goes_on = command == "train" and (config.checkpoint == "last" or "fit" not in config.stages)
    if not goes_on:
        if finished:
            raise ConfigError(
                f"{folder}: holds a finished run; expected an empty folder. Give another one, remove that run, or go "
                f"on with it: python -m idh_lightning.train --resume {shlex.quote(str(folder))}"
            )
        return
    written = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    now: Any = OmegaConf.to_container(config, resolve=False)
    now.pop("hydra", None)
    if different := list(_differences(now, written)):
        task = [one for one in config.hydra.overrides.task if not one.startswith("checkpoint=")]
        if (best := folder / "checkpoints" / "best.ckpt").is_file():
            way_on = "train on from its weights in a folder of its own"
            task.append(f"checkpoint={folder if finished else best}")
        else:
            way_on = "begin a new run"
        raise ConfigError(
            f"{folder}: {'a finished run' if finished else 'a run'} with another recipe: {'; '.join(different)}. "
            "Expected its own settings, since its recipe would be false. Leave the others out, or "
            f"{way_on}: {shlex.join(['python', '-m', 'idh_lightning.train', *map(as_typed, task)])}"
        )
    with read_write(config.hydra):
        config.hydra.output_subdir = LATER_STARTS
