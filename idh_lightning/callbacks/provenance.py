"""Provenance of a run: provenance.json, environment.txt, changes.patch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from idh_lightning.files import write_json
from idh_lightning.machine import peak_resident_bytes
from idh_lightning.models import StemTailNetwork
from idh_lightning.provenance import PROVENANCE, begun_record, write_code


class Provenance(Callback):
    """Records versions, hardware, parameters, seconds per stage, studies per second and peak memory.

    Beside provenance.json stand environment.txt, every installed package with its version, and changes.patch, how the
    code differed from the commit, if it did.
    """

    def __init__(self, *, run_folder: Path, known: Mapping[str, object]) -> None:
        """Begin the record.

        Args:
            run_folder: provenance.json is written here, and added to when a later stage of the run is repeated.
            known: Primitives that only the caller knows: fallbacks taken, sequences, preparation times.
        """
        self.record = begun_record(run_folder, known)
        self.run_folder = run_folder
        self._began: dict[str, float] = {}
        self._studies = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock of a stage, count the parameters, and write down the code and its environment."""
        if trainer.is_global_zero:
            write_code(self.run_folder)
        self.record["processes"] = trainer.world_size
        self._began[stage] = time.perf_counter()
        self.record["parameters"] = {
            "total": sum(one.numel() for one in pl_module.parameters()),
            "trainable": sum(one.numel() for one in pl_module.parameters() if one.requires_grad),
        }
        self.record["precision"] = str(trainer.precision)
        if isinstance(network := getattr(pl_module, "network", None), StemTailNetwork):
            told = network.stem_dtype(pl_module.device.type, to_train=True)
            self.record["stem_arithmetic"] = str(told).removeprefix("torch.")
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the studies that training saw."""
        self._studies += len(batch.labels)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop the clock of a stage and write what is known so far."""
        elapsed_s = time.perf_counter() - self._began.pop(stage, time.perf_counter())
        self.add_seconds(stage, elapsed_s)
        if stage == "fit" and elapsed_s > 0:
            self.record["epochs"] = trainer.current_epoch
            self.record["train_studies_per_s"] = round(self._studies / elapsed_s, 3)
        self.record["peak_memory_gb"] = _peak_memory_gb()
        if trainer.is_global_zero:
            self.write()

    def resumed(self, *, epochs: int, steps: int) -> None:
        """Note that training goes on from a checkpoint, and what the record said before."""
        before = {key: self.record.get(key) for key in ("seconds", "studies")}
        self.record.setdefault("resumed", []).append({"epochs_done": epochs, "steps_done": steps, **before})

    def add_seconds(self, stage: str, elapsed_s: float) -> None:
        """Note how long a stage took."""
        self.record.setdefault("seconds", {})[stage] = round(elapsed_s, 1)

    def write(self) -> None:
        """Write the record as it is now."""
        write_json(self.run_folder / PROVENANCE, self.record)


def _peak_memory_gb() -> dict[str, float]:
    """Peak resident memory of this process, and peak CUDA memory."""
    peak = {"resident": peak_resident_bytes() / 2**30}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 2) for name, value in peak.items()}
