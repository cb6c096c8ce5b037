"""last.ckpt of a run that goes on: read, and pointed at the folder that it lies in now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from idh_lightning.config.places import without_folders
from idh_lightning.errors import CheckpointError
from idh_lightning.files import atomic_write


def read_last(file: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a last.ckpt; a CheckpointError if it cannot be read, or lists how its recipe differs."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        written = without_folders(content["recipe"])
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


def repoint_checkpoint_paths(last: Path, content: dict[str, Any]) -> None:
    """Make a last.ckpt that was moved or copied remember the best checkpoint beside it, not where both came from.

    Content and, if need be, file are changed.
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
    with atomic_write(last) as temporary:
        torch.save(content, temporary)
