"""Surgery on encoders: where they are cut, which blocks run and how, and where the cells of a layer lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from idh_lightning.errors import ModelError
from idh_lightning.models.batch_norm import statistics_kept
from idh_lightning.models.fast.fused import blocks_of, is_switched_off


def cut_names(network: nn.Module, trainable_from: str) -> tuple[list[str], list[str]]:
    """Names of the modules of stem and tail, in the order in which they run.

    A stage that lies wholly in one of them is run as one module, so that hooks on `blocks.4` fire; only a stage that is
    cut in two is run block by block.

    Raises:
        ModelError: If there is no such module.
    """
    stages = [f"blocks.{name}" for name, _ in network.get_submodule("blocks").named_children()]
    coarse = ["conv_stem", "bn1", *stages, "conv_head", "bn2"]
    coarse = [name for name in coarse if not isinstance(network.get_submodule(name), nn.Identity)]
    if trainable_from in (*coarse, "classifier"):
        position = [*coarse, "classifier"].index(trainable_from)
        return coarse[:position], coarse[position:]
    for position, stage in enumerate(coarse):
        if stage not in stages:
            continue
        members = [f"{stage}.{name}" for name, _ in network.get_submodule(stage).named_children()]
        if trainable_from in members:
            inner = members.index(trainable_from)
            return coarse[:position] + members[:inner], members[inner:] + coarse[position + 1 :]
    raise ModelError(
        f"model.trainable_from: found '{trainable_from}'; expected one of {', '.join([*coarse, 'classifier'])}, "
        f"or a block such as '{members[-1]}'. Correct the name."
    )


def channels_in(module: nn.Module) -> int:
    """Number of channels that a module of the network takes."""
    first = next(inner for inner in module.modules() if isinstance(inner, nn.Conv3d | _BatchNorm | nn.Linear))
    if isinstance(first, nn.Linear):
        return first.in_features
    return first.in_channels if isinstance(first, nn.Conv3d) else first.num_features


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward pass and of its repetition, which must not update BatchNorm a second time."""
    return nullcontext(), statistics_kept(block)


def checkpointed(module: nn.Module, hidden: Tensor) -> Tensor:
    """Output of a module, of which only what enters each block is kept for the backward pass."""
    for block in blocks_of(module):
        kept = partial(_contexts, block)
        hidden = checkpoint(block, hidden, use_reentrant=False, context_fn=kept)
    return hidden


@contextmanager
def without_idle_blocks(stages: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which blocks that only pass their input on, and that nobody watches, are not computed."""
    # An export has to hold for any weights, so it cannot ask whether these are zero.
    left_out = [
        (stage, name, block)
        for stage in (() if torch.compiler.is_exporting() else stages)
        for name, block in stage.named_children()
        if is_switched_off(block) and not any(inner._forward_hooks for inner in block.modules())
    ]
    try:
        for stage, name, _ in left_out:
            setattr(stage, name, nn.Identity())
        yield
    finally:
        for stage, name, block in left_out:
            setattr(stage, name, block)


def cell_geometry(network: nn.Module, layer: str, size: int) -> tuple[float, float, int]:
    """Offset and step, in voxels, of the cells that a layer makes of `size` voxels along an axis, and their number."""
    offset, step, reached = 0.0, 1, False
    for name, module in network.named_modules():
        inside = name == layer or name.startswith(f"{layer}.")
        if reached and not inside:
            break
        reached = reached or inside
        if isinstance(module, nn.Conv3d | nn.MaxPool3d) and ".downsample." not in name:  # beside the convolutions
            kernel, stride, padding, dilation = (
                int(value[0] if isinstance(value, tuple) else value)
                for value in (module.kernel_size, module.stride, module.padding, module.dilation)
            )
            reach, same = dilation * (kernel - 1), getattr(module, "same", False)
            after = -(-size // stride) if same else (size + 2 * padding - reach - 1) // stride + 1
            before = max((after - 1) * stride + reach + 1 - size, 0) // 2 if same else padding
            offset += step * (reach / 2 - before)
            step, size = step * stride, after
    return offset, float(step), size
