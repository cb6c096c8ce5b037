"""Prepared volumes on disk: one folder per study, named after what is in it and how it was made."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import joblib  # type: ignore[import-untyped]
import numpy as np
import psutil
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from idh_lightning.cohort.study import Fault, Study
from idh_lightning.errors import UNWRITABLE, ModelError, StorageError, VolumeError
from idh_lightning.volumes.checks import FaultyStudyError, Place
from idh_lightning.volumes.consistency import check_repeats_between
from idh_lightning.volumes.entries import (
    ENTRY_FILE,
    STORE_CHECKS,
    STORE_FORMAT,
    DamageError,
    OutdatedError,
    StoredVolume,
    described_array,
    file_checksum,
    read_entry,
    verified_entry,
)
from idh_lightning.volumes.extraction import EXTRACTION
from idh_lightning.volumes.preprocessing import Preprocessing, Volume
from idh_lightning.volumes.registration import REGISTRATION, Registration

logger = logging.getLogger(__name__)

_PARTIAL = ".partial-"
_FORGOTTEN_S = 24 * 3600.0
_SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """Outcome of a preparation.

    Attributes:
        built: Number of entries that were made (anew).
        reused: Number of entries that were there and whole.
        faults: Everything found wrong with the images, in the order of the studies.
        elapsed_s: Wall clock.
        note: How several runs are kept apart, where a lock cannot.
        refused: Study with errors -> its registrations, where it came to them.
    """

    built: int
    reused: int
    faults: tuple[Fault, ...]
    elapsed_s: float
    note: str = ""
    refused: Mapping[str, tuple[Registration, ...]] = field(default_factory=dict)


class _Outcome(NamedTuple):
    key: str
    built: bool
    fingerprints: Mapping[str, str]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    registrations: tuple[Registration, ...] = ()


class VolumeStore:
    """Keeps prepared studies so that a NIfTI file is decoded once.

    An entry is a folder with `image.npy`, `brain.npy`, `mask.npy` (if there is a mask) and `entry.json`. Its name is a
    hash of the study_id, the names and contents of its files, the sequences, the settings and the format: whatever
    changes, another entry is made, and the label is no part of it. Where the brain was extracted from a head, or a
    sequence registered, the name ends with the methods, since that shows only when the files are decoded. An entry is
    written beside
    its place and renamed into it, so it is whole or not there, and several processes may prepare the same studies at
    once: who comes second drops its own copy.
    """

    def __init__(self, folder: str | Path, preprocessing: Preprocessing, sequences: Sequence[str]) -> None:
        """Set up a store; nothing is read or written yet.

        Args:
            folder: Made when needed. Each combination of settings has a folder of its own in it.
            preprocessing: Makes the volumes.
            sequences: The channels, in order.
        """
        self.preprocessing = preprocessing
        self.sequences = tuple(sequences)
        made = json.dumps([STORE_FORMAT, self.sequences, preprocessing.settings()], sort_keys=True).encode()
        name = "x".join(map(str, preprocessing.shape)) + f"_{preprocessing.crop}_{hashlib.sha256(made).hexdigest()[:8]}"
        self.folder = Path(folder).absolute() / name
        self._keys: dict[str, str] = {}

    @property
    def entry_bytes(self) -> int:
        """Size of one entry with a mask."""
        return int(np.prod(self.preprocessing.shape)) * (2 * len(self.sequences) + 2) + 8192

    def key(self, study: Study) -> str:
        """Return the name of a study's entry, without methods at its end; reads its files (and decodes none).

        Raises:
            OSError: If a file cannot be read.
        """
        paths = {name: study.files[name] for name in self.sequences if name in study.files}
        paths |= {} if study.mask is None else {"mask": study.mask}
        files = {name: [path.name, file_checksum(path)] for name, path in paths.items()}
        content = {
            "format": STORE_FORMAT,
            "study_id": study.study_id,
            "files": files,
            "sequences": self.sequences,
            "settings": self.preprocessing.settings(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:40]

    def prepare(self, studies: Sequence[Study], *, workers: int | None = None) -> PrepareReport:
        """Make the entries that are missing or damaged, and verify the others by checksum.

        A study with faults does not stop the others; those with errors get no entry.

        Args:
            studies: The cohort.
            workers: Threads; by default one for each core that this process may use.

        Raises:
            VolumeError: If the disk cannot hold the entries, or two studies have one name, by which they are opened.
        """
        start = time.monotonic()
        if twice := [name for name, times in Counter(study.study_id for study in studies).items() if times > 1]:
            raise VolumeError(
                f"{self.folder}: several studies are called {', '.join(twice[:5])}; expected a name for each, by which "
                "it is found again. Rename them, or take a store for each source."
            )
        self._make_room(studies)
        with _progress(shown=bool(studies)) as progress:
            bar = progress.add_task("Preparing volumes", total=len(studies))
            outcomes = self._outcomes(studies, workers or joblib.cpu_count(), lambda: progress.advance(bar))
        for outcome in outcomes:
            for note in outcome.notes:
                logger.warning(note)
        by_name = {study.study_id: outcome for study, outcome in zip(studies, outcomes, strict=True)}
        ready = {name: outcome for name, outcome in by_name.items() if outcome.key}
        self._keys |= {name: outcome.key for name, outcome in ready.items()}
        repeats = check_repeats_between(studies, {name: outcome.fingerprints for name, outcome in ready.items()})
        return PrepareReport(
            built=sum(outcome.built for outcome in ready.values()),
            reused=sum(not outcome.built for outcome in ready.values()),
            faults=(*(fault for outcome in outcomes for fault in outcome.faults), *repeats),
            elapsed_s=time.monotonic() - start,
            refused={name: outcome.registrations for name, outcome in by_name.items() if outcome.registrations},
        )

    def open(self, study: Study) -> StoredVolume:
        """Return a prepared study; after `prepare`, without reading its files.

        Raises:
            VolumeError: If it has no entry, or one whose files are not as they were written.
        """
        key = self._keys.get(study.study_id)
        if key is None:
            names = _names(self.key(study))
            key = next((name for name in names if (self.folder / name).exists()), names[-1])
        try:
            entry = read_entry(self.folder / key)
        except DamageError as damage:
            raise VolumeError(
                f"{self.folder / key}, study {study.study_id}: {damage}; expected a prepared study. "
                "Prepare the cohort (again): a damaged entry is then made anew."
            ) from damage
        self._keys[study.study_id] = key
        return StoredVolume.at(self.folder / key, entry)

    def of_names(self, names: Iterable[str]) -> list[StoredVolume]:
        """Return the whole entries of studies by their names alone; not of a name that has none or several."""
        found: dict[str, list[Path]] = {}
        for file in self.folder.glob(f"*/{ENTRY_FILE}"):
            with contextlib.suppress(DamageError):
                found.setdefault(read_entry(file.parent)["study_id"], []).append(file.parent)
        folders = [found[name][0] for name in names if len(found.get(name, ())) == 1]
        return [StoredVolume.at(folder, read_entry(folder)) for folder in folders]

    def _outcomes(self, studies: Sequence[Study], workers: int, advance: Callable[[], None]) -> list[_Outcome]:
        """Return the outcome of every study, in order.

        Nearly all of the time is spent where Python's lock is free: in unpacking, filters, products of matrices. On two
        cores 40 studies took 9.0 s by one thread, 5.4 s by two, and 6.7 s by two processes.
        """
        pool = ThreadPoolExecutor(min(workers, max(len(studies), 1)))
        with _one_thread_each():
            try:
                futures = [pool.submit(self._prepare_one, study) for study in studies]
                for future in futures:
                    future.add_done_callback(lambda done: None if done.cancelled() else advance())
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _prepare_one(self, study: Study) -> _Outcome:
        """Return the outcome for one study; whatever is wrong with it becomes a fault."""
        notes: list[str] = []
        try:
            return self._found_or_made(study, notes)
        except FaultyStudyError as error:
            return _Outcome("", False, {}, error.faults, tuple(notes), error.registrations)
        except (StorageError, ModelError):
            raise
        except Exception as error:  # one study must not stop a cohort, whatever a library makes of its files
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VolumeError(
                    f"{self.folder}: the disk is full. Free it, or give another folder (paths.store), and start again; "
                    "finished studies are kept."
                ) from error
            fault = Place(study.study_id).fault(
                "unreadable_study",
                f"preparing it failed with {type(error).__name__} ({' '.join(str(error).split())})",
                "images that can be read",
                "Look at its files, or exclude the study.",
            )
            return _Outcome("", False, {}, (fault,), (*notes, traceback.format_exc()))

    def _found_or_made(self, study: Study, notes: list[str]) -> _Outcome:
        volume = None
        try:
            key = self.key(study)
        except OSError:
            self.preprocessing(study, self.sequences)  # says which file is missing, and all else that is wrong
            raise
        entry = None
        for place in (self.folder / name for name in _names(key)):
            if entry is not None or not place.exists():
                continue
            try:
                entry = verified_entry(place)
            except OutdatedError:
                pass
            except DamageError as damage:
                notes.append(f"{place}, study {study.study_id}: {damage}; it is made anew")
        if entry is None:
            volume = self.preprocessing(study, self.sequences)
            key = _name(key, extracted=volume.found.extracted, registered=bool(volume.registrations))
            entry = self._write(key, study.study_id, volume)
        faults = tuple(Fault(**fault) for fault in entry["faults"])
        return _Outcome(entry["key"], volume is not None, entry["fingerprints"], faults, tuple(notes))

    def _write(self, key: str, study_id: str, volume: Volume) -> dict[str, Any]:
        """Write an entry beside its place, move it there, and return its description."""
        partial = self._partial_folder()
        try:
            partial.mkdir(parents=True)
            arrays: dict[str, NDArray[Any]] = {"image": volume.image.astype(np.float16), "brain": volume.brain}
            if volume.mask is not None:
                arrays["mask"] = volume.mask
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array, allow_pickle=False)
            entry = {
                "format": STORE_FORMAT,
                "checks": STORE_CHECKS,
                "key": key,
                "study_id": study_id,
                "sequences": self.sequences,
                "settings": self.preprocessing.settings(),
                "arrays": {name: described_array(partial / f"{name}.npy", array) for name, array in arrays.items()},
                "presence": volume.presence.tolist(),
                "affine": volume.affine.tolist(),
                "native": asdict(volume.native),
                "fingerprints": volume.fingerprints,
                "brain": asdict(volume.found),
                "registrations": [one.to_dict() for one in volume.registrations],
                "faults": [asdict(fault) for fault in volume.faults],
            }
            (partial / ENTRY_FILE).write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            self._publish(partial, self.folder / key)
        except OSError as error:
            if error.errno in UNWRITABLE and (refused := StorageError.of(error, partial)):
                raise refused from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return entry

    def _publish(self, partial: Path, place: Path) -> None:
        """Move a finished entry to its place, unless another process has put the same one there."""
        for attempt in range(5):
            try:
                partial.rename(place)
                return
            except OSError:
                with contextlib.suppress(DamageError):
                    verified_entry(place)
                    return
                if attempt == 4:
                    raise
                damaged = self._partial_folder()
                with contextlib.suppress(FileNotFoundError):  # another process has just taken it away
                    place.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)

    def _partial_folder(self) -> Path:
        return self.folder / f"{_PARTIAL}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"

    def _make_room(self, studies: Sequence[Study]) -> None:
        """Remove what killed processes left behind, and refuse a disk that is too small.

        The estimate takes the entries that are there for entries of these studies, since telling needs all files read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_PARTIAL}*"):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        there = sum(1 for entry in self.folder.iterdir() if not entry.name.startswith("."))
        needed = max(0, len(studies) - there) * self.entry_bytes
        free = shutil.disk_usage(self.folder).free
        if needed and needed + _SPARE_BYTES > free:
            raise VolumeError(
                f"{self.folder}: {len(studies)} prepared studies need {needed / 1e9:.1f} GB; found {free / 1e9:.1f} GB "
                "free. Give another folder (paths.store), free the disk, or choose a smaller data.grid."
            )


def _name(key: str, *, extracted: bool, registered: bool) -> str:
    """Name of an entry: its key, and by what methods it was made, if by any that not every study needs."""
    return "_".join([key, *([EXTRACTION] if extracted else []), *([REGISTRATION] if registered else [])])


def _names(key: str) -> list[str]:
    """Names that the entry of a key may have, that of the key alone last."""
    either = (True, False)
    return [_name(key, extracted=extracted, registered=registered) for registered in either for extracted in either]


def _is_abandoned(partial: Path) -> bool:
    """Whether the process that was writing this is gone (or, on another machine, must be)."""
    try:
        host, pid = partial.name.removeprefix(_PARTIAL).rsplit("-", 2)[:2]
        if host == socket.gethostname():
            return not psutil.pid_exists(int(pid))
        return time.time() - partial.stat().st_mtime > _FORGOTTEN_S
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Run filters of ITK on the thread that asks for them: the cores are shared already."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _progress(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not shown)
