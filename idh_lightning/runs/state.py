"""How far a run has come, so that it can be gone on with: `checkpoint=last`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.files import UNFINISHED, atomic_write, write_json, write_text

logger = logging.getLogger(__name__)

SHARED_FOLDERS = {"data": "synthetic cohorts", "store": "preprocessed volumes", "bank": "features of the stem"}
"""Folders of `paths` that runs share -> what they hold."""

LOCATOR_WEIGHTS = "locator.safetensors"
"""File in a run folder: weights of the locator that its stage `locate` has fine-tuned."""

SEGMENTATION_SCORES = "segmentation.csv"
"""File in a run folder: how well that locator finds the tumours of validation and test studies with a mask."""

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "locate": (LOCATOR_WEIGHTS, SEGMENTATION_SCORES),
    "fit": ("checkpoints/best.ckpt",),
    "test": ("predictions.csv",),
    "explain": ("explanations.json", "explanations.html"),
    "report": ("metrics.json", "report.html"),
}
"""Stage -> the files without which it is not finished."""

LATER_STARTS = ".hydra/later"
"""Where Hydra writes what a run was started with again: the recipe in .hydra stays as it was first written."""

CLAIM_PATIENCE_S = 10
"""How long a folder may still be held by the worker processes of a killed run."""


@contextmanager
def claimed(run_folder: Path) -> Iterator[None]:
    """Hold a run folder, or raise a ConfigError if another process does; a process that has died holds nothing."""
    run_folder = run_folder.absolute()
    run_folder.mkdir(parents=True, exist_ok=True)
    owner = run_folder / ".running"
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(run_folder / ".running.lock", timeout=CLAIM_PATIENCE_S, is_singleton=True))
        except Timeout as error:
            who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
            raise ConfigError(
                f"{run_folder}: a run is going on there ({who}); expected a folder that nobody writes into. Wait for "
                "its end, or give another folder."
            ) from error
        except PermissionError:
            raise
        except OSError as error:  # a network file system without locks
            logger.warning(
                "%s cannot be locked (%s), so take care that no two runs are started in it.", run_folder, error.strerror
            )
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}")
        held.callback(owner.unlink, missing_ok=True)
        yield


def started_in(run_folder: Path) -> Path:
    """Return the folder that relative paths in the recipe of a run count from; it may have been moved with the run.

    A CheckpointError is raised if it is no longer there.
    """
    file = run_folder / ".hydra" / "hydra.yaml"
    if not file.is_file():
        return Path.cwd()
    runtime = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["runtime"]
    start, written, here = Path(runtime["cwd"]), Path(runtime["output_dir"]), run_folder.absolute()
    inside = written.relative_to(start).parts if written.is_relative_to(start) else ()
    if inside and here.parts[-len(inside) :] == inside:
        return Path(*here.parts[: -len(inside)])
    if not start.is_dir():
        raise CheckpointError(
            f"{run_folder}: started in {start}, which is not there; expected that folder, since relative paths of its "
            "cohort and volumes count from it. Move the run back to its place in a copy of it, or name another cohort: "
            "cohort=... paths.store=..."
        )
    return start


def keep_recipe(run_folder: Path) -> None:
    """Make what a run was started with its recipe if it has none: the first start of a run of a sweep gone on with."""
    for file in (run_folder / LATER_STARTS).glob("*.yaml"):
        if not (place := run_folder / ".hydra" / file.name).exists():
            write_text(place, file.read_text(encoding="utf-8"))


class RunState:
    """Remembers in finished.json which stages of a run are finished, and knows where its training stands.

    A stage is noted when all of its files are written, each in one step; so whatever ends a run, what is noted is whole
    and what is not noted is done again.
    """

    def __init__(self, run_folder: Path, *, go_on: bool) -> None:
        """Look at the folder of this run; what is there counts where the run goes on, else it begins anew."""
        self.run_folder = run_folder
        self._file = run_folder / "finished.json"
        self._finished: dict[str, str] = {}
        if go_on:
            if self._file.is_file():
                self._finished = json.loads(self._file.read_text(encoding="utf-8"))
        else:
            self._file.unlink(missing_ok=True)
        last = run_folder / "checkpoints" / "last.ckpt"
        self.last: Path | None = last if go_on and last.is_file() else None
        """The checkpoint to go on from, or None."""

    def clean(self) -> None:
        """Remove what a killed process was writing into the run folder."""
        for leftover in self.run_folder.rglob(f"{UNFINISHED}*"):
            leftover.unlink(missing_ok=True)

    def is_finished(self, stage: str) -> bool:
        """Return whether a stage and all of its files are there."""
        return stage in self._finished and all((self.run_folder / name).is_file() for name in OUTPUTS[stage])

    def begin(self, stage: str) -> None:
        """Forget that a stage and those after it were finished."""
        stages = list(OUTPUTS)
        later = stages[stages.index(stage) :]
        if any(name in self._finished for name in later):
            self._finished = {name: when for name, when in self._finished.items() if name not in later}
            write_json(self._file, self._finished)

    def finish(self, stage: str) -> None:
        """Note that a stage is finished; of a finished training, the file that it could go on from is removed."""
        self._finished[stage] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self._file, self._finished)
        if stage == "fit":
            (self.run_folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)


def weights_of(place: str | Path) -> Path | None:
    """Return the checkpoint whose weights are to be trained on, with a schedule of their own; None to go on instead.

    Args:
        place: A `.ckpt`, the folder of a run (of a finished one best.ckpt, of another one the training goes on), or a
            checkpoint as the hub has it: hf://owner/name or a folder.

    Raises:
        CheckpointError: If there is neither.
    """
    from idh_lightning.checkpoint import HUB_FILES, Checkpoint  # here, since help comes without torch
    from idh_lightning.hub import HUB

    other = Path(place)
    if str(place).startswith(HUB) or (other / HUB_FILES[0]).is_file():
        return Checkpoint.locate(place)
    if other.is_file() and other.name != "last.ckpt":
        return other
    source = other if other.is_dir() else other.parent.parent
    best, last = (source / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    finished = RunState(source, go_on=True).is_finished("fit") or not last.is_file()
    if other.is_dir() and best.is_file() and finished:
        return best
    if not last.is_file():
        raise CheckpointError(
            f"{other}: holds no training to go on with and no weights; expected a run folder or a .ckpt in its "
            "checkpoints. Give one of them."
        )
    return None


def copy_training_state(other: Path, run_folder: Path) -> None:
    """Copy what another run has learnt so far into a run folder, so that its training goes on there.

    The other run is named by its folder or its last.ckpt, and stays as it is.
    """
    source = other if other.is_dir() else other.parent.parent
    if source.resolve() == run_folder.resolve():
        return
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", *OUTPUTS["locate"]):
        if (source / name).is_file():
            with atomic_write(run_folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
