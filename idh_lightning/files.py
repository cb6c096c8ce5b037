"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from idh_lightning.errors import UNWRITABLE

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Before whoever waits for a lock is told so."""

UNFINISHED = ".writing-"
"""How the names of files begin that are being written, or were when their process was killed."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Temporary path beside `path` to write to; the result is put in its place in one step at the end.

    Whoever reads `path` meanwhile sees the old file or none; after an exception the old file is as it was. The
    temporary name keeps the suffixes of `path`, since libraries choose the format by them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Temporary folder of the same name, which becomes `path`, new or empty till then, in one step at the end.

    After an exception there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as name:
        temporary = Path(name, path.name)
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write primitives as indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def locked(path: Path, *, needed: bool = False) -> Iterator[str]:
    """Hold a lock that processes on this and other machines respect; yield "", or what was done in its stead.

    On a file system without locks (some network file systems), the existence of another file is the lock. Where this
    user may not write, another's folder say, there is no lock: whoever writes there nevertheless is told why not.

    Args:
        path: File of the lock; its folder is there.
        needed: Whether two at once would do harm; else the lock only saves doing the same work twice.

    Raises:
        OSError: If the file cannot be written and the lock is needed.
    """
    note = ""
    lock: BaseFileLock = FileLock(path)
    try:
        try:
            _acquire(lock)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            lock = SoftFileLock(path.with_name(path.name + ".held"))
            note = f"{path}: the file system has no locks ({error.strerror}); {lock.lock_file} is there meanwhile"
            _acquire(lock)
    except OSError as error:
        if error.errno not in UNWRITABLE or needed:
            raise
        note = f"{path}: may not be written ({error.strerror}); going on without a lock"
    if note:
        logger.warning(note)
    try:
        yield note
    finally:
        lock.release()


def _acquire(lock: BaseFileLock) -> None:
    """Wait for a lock; whoever waits for more than seconds is told for what."""
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        remedy = " If no run is there, delete the file." if isinstance(lock, SoftFileLock) else ""
        logger.info("Waiting for another run, which holds %s.%s", lock.lock_file, remedy)
        lock.acquire()
