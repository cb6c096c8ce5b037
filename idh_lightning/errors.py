"""Every error that the package raises on purpose: where, what was found, what was expected, and the remedy."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
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


class TrainingError(IDHError, ArithmeticError):
    """A loss is not finite. What was learnt before is kept; the text names the batch and the likely cause."""


class StorageError(IDHError, OSError):
    """A disk is full or may not be written. What was there before is whole; see to it and go on with `--resume`."""

    @classmethod
    def of(cls, error: BaseException | None, place: Path | None = None) -> Self | None:
        """Return the error as one of ours if a disk is full or this user may not read or write there, else None.

        The place is what was being written, where the error does not say.
        """
        if not isinstance(error, OSError):
            return None
        name = getattr(error, "filename", None) or place
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return cls(
                f"{name or 'a file'}: the disk is full (or a quota reached); expected room to write. What was there "
                f"before is as it was. Free some space and go on with {way_on()}"
            )
        if error.errno in UNWRITABLE and isinstance(name, str | bytes | Path):
            return cls(_not_allowed(Path(os.fsdecode(name)), error))
        return None


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the system where this user may not write: missing rights, or a disk that is mounted to be read only."""


def _not_allowed(path: Path, error: OSError) -> str:
    if path.exists() and not os.access(path, os.R_OK):
        return (
            f"{path}: may not be read by this user ({error.strerror}); expected a file or folder that may. Ask its "
            f"owner for `chmod -R a+rX {path}`."
        )
    folder = next((one for one in (path, *path.absolute().parents) if one.is_dir()), path)
    return (
        f"{path}: may not be written by this user ({error.strerror}); expected a folder that may, and {folder} may not."
        f" Ask its owner for `chmod g+w {folder}`, start in a folder of your own, or name one: {_places_written()}."
    )


def _places_written() -> str:
    """Settings that say where the command at hand writes."""
    if HydraConfig.initialized() and HydraConfig.get().job.config_name in ("predict", "export"):
        return "output=FOLDER says where this program writes"
    return "hydra.run.dir, paths.data, paths.store and paths.bank say where this program writes"


PEER_GONE = re.compile(
    r"gloo/transport/.*(closed by peer|reset by peer|broken pipe)|remote process exited", re.I | re.S
)
"""Words of PyTorch 2.14 where one of several processes that compute together is gone: gloo's, and NCCL's."""


class WorkerError(IDHError, RuntimeError):
    """A process that reads, augments or draws beside this one has died. The text says what uses none."""

    @classmethod
    def of(cls, error: BaseException) -> Self | None:
        """Return the error as one of ours if it says that a worker process is gone, else None."""
        # PyTorch has no class for it (2.11 to 2.14: "DataLoader worker (pid(s) 17) exited unexpectedly").
        said = str(error)
        if isinstance(error, RuntimeError) and PEER_GONE.search(said):
            return cls(
                "Another of the processes that train together has ended; expected all of them to live as long as the "
                "run. Its own message stands above; if there is none, the system has most often killed it because "
                "memory is used up; `dmesg` then says so. Train with fewer: trainer.devices=1. Go on with the same "
                f"number: {way_on()}"
            )
        if not (isinstance(error, BrokenExecutor) or said.startswith("DataLoader worker (pid")):
            return None
        return cls(
            f"{' '.join(str(error).split())}; expected worker processes that live as long as the run. Most often the "
            "system has killed one because memory (or the container's limit) is used up; `dmesg` then says so. Use "
            "fewer or none: data.batches.workers=0 in training, cohort.workers=1 where a synthetic cohort is written."
            f" Go on with {way_on()}"
        )


class Stopped(BaseException):
    """SIGTERM or SIGINT came; no fault. What is finished is kept: go on with `--resume RUN_FOLDER`.

    Not an Exception, so that nothing on the way takes it for a failure and goes on.
    """

    def __init__(self, number: signal.Signals, *, told: bool = True) -> None:
        """Remember which signal, and whether this process tells of it: the first of several does."""
        super().__init__(number.name)
        self.number, self.told = number, told


def way_on() -> str:
    """Command that goes on with what was cut short."""
    if not HydraConfig.initialized():
        return "--resume RUN_FOLDER."
    if (hydra := HydraConfig.get()).job.config_name == "predict":
        return "the same command, which begins with the first study."
    if hydra.job.config_name != "train":
        return "the same command."
    folder = hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else hydra.runtime.output_dir
    return shlex.join(["python", "-m", "idh_lightning.train", "--resume", str(Path(folder).absolute())])


def exits_with_message(main: Callable[P, R]) -> Callable[P, R]:
    """Make an entry point end with one message and status 2, instead of a traceback, where an IDHError is raised.

    It goes inside `hydra.main`, which else would print a traceback of its own.

    In a sweep the error goes on to Hydra after its message, so that the other runs take place.

    With `HYDRA_FULL_ERROR=1` in the environment the traceback is shown as well. An error that is not ours passes
    through unchanged: it is a defect, and its traceback is what we want to see.
    """
    told: set[str] = set()  # of the runs of a sweep, which may all fail alike

    @wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise  # what is within has said why
            stopped = _find_stopped(error)
            if stopped is not None:
                if stopped.told:
                    sys.stderr.write(f"\nStopped by {stopped}. What is finished is kept: go on with {way_on()}\n")
                sys.exit(128 + stopped.number)
            ours = _find_ours(error)
            if ours is None:
                raise
            if os.environ.get(FULL_ERROR) == "1":
                raise
            if not hasattr(error, "shown"):  # else by the run of a sweep that it ended
                text = f"{type(ours).__name__}: {ours}\n({FULL_ERROR}=1 shows where it was raised.)"
                again = f"As an earlier run: {textwrap.shorten(str(ours), 120, placeholder=' ...')}"
                sys.stderr.write(f"\n{again if text in told else text}\n")
                if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                    told.add(text)
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
        ours = StorageError.of(error) or WorkerError.of(error)
        if ours is not None:
            return ours
        error = error.__cause__
    return error
