"""What each way to train takes of memory: told beforehand, and measured in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from idh_lightning.benchmark.pipelines import HALVES, device_name, device_of, forget_gpu_peak
from idh_lightning.cli.tables import FittingTable
from idh_lightning.errors import ModelError
from idh_lightning.files import write_json
from idh_lightning.machine import freed_memory_kept
from idh_lightning.models import StemTailNetwork, training_memory
from idh_lightning.runs import assembly
from idh_lightning.runs.memory import free_bytes

logger = logging.getLogger(__name__)

GPU_BATCHES = 1, 2, 4
"""Batch sizes that are tried on a GPU, each in every arithmetic of `HALVES`; a CPU trains with what is configured."""

STEPS = 3
"""Training steps of which the highest use of memory is measured."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train.

    Attributes:
        name: For people.
        model: Settings of the network that differ from `conf/model`.
        from_features: Whether training starts at the stem's features, as on a feature bank.
        optimizer: A file of `conf/optimizer`; None for the one that was chosen.
    """

    name: str
    model: Mapping[str, Any]
    from_features: bool = False
    optimizer: str | None = None


SETTINGS: tuple[Setting, ...] = (
    Setting(name="everything learns", model={"trainable_from": "conv_stem", "locator": None}),
    Setting(name="two last stages", model={"trainable_from": "blocks.5"}),
    Setting(name="two last stages, checkpoint_tail", model={"trainable_from": "blocks.5", "checkpoint_tail": True}),
    Setting(name="two last blocks", model={"trainable_from": "blocks.6.2"}),
    Setting(name="two last stages, feature_bank", model={"trainable_from": "blocks.5"}, from_features=True),
    Setting(
        name="experiment=low_memory",
        model={"trainable_from": "blocks.6.2", "checkpoint_tail": True},
        from_features=True,
        optimizer="adafactor",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one way to train takes; memory in MB of 10^6 bytes.

    Attributes:
        setting: Its name.
        batch: Studies per step.
        precision: The trainer's.
        parameters: Number of all.
        trainable: Number of those that learn.
        activations_mb: Kept by the forward pass of a batch for its backward pass.
        optimizer_mb: State of the optimizer.
        told_mb: Peak of all tensors, told beforehand.
        peak_mb: Measured: on a GPU the most that was allocated, else resident memory beyond that of the process before
            the network was built; None where it would not have fitted.
    """

    setting: str
    batch: int
    precision: str
    parameters: int
    trainable: int
    activations_mb: float
    optimizer_mb: float
    told_mb: float
    peak_mb: float | None


def run(config: DictConfig) -> list[Row]:
    """Measure every setting, print the table and write memory.json into the run folder."""
    assembly.checked(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    grid = plain["data"]["grid"]
    device, name = device_of(config), device_name(config)
    batches = GPU_BATCHES if device == "cuda" else [int(plain["data"]["batches"]["batch_size"])]
    precisions = list(HALVES) if device == "cuda" else [assembly.precision(config.trainer)]
    shapes = [[batch, 4, *([grid] * 3 if isinstance(grid, int) else grid)] for batch in batches]
    rows: list[Row] = []
    for setting in SETTINGS:
        chosen = plain["optimizer"] if setting.optimizer is None else assembly.optimizer_settings(setting.optimizer)
        settings = plain["model"] | {"weights": "none"} | dict(setting.model)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            try:
                found = alone.submit(measure_memory, setting, settings, chosen, shapes, precisions, device).result()
            except ModelError as error:
                logger.warning("%s is left out. %s", setting.name, error)
                continue
        rows += found
        logger.info("%s: %s", setting.name, found)
    write_json(
        Path(config.paths.run) / "memory.json",
        {"grid": grid, "device": name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]},
    )
    _show(rows, f"grid {' x '.join(map(str, shapes[0][2:]))}, {name}")
    Console().print(f"{Path(config.paths.run) / 'memory.json'}", soft_wrap=True, highlight=False)
    return rows


def measure_memory(
    setting: Setting,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    shapes: Sequence[Sequence[int]],
    precisions: Sequence[str],
    device: str,
) -> list[Row]:
    """Train some steps on noise and return what each batch took in each arithmetic; meant to run in a fresh process."""
    on_gpu, before, rows = device == "cuda", psutil.Process().memory_info().rss, []
    network: StemTailNetwork = assembly.factory(dict(model))(in_channels=shapes[0][1])
    network.train()
    free = free_bytes(on_gpu=on_gpu)
    make = assembly.factory(dict(optimizer) | ({"fused": not on_gpu} if "fused" in optimizer else {}))
    for shape in shapes:
        halves = [HALVES[precision] if on_gpu else None for precision in precisions]
        # As much in every half precision.
        told = training_memory(
            network,
            shape,
            make,
            from_features=setting.from_features,
            filling=1,
            device=device,
            autocast=halves[0],
        )
        for precision, half in zip(precisions, halves, strict=True):
            peak_mb = None
            if told.peak < free:
                network.to(device)
                peak_mb = _train(network, make, shape, half, from_features=setting.from_features, before=before) / 1e6
            parameters = list(network.parameters())
            rows.append(
                Row(
                    setting=setting.name,
                    batch=shape[0],
                    precision=precision,
                    parameters=sum(parameter.numel() for parameter in parameters),
                    trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
                    activations_mb=told.activations / 1e6,
                    optimizer_mb=told.optimizer / 1e6,
                    told_mb=told.peak / 1e6,
                    peak_mb=peak_mb,
                )
            )
    return rows


def _train(
    network: StemTailNetwork,
    make: Any,
    shape: Sequence[int],
    half: torch.dtype | None,
    *,
    from_features: bool,
    before: int,
) -> float:
    device = next(network.parameters()).device.type
    optimizer = make([parameter for parameter in network.parameters() if parameter.requires_grad])
    volumes = torch.randn(*shape, device=device)
    labels = torch.arange(shape[0], device=device) % 2
    with torch.autocast(device, dtype=half, enabled=half is not None):
        features = torch.cat([network.stem(volumes[:1])] * shape[0]) if from_features else None
    if features is not None:
        del volumes
    _forget_peak()
    with freed_memory_kept():
        for _ in range(STEPS):
            with torch.autocast(device, dtype=half, enabled=half is not None):
                answer = network.answer(network.stem(volumes) if features is None else features)
                loss = nn.functional.cross_entropy(answer.logits, labels)
                if answer.tumour is not None:
                    loss = loss + answer.tumour.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            del answer, loss
            optimizer.step()
            optimizer.zero_grad()
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else _peak() - before


def _forget_peak() -> None:
    forget_gpu_peak()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the highest resident memory since `_forget_peak`, in bytes; except on Linux, what is resident now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float(psutil.Process().memory_info().rss)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024


def _show(rows: Sequence[Row], where: str) -> None:
    numbers = ("parameters", "trainable", "activations", "optimizer", "told", "peak", "share")
    table = FittingTable(f"Memory of training in MB, {where}", ("", "batch", "precision", *numbers))
    whole = {(row.batch, row.precision): row.peak_mb or row.told_mb for row in reversed(rows)}
    for row in rows:
        table.add_row(
            row.setting,
            str(row.batch),
            row.precision,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.trainable / 1e6:.1f} M",
            *(f"{value:.0f}" for value in (row.activations_mb, row.optimizer_mb, row.told_mb)),
            "does not fit" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            f"{(row.peak_mb or row.told_mb) / whole[row.batch, row.precision]:.2f}",
        )
    Console().print(table)
