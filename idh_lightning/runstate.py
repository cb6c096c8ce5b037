"""How far a run has come, so that it can be gone on with: `checkpoint=last`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from idh_lightning.errors import CheckpointError
from idh_lightning.files import UNFINISHED, replacing, write_json

logger = logging.getLogger(__name__)

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "fit": ("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    "test": ("predictions.csv",),
    "explain": ("explanations.json", "explanations.html"),
    "report": ("metrics.json", "report.html"),
}
"""Stage -> the files without which it is not finished."""


class RunState:
    """Remembers in finished.json which stages of a run are finished, and knows where its training stands.

    A stage is noted when all of its files are written, each in one step; so whatever ends a run, what is noted is whole
    and what is not noted is done again.
    """

    def __init__(self, run_folder: Path, *, go_on: bool) -> None:
        """Look at a run folder.

        Args:
            run_folder: Of this run; it may be empty.
            go_on: Whether what is there counts; else the run begins anew.
        """
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
        """Note that a stage is finished."""
        self._finished[stage] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self._file, self._finished)


def adopt(other: Path, run_folder: Path) -> None:
    """Copy the state of another run's training into a run folder, so that it goes on there.

    Args:
        other: A run folder, or its checkpoints/last.ckpt.
        run_folder: Gets best.ckpt, last.ckpt and metrics.csv; the other run stays as it is.

    Raises:
        CheckpointError: If there is no last.ckpt.
    """
    source = other if other.is_dir() else other.parent.parent
    if not (source / "checkpoints" / "last.ckpt").is_file() or (other.is_file() and other.name != "last.ckpt"):
        raise CheckpointError(
            f"{other}: holds no training to go on with; expected a run folder or its checkpoints/last.ckpt. "
            "Give one of them, or stages=[test,report] to test a model as it is."
        )
    if source.resolve() == run_folder.resolve():
        return
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv"):
        if (source / name).is_file():
            with replacing(run_folder / name) as temporary:
                shutil.copyfile(source / name, temporary)


def read_last(file: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a last.ckpt after checking that it is of this recipe.

    Raises:
        CheckpointError: If it cannot be read, or was written by a run with other settings, which are listed.
    """
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        written = content["recipe"]
    except (OSError, RuntimeError, KeyError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be used ({type(error).__name__}: {error}); expected a last.ckpt of this project. "
            "Remove it to begin anew."
        ) from error
    other = [key for key in recipe if key in written and written[key] != recipe[key]]
    if other:
        raise CheckpointError(
            f"{file}: written with another recipe: "
            + "; ".join(f"{key} was {written[key]}, is {recipe[key]}" for key in other)
            + ". Expected the settings of the run. Go on with --resume, which repeats them, or begin a new run."
        )
    return content


def follow(last: Path, content: dict[str, Any]) -> None:
    """Make a last.ckpt that was moved or copied remember the best checkpoint beside it, not where both came from.

    Args:
        last: The file; it is written anew if need be.
        content: What it holds.
    """
    folder = str(last.parent.absolute())
    callbacks = [state for state in content["callbacks"].values() if isinstance(state, dict) and "dirpath" in state]
    if all(state["dirpath"] == folder for state in callbacks):
        return
    for state in callbacks:
        before = state["dirpath"]
        for key, value in state.items():
            if isinstance(value, str):
                state[key] = value.replace(before, folder)
            elif isinstance(value, dict):
                state[key] = {str(path).replace(before, folder): score for path, score in value.items()}
    with replacing(last) as temporary:
        torch.save(content, temporary)
