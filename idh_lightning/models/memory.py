"""Memory of a training step, counted before any of it is taken."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idh_lightning.models.network import StemTailNetwork


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of tensors while a network trains.

    What convolution libraries take for themselves in passing is not in it, so that a machine with less memory than
    this fails for certain.

    Attributes:
        parameters: Parameters and buffers, frozen ones included.
        gradients: Of what is trainable.
        optimizer: The optimizer's state after its first step.
        activations: Tensors that the forward pass of a batch keeps for the backward pass, parameters not counted.
        stem: Largest sum of tensors alive at once while a batch goes through the stem, the batch included.
        step: The same while the tail takes a training step on a batch, its features included.
        fills_first: Whether the stem has done its work before gradients and optimizer state are there.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    stem: int
    step: int
    fills_first: bool

    @property
    def peak(self) -> int:
        """Largest sum of all tensors alive at once."""
        learning = self.gradients + self.optimizer
        stem = self.stem if self.fills_first else self.stem + learning
        return self.parameters + max(stem, learning + self.step)


def training_memory(
    network: StemTailNetwork,
    volumes: Sequence[int],
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    *,
    from_features: bool = False,
    filling: int = 0,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> TrainingMemory:
    """Count what training needs, on tensors that have a shape and no memory.

    Args:
        network: In training mode; it is left as it is.
        volumes: Shape of a batch, [B, C, D, H, W].
        optimizer: From parameters to an optimizer.
        from_features: Whether training starts at the stem's features, as on a feature bank.
        filling: Then, how many studies the stem is given at once while the bank is filled; by default B.
        device: Where training will take place, "cpu" or "cuda".
        autocast: Arithmetic of the trainer's mixed precision; None for none. The network may choose its own.

    Returns:
        The bytes of everything that is alive in a step after the first.
    """
    if device == "cpu":  # which fuses the stem, as can be done with values alone; it is kept
        network.stem(torch.zeros(1, volumes[1], 32, 32, 32), to_train=True)
    mixed = torch.autocast(device, dtype=autocast, enabled=autocast is not None)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, mixed:
        state = {
            f"network.{name}": fake.from_tensor(tensor.detach()).to(device).requires_grad_(tensor.requires_grad)
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        }
        trainable = [tensor for tensor in state.values() if tensor.requires_grad]
        steps = optimizer(trainable)  # type: ignore[arg-type]
        for tensor in trainable:
            tensor.grad = torch.zeros_like(tensor)
        steps.step()
        rehearsal = _Rehearsal(network, steps)
        batch = torch.empty(*volumes, device=device)
        taken = torch.empty(filling or len(batch), *batch.shape[1:], device=device) if from_features else batch
        together = network.studies_at_once(taken)
        features = functional_call(rehearsal, state, (taken[:together], "stem"))
        others = 2 * _bytes(features) * (len(taken) - together) // together  # kept until all are there, then joined
        features = torch.empty(len(batch), *features.shape[1:], device=device)
        functional_call(rehearsal, state, (features, "step"))
        optimizer_bytes = sum(map(_bytes, _tensors(list(steps.state.values()))))
    return TrainingMemory(
        parameters=sum(_bytes(tensor) for tensor in state.values()),
        gradients=sum(map(_bytes, trainable)),
        optimizer=optimizer_bytes,
        activations=rehearsal.activations,
        stem=rehearsal.stem + others + _bytes(taken),
        step=rehearsal.step + _bytes(features) + (0 if from_features else _bytes(batch)),
        fills_first=from_features,
    )


def segmentation_memory(segmenter: nn.Module, volumes: Sequence[int]) -> int:
    """Largest sum, in bytes, of all tensors alive at once while AdamW trains a segmenter on a batch, counted likewise.

    Args:
        segmenter: It is left as it is.
        volumes: Shape of a batch, [B, C, D, H, W].
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        state = {
            name: fake.from_tensor(one.detach()).requires_grad_(True) for name, one in segmenter.named_parameters()
        }
        with _Alive() as alive:
            batch = torch.empty(*volumes)
            logits = functional_call(segmenter, state, (batch,))
            truth = torch.zeros(len(batch), *volumes[2:], dtype=torch.int64)
            found = torch.softmax(logits, dim=1)[:, 1:]
            loss = nn.functional.cross_entropy(logits, truth) + found.square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
    return int(alive.peak) + 3 * sum(map(_bytes, state.values()))  # weights and both moments; gradients were counted


class _Rehearsal(nn.Module):
    """Rehearsal of the two phases of a training step with the most memory that each had at once."""

    def __init__(self, network: StemTailNetwork, optimizer: Optimizer) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.stem = self.step = self.activations = 0

    def forward(self, tensor: Tensor, phase: str) -> Tensor:
        with _Alive() as alive:
            if phase == "stem":
                tensor = self.network.stem(tensor, to_train=True)
            else:
                with kept_for_backward(self.network.parameters()) as kept:
                    output = self.network.answer(tensor)
                    labels = torch.zeros(len(tensor), dtype=torch.int64, device=tensor.device)
                    loss = nn.functional.cross_entropy(output.logits, labels)
                self.activations = sum(kept.values())
                loss.backward()  # type: ignore[no-untyped-call]
                del output, loss
                self.optimizer.step()
        setattr(self, phase, alive.peak)
        return tensor


@contextmanager
def kept_for_backward(excluded: Iterable[Tensor] = ()) -> Iterator[dict[int, int]]:
    """Table, storage to bytes, of what the operations within the context keep for their backward pass.

    Args:
        excluded: Tensors whose memory is accounted for elsewhere, such as parameters.
    """
    others = {_storage(tensor) for tensor in excluded}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in others:
            kept[storage] = _bytes(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes of tensors that operations make within it, for as long as anything refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        result = operation(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _storage(tensor) not in given | self._seen.keys():
                self._note(_storage(tensor), tensor)
        return result

    def _note(self, key: int, tensor: Tensor) -> None:
        storage, size = tensor.untyped_storage(), _bytes(tensor)

        def gone(_: object) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
