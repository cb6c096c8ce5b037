"""Whether a training fits into the memory at hand, and which settings need less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml  # type: ignore[import-untyped]

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import factory, optimizer_settings
from idh_lightning.data import FeatureBankDataModule, IDHDataModule
from idh_lightning.data.feature_bank import filling_batch
from idh_lightning.errors import MemoryShortageError, ModelError
from idh_lightning.models import StemTailNetwork, TrainingMemory, training_memory
from idh_lightning.module import IDHClassifier

LEAST = "low_memory"
"""The experiment that needs the least."""

SMALLEST_BATCH = 2
"""Studies over which BatchNorm is still asked to average."""

OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",  # torch on a CPU
    "Cannot allocate memory",  # the operating system
    "is killed by signal: Killed",  # the operating system, of a worker process
    "out of memory",  # libraries on a GPU that raise no class of their own
)
"""Words of an error that mean a lack of memory, where its class does not tell."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to train, and the bytes that it needs.

    Attributes:
        overrides: What to add to the command line for it; empty for what was asked for.
        tensors: Where the network is.
        waiting: Of volumes that wait for the network, always on the CPU.
        on_gpu: Where the network is.
    """

    overrides: str
    tensors: TrainingMemory
    waiting: int
    on_gpu: bool

    @property
    def needed(self) -> int:
        """Bytes beyond what the process holds once the network is built, which is on the CPU."""
        return self.tensors.peak if self.on_gpu else self.tensors.peak - self.tensors.parameters + self.waiting


def require_memory(model: IDHClassifier, data: IDHDataModule, *, accumulate: int, on_gpu: bool) -> dict[str, float]:
    """Memory that training needs and that is free, in GB, for the record of the run.

    Only tensors are counted, so that what is refused would not have fitted.

    Args:
        model: Built, on the CPU.
        data: Of the run.
        accumulate: Steps per optimizer step.
        on_gpu: Whether the network will train on a GPU.

    Raises:
        MemoryShortageError: If it needs more than is free; the text names the overrides that fit.
    """
    plan, free = plan_of(model, data, on_gpu=on_gpu), free_bytes(on_gpu=on_gpu)
    if plan.needed > free:
        where = "on the GPU" if on_gpu else "in main memory"
        raise MemoryShortageError(
            f"training needs {_gb(plan.needed)} and {_gb(free)} are free {where}; expected room for gradients, "
            "optimizer state and what a batch keeps for its backward pass. "
            + _advice(model, data, accumulate=accumulate, on_gpu=on_gpu, room=free)
        )
    return {"needed": round(plan.needed / 1e9, 3), "free": round(free / 1e9, 3)}


@contextmanager
def advise_on_out_of_memory(
    model: IDHClassifier, data: IDHDataModule, *, accumulate: int, on_gpu: bool
) -> Iterator[None]:
    """Turn running out of memory inside into one error that names overrides that need less.

    Args:
        model: See `require_memory`, as the rest.
        data: Of the run.
        accumulate: Steps per optimizer step.
        on_gpu: Whether the network trains on a GPU.

    Raises:
        MemoryShortageError: If memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, MemoryShortageError) or not is_shortage(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        advice = _advice(model, data, accumulate=accumulate, on_gpu=on_gpu, room=None)
        raise MemoryShortageError(f"memory ran out ({said}). {advice}") from error


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in OUT_OF_MEMORY_WORDS)


def plan_of(model: IDHClassifier, data: IDHDataModule, *, on_gpu: bool) -> Plan:
    """Plan of the training that was asked for."""
    on_bank = isinstance(data, FeatureBankDataModule)
    return _plan("", model.network, model.optimizer, data, data.batch_size, on_bank=on_bank, on_gpu=on_gpu)


