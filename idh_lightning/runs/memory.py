"""Whether a training fits into the memory at hand, and which settings need less."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml  # type: ignore[import-untyped]

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section, optimizer_settings
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


@dataclass(frozen=True)
class MemoryPlanner:
    """Training that has to fit into memory; only tensors are counted, so that what is refused would not have fitted.

    Attributes:
        model: Built, on the CPU.
        data: Of the run.
        accumulate: Steps per optimizer step.
        on_gpu: Whether the network will train on a GPU.
    """

    model: IDHClassifier
    data: IDHDataModule
    accumulate: int
    on_gpu: bool

    def require(self) -> dict[str, float]:
        """Memory that training needs and that is free, in GB, for the record of the run.

        Raises:
            MemoryShortageError: If it needs more than is free; the text names the overrides that fit.
        """
        return require_memory(self.asked().needed, on_gpu=self.on_gpu, advice=self._advice)

    @contextmanager
    def advise_on_shortage(self) -> Iterator[None]:
        """Turn running out of memory inside into one MemoryShortageError that names overrides that need less."""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            if isinstance(error, MemoryShortageError) or not is_shortage(error):
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
            advice = self._advice(self.asked().needed // 2)  # since the present need is known to be too much
            raise MemoryShortageError(f"memory ran out ({said}). {advice}") from error

    def asked(self) -> Plan:
        """Plan of the training that was asked for."""
        return self._plan("", self.data.batch_size)

    def lighter(self) -> Iterator[Plan]:
        """Yield other ways to train: what changes the least comes first, what needs the least comes last.

        Checkpointing the tail changes no result; smaller batches change over how many studies BatchNorm averages; a
        feature bank shows each study in a few views only; the last one trains fewer layers.
        """
        network, size = self.model.network, self.data.batch_size
        drawn, said, before = size * self.accumulate, ["model.checkpoint_tail=true"], network.checkpoint_tail
        network.checkpoint_tail = True
        try:
            if not before:
                yield self._plan(said[0], size)
            while size > SMALLEST_BATCH:
                size = max(size // 2, SMALLEST_BATCH)
                smaller = [f"data.batches.batch_size={size}", f"data.accumulate={math.ceil(drawn / size)}"]
                yield self._plan(" ".join([*(said if not before else ()), *smaller]), size)
        finally:
            network.checkpoint_tail = before
        yield self._least()

    def _least(self) -> Plan:
        """Plan of `LEAST`; its network, which is cut elsewhere, is built for the count and let go of."""
        experiment = yaml.safe_load((CONF_DIR / "experiment" / f"{LEAST}.yaml").read_text(encoding="utf-8"))
        optimizer = instantiate_section(optimizer_settings("adafactor"), _partial_=True)
        make = partial(instantiate_section, self.model.recipe["model"] | experiment["model"], _partial_=True)
        network, overrides = self.model.network, f"experiment={LEAST}"
        shared = {"sequences": network.sequences, "locator": network.locator}
        with torch.random.fork_rng(devices=[]):
            try:
                network = make(weights="none")(**shared)
            except ModelError:  # a smaller backbone has no such block
                first = self.model.network.trainable_from
                overrides += f" model.trainable_from={first}"
                network = make(weights="none", trainable_from=first)(**shared)
        size = int(experiment["data"]["batches"]["batch_size"])
        return self._plan(overrides, size, network=network, optimizer=optimizer, on_bank=True)

    def _plan(
        self,
        overrides: str,
        size: int,
        *,
        network: StemTailNetwork | None = None,
        optimizer: Any = None,
        on_bank: bool = False,
    ) -> Plan:
        """Plan with batches of a size; network, optimizer and bank are those of the run unless others are given."""
        on_bank = on_bank or isinstance(self.data, FeatureBankDataModule)
        make: Any = optimizer or self.model.optimizer
        filling = filling_batch(self._shape[1:])
        tensors = training_memory(
            network or self.model.network,
            [size, *self._shape],
            make,
            from_features=on_bank,
            filling=filling,
            device="cuda" if self.on_gpu else "cpu",
            autocast=torch.float16 if self.on_gpu else None,
        )
        held = (filling if on_bank else self.data.queue_length + size) + 2 * self.data.workers
        return Plan(overrides=overrides, tensors=tensors, waiting=held * 4 * math.prod(self._shape), on_gpu=self.on_gpu)

    def _advice(self, room: float) -> str:
        """Overrides that would fit into `room`, in words."""
        for plan in self.lighter():
            if plan.needed <= room:
                return f"Add {plan.overrides}, which needs {_gb(plan.needed)}."
        return (
            f"Even {plan.overrides}, which needs the least, takes {_gb(plan.needed)}: add it and choose a smaller "
            "data.grid, or free some memory."
        )

    @property
    def _shape(self) -> Sequence[int]:
        """Shape [C, D, H, W] of the volumes."""
        shape: Sequence[int] = self.data.store.open(self.data.studies["train"][0]).image.shape
        return shape


def require_memory(needed: int, *, on_gpu: bool, advice: Callable[[float], str]) -> dict[str, float]:
    """Memory that training needs and that is free, in GB, for the record of a run.

    Raises:
        MemoryShortageError: If it needs more than is free; what `advice` says of that many bytes is a part of it.
    """
    free = free_bytes(on_gpu=on_gpu)
    if needed > free:
        where = "on the GPU" if on_gpu else "in main memory"
        raise MemoryShortageError(
            f"training needs {_gb(needed)} and {_gb(free)} are free {where}; expected room for gradients, "
            f"optimizer state and what a batch keeps for its backward pass. {advice(free)}"
        )
    return {"needed": round(needed / 1e9, 3), "free": round(free / 1e9, 3)}


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in OUT_OF_MEMORY_WORDS)


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


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
