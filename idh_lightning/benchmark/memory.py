"""Memory that training takes in each setting: estimated beforehand, and measured in a process of its own."""

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

from idh_lightning.benchmark.device import HALVES, device_name, device_of, forget_gpu_peak
from idh_lightning.cli.tables import FittingTable
from idh_lightning.config.instantiation import instantiate_section, optimizer_settings
from idh_lightning.errors import ModelError
from idh_lightning.files import write_json
from idh_lightning.machine import freed_memory_kept, peak_resident_bytes
from idh_lightning.models import StemTailNetwork, training_memory
from idh_lightning.models.fast.precision import dtype_of
from idh_lightning.runs.memory import free_bytes
from idh_lightning.runs.rehearsal import check

logger = logging.getLogger(__name__)

GPU_BATCHES = 1, 2, 4
"""Batch sizes that are tried on a GPU, each in every arithmetic of `HALVES`; a CPU trains with what is configured."""

STEPS = 3
"""Training steps of which the highest use of memory is measured."""


@dataclass(frozen=True)
class Setting:
    """One setting of training: a name for people, and what differs from `conf/model` and the chosen optimizer.

    With `from_features` training starts at the stem's features, as on a feature bank; `optimizer` is a file of
    `conf/optimizer`.
    """

    name: str
    model: Mapping[str, Any]
    from_features: bool = False
    optimizer: str | None = None


_LAST_STAGES, _LAST_BLOCKS = {"trainable_from": "blocks.5"}, {"trainable_from": "blocks.6.2"}
_CHECKPOINT = {"checkpoint_tail": True}
SETTINGS: tuple[Setting, ...] = (
    Setting("everything learns", {"trainable_from": "conv_stem", "locator": None}),
    Setting("two last stages", _LAST_STAGES),
    Setting("two last stages, checkpoint_tail", _LAST_STAGES | _CHECKPOINT),
    Setting("two last blocks", _LAST_BLOCKS),
    Setting("two last stages, feature_bank", _LAST_STAGES, from_features=True),
    Setting("experiment=low_memory", _LAST_BLOCKS | _CHECKPOINT, from_features=True, optimizer="adafactor"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Memory that training takes in one setting with a batch of studies, in MB of 10^6 bytes.

    Activations are what the forward pass keeps for the backward pass, `estimated_mb` is the peak of all tensors, and
    `peak_mb` was measured: on a GPU the most that was allocated, else resident memory beyond that of the process before
    the network was built; None where it would not have fitted.
    """

    setting: str
    batch: int
    precision: str
    parameters: int
    trainable: int
    activations_mb: float
    optimizer_mb: float
    estimated_mb: float
    peak_mb: float | None


def measure_memory(config: DictConfig) -> None:
    """Measure every setting, print the table and write memory.json into the run folder."""
    check(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    grid = plain["data"]["grid"]
    device, name = device_of(config), device_name(config)
    batches = GPU_BATCHES if device == "cuda" else [int(plain["data"]["batches"]["batch_size"])]
    precisions = list(HALVES) if device == "cuda" else [""]  # a CPU computes as the network says
    shapes = [[batch, 4, *([grid] * 3 if isinstance(grid, int) else grid)] for batch in batches]
    rows: list[Row] = []
    for setting in SETTINGS:
        chosen = plain["optimizer"] if setting.optimizer is None else optimizer_settings(setting.optimizer)
        settings = plain["model"] | {"weights": "none"} | dict(setting.model)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            try:
                found = alone.submit(measure_setting, setting, settings, chosen, shapes, precisions, device).result()
            except ModelError as error:
                logger.warning("%s is left out. %s", setting.name, error)
                continue
        rows += found
        logger.info("%s: %s", setting.name, found)
    file = Path(config.paths.run) / "memory.json"
    record = {"grid": grid, "device": name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    write_json(file, record)
    _show(rows, f"grid {' x '.join(map(str, shapes[0][2:]))}, {name}")
    Console().print(f"{file}", soft_wrap=True, highlight=False)


def measure_setting(
    setting: Setting,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    shapes: Sequence[Sequence[int]],
    precisions: Sequence[str],
    device: str,
) -> list[Row]:
    """Train some steps on noise and return what each batch took in each arithmetic; meant to run in a fresh process."""
    on_gpu, before, rows = device == "cuda", psutil.Process().memory_info().rss, []
    network: StemTailNetwork = instantiate_section(dict(model), _partial_=True)()
    network.train()
    free = free_bytes(on_gpu=on_gpu)
    fused = {"fused": not on_gpu} if "fused" in optimizer else {}
    make = instantiate_section(dict(optimizer), _partial_=True, **fused)
    for shape in shapes:
        halves = [HALVES.get(precision) for precision in precisions]
        # As much in every half precision.
        from_features = setting.from_features
        estimate = training_memory(
            network, shape, make, from_features=from_features, filling=1, device=device, autocast=halves[0]
        )
        for arithmetic, half in zip(precisions, halves, strict=True):
            peak_mb = None
            if estimate.peak < free:
                network.to(device)
                peak_mb = _train(network, make, shape, half, from_features=from_features, before=before) / 1e6
            row = Row(
                setting=setting.name,
                batch=shape[0],
                precision=arithmetic or str(dtype_of(network.tail_precision, "cpu")).removeprefix("torch."),
                parameters=sum(one.numel() for one in network.parameters()),
                trainable=sum(one.numel() for one in network.parameters() if one.requires_grad),
                activations_mb=estimate.activations / 1e6,
                optimizer_mb=estimate.optimizer / 1e6,
                estimated_mb=estimate.peak / 1e6,
                peak_mb=peak_mb,
            )
            rows.append(row)
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
    _forget_peak()
    volumes = torch.randn(1 if from_features else shape[0], *shape[1:], device=device)
    labels = torch.arange(shape[0], device=device) % 2
    features = None
    with freed_memory_kept(), torch.autocast(device, dtype=half, enabled=half is not None):  # as a run fills its bank
        if from_features:
            features = torch.cat([network.stem(volumes, to_train=True)] * shape[0])
            del volumes
    with freed_memory_kept():
        for _ in range(STEPS):
            with torch.autocast(device, dtype=half, enabled=half is not None):
                output = network.answer(network.stem(volumes, to_train=True) if features is None else features)
                loss = nn.functional.cross_entropy(output.logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            del output, loss
            optimizer.step()
            optimizer.zero_grad()
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else peak_resident_bytes() - before


def _forget_peak() -> None:
    forget_gpu_peak()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _show(rows: Sequence[Row], where: str) -> None:
    numbers = ("parameters", "trainable", "activations", "optimizer", "estimated", "peak", "share")
    table = FittingTable(f"Memory of training in MB, {where}", ("", "batch", "precision", *numbers))
    whole = {(row.batch, row.precision): row.peak_mb or row.estimated_mb for row in reversed(rows)}
    for row in rows:
        table.add_row(
            row.setting,
            str(row.batch),
            row.precision,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.trainable / 1e6:.1f} M",
            *(f"{value:.0f}" for value in (row.activations_mb, row.optimizer_mb, row.estimated_mb)),
            "does not fit" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            f"{(row.peak_mb or row.estimated_mb) / whole[row.batch, row.precision]:.2f}",
        )
    Console().print(table)
