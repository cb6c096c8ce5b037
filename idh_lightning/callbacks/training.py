"""Training that can be gone on with exactly: random numbers per batch, whole checkpoints, curves; and its epochs."""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger

from idh_lightning.errors import Stopped, StorageError
from idh_lightning.files import atomic_write
from idh_lightning.machine import is_first_process


class EpochProgressBar(RichProgressBar):
    """Lightning's progress bar with epochs counted from 1, as in figures and messages."""

    def _get_train_description(self, current_epoch: int) -> str:
        # lightning 2.6.6 counts from 0 ("Epoch 0/14") and has no public name for this.
        last = self.trainer.max_epochs
        words = f"Epoch {current_epoch + 1}" + ("" if last is None or last < 0 else f"/{last}")
        return words.ljust(len(self.validation_description))  # so that the bar does not move at validation


class BatchSeed(Callback):
    """Seeds each training step's random numbers (dropout, stochastic depth) by (seed, epoch, process, batch).

    Order and augmentation of the studies are functions of (seed, epoch) as well. So a step does not depend on what drew
    random numbers before it: lightning 2.6.6 draws more of them when it sets up a resumed epoch.
    """

    def __init__(self, *, seed: int) -> None:
        """Take the seed of the run."""
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed PyTorch, on every device."""
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank, batch_idx])
        torch.manual_seed(int(sequence.generate_state(1)[0]))


class StopTogether(Callback):
    """Handler of SIGTERM kept as it was before training, and a stop passed on to the other processes of the machine.

    Lightning 2.6.6 puts one before it that broadcasts from within the signal; where the other processes are in the
    middle of an all-reduce, all of them wait for ever.
    """

    def __init__(self) -> None:
        """Take the handler that is in place."""
        self._handler = signal.getsignal(signal.SIGTERM)

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the handler back."""
        self._restore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the handler back."""
        self._restore()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the handler back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the processes that this one started; without it they wait for it."""
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and launcher is not None:
            launcher.kill(exception.number)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, through to the disk, and moves it there in one step.

    Lightning 2.6.6 writes to the system's temporary folder first, from where a move to another disk is a copy that can
    be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: If the disk is full; the checkpoint that was there before is as it was.
        """
        file = Path(path)
        try:
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:
            # torch.save puts an error of its own over that of the system.
            full = StorageError.of(error, file) or StorageError.of(error.__context__, file)
            if full is None:
                raise
            raise full from error


class CurveLogger(Logger):
    """Writes metrics.csv: one row per logged step, with the columns of all rows; always whole, and gone on with.

    Lightning 2.6.6's CSVLogger deletes the file when a run is resumed.
    """

    def __init__(self, *, folder: str) -> None:
        """Take the folder of metrics.csv; `keep` says how many of the rows that are there count."""
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """No name: the file lies in the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """No version, likewise."""
        return ""

    def keep(self, steps: int | None = None) -> None:
        """Take over the rows of an earlier part of the run.

        Args:
            steps: From which training goes on: later rows are dropped; None where training is finished: test rows are.
        """
        if not self.file.is_file():
            return
        with self.file.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        tested = [key for key in (rows[0] if rows else {}) if key.startswith("test/")]
        self._rows = [
            {key: value for key, value in row.items() if key not in tested}
            for row in rows
            if (int(row["step"]) < steps if steps is not None else not any(row[key] for key in tested))
        ]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        if is_first_process():
            self._rows.append({**metrics, "step": len(self._rows) if step is None else step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is in .hydra/config.yaml."""

    def save(self) -> None:
        """Write the file."""
        if is_first_process() and self._rows:
            columns = sorted({key for row in self._rows for key in row})
            with atomic_write(self.file) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=columns)
                writer.writeheader()
                writer.writerows(self._rows)
