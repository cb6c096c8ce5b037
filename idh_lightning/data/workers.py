"""Processes that read and augment studies: what they make goes through files, and one that fails ends the run."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from multiprocessing import queues
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import numpy as np
import torch


def begin_worker(worker: int) -> None:
    """Prepare a worker process of a DataLoader.

    PyTorch shares tensors through /dev/shm, which in a container often holds 64 MB. Where it is full, the thread that
    sends what the worker made drops it, and both sides wait for ever. Files without a name, in the folder of temporary
    files, have the disk's room and are gone with their last reader; they take as long. What still cannot be sent ends
    the worker, which the loader notices.
    """
    ForkingPickler.register(torch.UntypedStorage, _through_file)
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _through_file(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    if not storage.nbytes():
        return torch.UntypedStorage, (0,)
    with tempfile.TemporaryFile(prefix="idh_lightning_") as file:
        file.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
        file.flush()
        return _from_file, (DupFd(file.fileno()),)


def _from_file(handle: Any) -> torch.UntypedStorage:
    try:
        descriptor = handle.detach()
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        time.sleep(1.0)  # the loader is about to be told which worker has ended, and raises here
        raise RuntimeError("DataLoader worker (pid unknown) ended before it had sent what it made") from error
    with os.fdopen(descriptor, "rb") as file:
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c")).untyped_storage()


def _end_worker(error: Exception, made: object) -> None:
    traceback.print_exception(error)
    os._exit(1)
