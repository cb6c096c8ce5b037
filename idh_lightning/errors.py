"""Every error that the package raises on purpose: where, what was found, what was expected, and the remedy."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable that, set to 1, asks for the traceback of an error as well."""

P = ParamSpec("P")
R = TypeVar("R")


class IDHError(Exception):
    """Parent of all errors below; entry points print its message and exit with status 2, without a traceback."""


class ConfigError(IDHError, ValueError):
    """A setting is unknown, out of range, or contradicts another. Correct the named key or file and start again."""


class CohortError(IDHError, ValueError):
    """The table or the folders of a cohort are wrong: all faults are listed. Correct them or exclude the studies."""


class VolumeError(IDHError, ValueError):
    """An image cannot be read or its geometry does not fit its study. Replace the file or exclude the study."""


class SplitError(IDHError, ValueError):
    """Patients cannot be split as asked: a patient in two parts, or a part with one class. Change `split.*`."""


class ModelError(IDHError, ValueError):
    """The network cannot be built as asked: unknown module name, or weights that do not fit. Correct `model.*`."""


class ObjectiveError(IDHError, ValueError):
    """A loss was given a parameter out of range. Correct `objective.*`."""


class CheckpointError(IDHError, ValueError):
    """A checkpoint is missing, damaged or of another recipe. Give the path of a run folder or a `.ckpt` it wrote."""


class ExplanationError(IDHError, ValueError):
    """A map cannot be computed for this layer or study. Choose another `explain.layer`."""


class EvaluationError(IDHError, ValueError):
    """Predictions do not allow a statistic: one class, a missing split, a patient in two splits. The text says."""


class MemoryShortageError(IDHError, MemoryError):
    """Training needs more memory than is free, or ran out of it. The text names settings that need less."""


class StorageError(IDHError, OSError):
    """A disk is full. What was written before is whole; free some space and go on with `--resume`."""

    @classmethod
    def of(cls, error: BaseException | None, place: Path | None = None) -> Self | None:
        """Return the error as one of ours if it says that a disk is full, else None.

        Args:
            error: What writing raised.
            place: What was being written, where the error does not say.
        """
        if not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            return None
        name = getattr(error, "filename", None) or place or "a file"
        return cls(
            f"{name}: the disk is full (or a quota reached); expected room to write. What was there before is as it "
            "was. Free some space and go on with --resume RUN_FOLDER."
        )


class Stopped(BaseException):
    """SIGTERM or SIGINT came; no fault. What is finished is kept: go on with `--resume RUN_FOLDER`.

    Not an Exception, so that nothing on the way takes it for a failure and goes on.
    """

    def __init__(self, number: signal.Signals) -> None:
        """Remember which signal."""
        super().__init__(number.name)
        self.number = number


def exits_with_message(main: Callable[P, R]) -> Callable[P, R]:
    """Make an entry point end with one message and status 2, instead of a traceback, where an IDHError is raised.

    It goes inside `hydra.main`, which else would print a traceback of its own.

    In a sweep the error goes on to Hydra after its message, so that the other runs take place.

    With `HYDRA_FULL_ERROR=1` in the environment the traceback is shown as well. An error that is not ours passes
    through unchanged: it is a defect, and its traceback is what we want to see.
    """

    @wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except BaseException as error:
            stopped = _find_stopped(error)
            if stopped is not None:
                sys.stderr.write(f"\nStopped by {stopped}. What is finished is kept: go on with --resume RUN_FOLDER.\n")
                sys.exit(128 + stopped.number)
            ours = _find_ours(error)
            if ours is None:
                raise
            if os.environ.get(FULL_ERROR) == "1":
                raise
            if not hasattr(error, "shown"):  # else by the run of a sweep that it ended
                sys.stderr.write(f"\n{type(ours).__name__}: {ours}\n({FULL_ERROR}=1 shows where it was raised.)\n")
                if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                    error.shown = True  # type: ignore[attr-defined]
                    raise
            sys.exit(2)

    return guarded


def _find_stopped(error: BaseException | None) -> Stopped | None:
    """Return the stop that an exception is, or was raised over: torch.save, cut short, ends with a RuntimeError."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def _find_ours(error: BaseException | None) -> IDHError | None:
    """Return the IDHError that an exception is, or was caused by: Hydra wraps what constructors raise."""
    while error is not None and not isinstance(error, IDHError):
        full = StorageError.of(error)
        if full is not None:
            return full
        error = error.__cause__
    return error