def lighter_plans(model: IDHClassifier, data: IDHDataModule, *, accumulate: int, on_gpu: bool) -> Iterator[Plan]:
    """Yield other ways to train: what changes the least comes first, what needs the least comes last.

    Checkpointing the tail changes no result; smaller batches change over how many studies BatchNorm averages; a feature
    bank shows each study in a few views only; the last one trains fewer layers.
    """
    network, on_bank, size = model.network, isinstance(data, FeatureBankDataModule), data.batch_size
    drawn, said, before = size * accumulate, ["model.checkpoint_tail=true"], network.checkpoint_tail
    network.checkpoint_tail = True
    try:
        if not before:
            yield _plan(said[0], network, model.optimizer, data, size, on_bank=on_bank, on_gpu=on_gpu)
        while size > SMALLEST_BATCH:
            size = max(size // 2, SMALLEST_BATCH)
            smaller = [f"data.batches.batch_size={size}", f"data.accumulate={math.ceil(drawn / size)}"]
            overrides = " ".join([*(said if not before else ()), *smaller])
            yield _plan(overrides, network, model.optimizer, data, size, on_bank=on_bank, on_gpu=on_gpu)
    finally:
        network.checkpoint_tail = before
    yield _least(model, data, on_gpu=on_gpu)


def _least(model: IDHClassifier, data: IDHDataModule, *, on_gpu: bool) -> Plan:
    """Plan of `LEAST`; its network, which is cut elsewhere, is built for the count and let go of."""
    experiment = yaml.safe_load((CONF_DIR / "experiment" / f"{LEAST}.yaml").read_text(encoding="utf-8"))
    optimizer = factory(optimizer_settings("adafactor"))
    settings = model.recipe["model"] | experiment["model"] | {"weights": "none"}
    size = int(experiment["data"]["batches"]["batch_size"])
    overrides = f"experiment={LEAST}"
    shared: dict[str, Any] = {"sequences": model.network.sequences, "locator": model.network.locator}
    with torch.random.fork_rng(devices=[]):
        try:
            network = factory(settings)(**shared)
        except ModelError:  # a smaller backbone has no such block
            settings["trainable_from"] = model.network.trainable_from
            overrides += f" model.trainable_from={model.network.trainable_from}"
            network = factory(settings)(**shared)
    return _plan(overrides, network, optimizer, data, size, on_bank=True, on_gpu=on_gpu)


def _plan(
    overrides: str,
    network: StemTailNetwork,
    optimizer: Any,
    data: IDHDataModule,
    size: int,
    *,
    on_bank: bool,
    on_gpu: bool,
) -> Plan:
    shape = _shape(data)
    held = filling_batch(shape[1:]) if on_bank else data.queue_length + size
    return Plan(
        overrides=overrides,
        tensors=training_memory(
            network,
            [size, *shape],
            optimizer,
            from_features=on_bank,
            filling=filling_batch(shape[1:]),
            device="cuda" if on_gpu else "cpu",
            autocast=torch.float16 if on_gpu else None,
        ),
        waiting=(held + 2 * data.workers) * 4 * math.prod(shape),
        on_gpu=on_gpu,
    )


def _advice(model: IDHClassifier, data: IDHDataModule, *, accumulate: int, on_gpu: bool, room: int | None) -> str:
    """Return in words which overrides would fit into `room`; None if only the present need is known to be too much."""
    room = plan_of(model, data, on_gpu=on_gpu).needed // 2 if room is None else room
    plan = None
    for plan in lighter_plans(model, data, accumulate=accumulate, on_gpu=on_gpu):
        if plan.needed <= room:
            return f"Add {plan.overrides}, which needs {_gb(plan.needed)}."
    assert plan is not None
    return (
        f"Even {plan.overrides}, which needs the least, takes {_gb(plan.needed)}: add it and choose a smaller "
        "data.grid, or free some memory."
    )


def free_bytes(*, on_gpu: bool) -> int:
    """Return the memory that this process can still have, in bytes."""
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        allowed = getattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)() * total
        return int(min(free, allowed - torch.cuda.memory_reserved()))
    return min([psutil.virtual_memory().available + psutil.swap_memory().free, *_left_to_group()])


def _left_to_group(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that a container's limit leaves, if there is one; Linux counts files that it could drop as used."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [] if limit == "max" else [int(limit) - int(used) + int(lines["inactive_file"])]
    except (OSError, ValueError, KeyError):
        return []


def _shape(data: IDHDataModule) -> Sequence[int]:
    """Return [C, D, H, W] of the volumes."""
    shape: Sequence[int] = data.store.open(data.studies["train"][0]).image.shape
    return shape


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
