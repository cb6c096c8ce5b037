"""Provenance of a run: provenance.json, environment.txt, changes.patch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from idh_lightning.files import write_json, write_text
from idh_lightning.machine import peak_resident_bytes
from idh_lightning.models import StemTailNetwork

_PACKAGES = (
    "idh_lightning", "torch", "lightning", "timm", "timm_3d", "torchio", "torchcam", "torchmetrics", "hydra-core",
    "SimpleITK", "scikit-learn", "numpy", "pandas",
)  # fmt: skip


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
        self.path = run_folder / "provenance.json"
        self.record: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = spec.name if spec is not None else Path(sys.argv[0]).stem
        self.record |= {
            "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
            "git_commit": git_commit(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in _PACKAGES},
            "hardware": _hardware(),
            "threads": torch.get_num_threads(),
            **known,
        }
        self.run_folder = run_folder
        self._began: dict[str, float] = {}
        self._studies = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock of a stage, count the parameters, and write down the code and its environment."""
        if trainer.is_global_zero:
            write_text(self.run_folder / "environment.txt", _environment())
            if (git_commit() or "").endswith("-dirty"):
                write_text(self.run_folder / "changes.patch", _git("diff", "HEAD", "--no-relative"))
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
        write_json(self.path, self.record)


def git_commit() -> str | None:
    """Commit of the checkout that holds this file, "-dirty" if it was changed; None outside of one."""
    try:
        _git("ls-files", "--error-unmatch", __file__)
        return _git("describe", "--always", "--dirty", "--abbrev=40").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def _environment() -> str:
    """Every installed package as `name==version`, as pip reads it."""
    found = {f"{package.metadata['Name']}=={package.version}" for package in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _hardware() -> dict[str, object]:
    return {
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _peak_memory_gb() -> dict[str, float]:
    """Peak resident memory of this process, and peak CUDA memory."""
    peak = {"resident": peak_resident_bytes() / 2**30}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 2) for name, value in peak.items()}
