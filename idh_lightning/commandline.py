"""`--rerun RUN_FOLDER` and `--resume FOLDER`: from a run to the command line that repeats it or goes on with it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from idh_lightning.entry import composed
from idh_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

MAY_DIFFER: tuple[str, ...] = (
    "checkpoint",
    "stages",
    "paths",
    "logger",
    "figures",
    "callbacks.progress",
    "cohort.workers",
    "data.batches.workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
)
"""Settings that change where and how a run is computed, not what it computes."""


_SET_ANEW = ("hydra.mode=", "hydra.sweep.dir=", "hydra.sweep.subdir=")


def expanded(arguments: Sequence[str]) -> list[str]:
    """Return the command line with `--rerun FOLDER` or `--resume FOLDER` replaced by the overrides that it stands for.

    - `--rerun RUN [overrides]`: the overrides of that run, then the new ones, in a new run folder.
    - `--resume RUN [overrides]`: the overrides of that run and `checkpoint=last`, in the same run folder.
    - `--resume SWEEP [overrides]`: the same for a sweep: finished runs are kept, the others gone on with.

    Args:
        arguments: As given, without the program's name.

    Raises:
        ConfigError: If the folder is not one of ours, or the configuration files have changed so that the same
            overrides would now give another recipe; every setting that differs is listed.
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
                kept = [one for one in _overrides(option, Path(folder).absolute()) if _key(one) not in changed]
                return [*kept, *rest]
    return list(arguments)


def _key(override: str) -> str:
    """Return what an override sets; Hydra refuses a config group that is chosen twice."""
    return override.partition("=")[0].lstrip("+~")


def _overrides(option: str, folder: Path) -> list[str]:
    sweep = folder / "multirun.yaml"
    if option == "--resume" and sweep.is_file():
        return _overrides_of_sweep(folder, yaml.safe_load(sweep.read_text(encoding="utf-8"))["hydra"])
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{option} {folder}: {error.strerror} ({error.filename}); expected the folder of a run or, for --resume, "
            "of a sweep. Give the one that the run printed."
        ) from error
    overrides = (
        [one for one in overrides if not one.startswith("checkpoint=")] if config["checkpoint"] == "last" else overrides
    )
    different = list(_differences(_composed(overrides), config))
    if different:
        raise ConfigError(
            f"{option} {folder}: the configuration files have changed since that run: {'; '.join(different)}. Expected "
            "the same recipe. Restore conf/ as it was (provenance.json says the commit), or start a new run."
        )
    _warn_of_other_code(folder)
    return [*overrides, f"hydra.run.dir={_quoted(folder)}", "checkpoint=last"] if option == "--resume" else overrides


def _overrides_of_sweep(folder: Path, hydra: Mapping[str, Any]) -> list[str]:
    """Return the command line of a sweep once more; of an Optuna sweep, for the trials that are still to do."""
    settings = [one for one in hydra["overrides"]["hydra"] if not one.startswith(_SET_ANEW)]
    task = [one for one in hydra["overrides"]["task"] if not one.startswith("checkpoint=")]
    again = ["--multirun", *settings, *task, f"hydra.sweep.dir={_quoted(folder)}", "checkpoint=last"]
    if "optuna" in str(hydra["sweeper"]["_target_"]):
        from idh_lightning.sweeps import remaining_trials

        asked = int(hydra["sweeper"]["n_trials"])
        first = len(list(folder.glob("*/.hydra")))
        # A trial that goes on is a new one with the same settings, so that its number may be another.
        again += [
            f"hydra.sweeper.n_trials={remaining_trials(folder, asked)}",
            f"hydra.sweep.subdir=from{first}_${{hydra.job.num}}",
        ]
    return again


def _composed(overrides: Sequence[str]) -> Any:
    return OmegaConf.to_container(composed("train", overrides), resolve=False)


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
    from idh_lightning.callbacks.provenance import git_commit

    file = folder / "provenance.json"
    written = json.loads(file.read_text(encoding="utf-8")).get("git_commit") if file.is_file() else None
    if written != (now := git_commit()) and written is not None:
        sys.stderr.write(f"Note: that run was made by commit {written}; this is {now}.\n")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"
