"""How this process asks the system for memory while it trains on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt`, from its malloc.h."""

LARGEST_EVER, LARGEST_ONCE = 1 << 30, 1 << 25
"""Bytes up to which glibc may be told to keep what is freed, today and before version 2.35."""


def share_freed_memory() -> None:
    """Let all threads take memory from one place, where what one of them has freed is there for another.

    Else glibc gives each thread a place of its own, from which a block of more than 64 MB always goes back to Linux.
    Has to be called before there are threads.
    """
    if (mallopt := _mallopt()) is not None:
        mallopt(ARENA_MAX, 1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, memory that is freed stays with the process, so that the next training step finds it there.

    Every step asks for the same blocks. glibc gives large ones back as soon as they are free, and Linux clears each
    page again when it is next asked for: half of the plain way's time, and a fifth of that of a step of the tail. No
    more is in use at once than without; what is free goes back at the end. Where there is no glibc nothing changes.
    """
    if (mallopt := _mallopt()) is None:
        yield
        return
    mallopt(TRIM_THRESHOLD, LARGEST_EVER)
    mallopt(MMAP_THRESHOLD, LARGEST_EVER) or mallopt(MMAP_THRESHOLD, LARGEST_ONCE)
    try:
        yield
    finally:
        # What glibc itself arrives at once a block of the largest size has been freed.
        mallopt(MMAP_THRESHOLD, LARGEST_ONCE)
        mallopt(TRIM_THRESHOLD, 2 * LARGEST_ONCE)
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> Callable[[int, int], int] | None:
    """Return glibc's function; None where there is no glibc."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
