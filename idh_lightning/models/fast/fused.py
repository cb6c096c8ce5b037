"""Fused stem: BatchNorm and, on a CPU, activations within the convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from idh_lightning.models.fast.convolutions import SameConv3d, has_onednn, layout, zeros_around
from idh_lightning.models.timm3d import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite

WIDE = 2**25
"""Bytes of a block's widest layer that are there at once on a CPU: at 128^3 in float32 one of B7 is 200 MB."""

LANES = 16
"""Channels that a CPU takes together."""


class FusedStem:
    """A copy of the stem's weights, rearranged for running; the network itself stays as it is.

    A BatchNorm in eval mode is a factor and a shift per channel, which go into the weights of the convolution before
    it; a gate of squeeze-and-excitation is a factor per channel of one study, which goes into those of the convolution
    after it. On a CPU, activations and residual sums are computed by the convolution (oneDNN) before its result is
    written, and a layer that a block makes wide and then works on channel by channel is made in parts of `WIDE` bytes,
    with the same bits. A residual block whose branch is multiplied by zero is left out: it gives its input back, as 33
    of the 38 blocks of an untrained stem of B7 do (see `steady_initialisation`). What is computed is the same, and
    rounded less often.
    """

    def __init__(self, modules: Mapping[str, nn.Module], dtype: torch.dtype, *, onednn: bool) -> None:
        """Fuse the weights into `stages`, which run one after the other on [B, C, D, H, W].

        Args:
            modules: The stem's modules by name, in the order in which they run, for which `can_fuse` holds.
            dtype: Of the arithmetic.
            onednn: Whether oneDNN computes, channels last; else torch's ordinary convolutions.
        """
        self.stages: dict[str, Callable[[Tensor], Tensor]] = {}
        with torch.no_grad():
            waiting: tuple[str, nn.Conv3d] | None = None  # a convolution whose BatchNorm may come next
            for name, module in modules.items():
                if isinstance(module, nn.Conv3d):
                    waiting = name, module
                    self.stages[name] = _Convolution.of(module, None, dtype, onednn)
                elif isinstance(module, _BatchNorm):
                    assert waiting is not None
                    before, conv = waiting
                    del self.stages[before]
                    self.stages[name] = _Convolution.of(conv, module, dtype, onednn)
                else:
                    computed = [block for block in blocks_of(module) if not is_switched_off(block)]
                    self.stages[name] = _Stage([_Block(block, dtype, onednn) for block in computed])


_LAYERS = {
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
}
"""Convolutions of a block, each with its BatchNorm, in the order in which they run."""


def blocks_of(module: nn.Module) -> Iterable[nn.Module]:
    """Blocks of a stage, or the module itself where it is none."""
    return module if isinstance(module, nn.Sequential) else [module]


def last_norm(block: nn.Module) -> Any:
    """Last BatchNorm of the residual branch of a block."""
    return block.bn3 if isinstance(block, InvertedResidual) else block.bn2


def is_switched_off(block: nn.Module) -> bool:
    """Whether a module is a residual block that gives its input back, since its branch is multiplied by zero."""
    if not (isinstance(block, tuple(_LAYERS)) and block.has_skip):
        return False
    last = last_norm(block)
    # While it is calibrated it has to run, though it adds nothing: its statistics follow what passes through.
    return not (last.training or last.weight.any() or last.bias.any())


def can_fuse(modules: Mapping[str, nn.Module], dtype: torch.dtype, *, onednn: bool) -> bool:
    """Whether this machine and these modules of a network go with `FusedStem`."""
    in_bfloat16 = dtype == torch.bfloat16
    if onednn and not (has_onednn() and (not in_bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())):
        return False
    stages = [module for module in modules.values() if not isinstance(module, nn.Conv3d | _BatchNorm)]
    return all(type(block) in _LAYERS for stage in stages for block in blocks_of(stage)) and all(
        _fuses(inner) for module in modules.values() for inner in module.modules()
    )


def _fuses(module: Any) -> bool:
    if isinstance(module, _BatchNorm):
        return not module.training and isinstance(getattr(module, "act", None), nn.SiLU | nn.Identity)
    if isinstance(module, SqueezeExcite):
        return isinstance(module.act1, nn.SiLU) and isinstance(module.gate, nn.Sigmoid)
    return True


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution with bias, then perhaps SiLU."""

    conv: nn.Conv3d
    weight: Tensor
    bias: Tensor
    bends: bool
    onednn: bool

    @classmethod
    def of(cls, conv: nn.Conv3d, norm: Any, dtype: torch.dtype, onednn: bool) -> _Convolution:
        weight, bias = conv.weight, conv.weight.new_zeros(conv.out_channels)
        if norm is not None:
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            weight, bias = fuse_conv_bn_weights(conv.weight, None, *statistics)
        bends = norm is not None and isinstance(norm.act, nn.SiLU)
        weight = weight.detach().to(dtype).contiguous(memory_format=layout("cpu" if onednn else "cuda"))
        return cls(conv, weight, bias.detach().to(dtype), bends, onednn)

    def __call__(self, hidden: Tensor, *, gate: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """Convolution of `hidden` times `gate` [B, C, 1, 1, 1], plus `added`."""
        hidden, weight = hidden.to(self.weight.dtype), self.weight
        if gate is not None and len(gate) == 1:
            weight = weight * gate
        elif gate is not None:
            hidden = hidden * gate
        padding: Any = self.conv.padding
        if isinstance(self.conv, SameConv3d):
            around = zeros_around(self.conv, hidden.shape, same=True)
            padding = around[::-2]
            # Where one zero more is needed behind than before, one in front of the kernel saves a copy of the volume.
            missing = [zeros for axis in (0, 2, 4) for zeros in (around[axis + 1] - around[axis], 0)]
            if any(missing):
                weight = functional.pad(weight, missing)
                weight = weight.contiguous(memory_format=layout("cpu" if self.onednn else "cuda"))
        compute = self._by_onednn if self.onednn else self._by_torch
        return compute(hidden, weight, list(padding), added)

    def part(self, channels: slice) -> _Convolution:
        """The convolution that gives these of its channels alone."""
        return replace(self, weight=self.weight[channels], bias=self.bias[channels])

    def _by_onednn(self, hidden: Tensor, weight: Tensor, padding: list[int], added: Tensor | None) -> Tensor:
        how = padding, list(self.conv.stride), list(self.conv.dilation), hidden.shape[1] // weight.shape[1]
        compute: Any = torch.ops.mkldnn._convolution_pointwise
        if added is not None and not isinstance(added, FakeTensor):  # for which torch 2.14 knows no shape of this
            return cast(Tensor, compute.binary(hidden, added, weight, self.bias, *how, "add", 1.0, None, [], None))
        return cast(Tensor, compute(hidden, weight, self.bias, *how, "swish" if self.bends else "none", [], ""))

    def _by_torch(self, hidden: Tensor, weight: Tensor, padding: list[int], added: Tensor | None) -> Tensor:
        how = self.conv.stride, padding, self.conv.dilation, hidden.shape[1] // weight.shape[1]
        with torch.autocast(hidden.device.type, enabled=False):
            result = functional.conv3d(hidden, weight, self.bias, *how)
        if self.bends:
            result = functional.silu(result, inplace=True)
        return result if added is None else result.add_(added)


@dataclass(frozen=True)
class _Stage:
    """Blocks, one after the other."""

    blocks: Sequence[_Block]

    def __call__(self, hidden: Tensor) -> Tensor:
        return functools.reduce(lambda output, block: block(output), self.blocks, hidden)


class _Block:
    """A residual block: convolutions, squeeze-and-excitation and the sum with its input."""

    def __init__(self, block: Any, dtype: torch.dtype, onednn: bool) -> None:
        layers = ((getattr(block, conv), getattr(block, norm)) for conv, norm in _LAYERS[type(block)])
        *self.first, self.last = (_Convolution.of(conv, norm, dtype, onednn) for conv, norm in layers)
        self.excitation: Any = block.se if isinstance(block.se, SqueezeExcite) else None
        self.has_skip = bool(block.has_skip)

    def __call__(self, hidden: Tensor) -> Tensor:
        before = hidden
        hidden = self._in_parts(hidden, *self.first) if len(self.first) == 2 else self.first[0](hidden)
        return self.last(hidden, gate=self._gate(hidden), added=before if self.has_skip else None)

    def _in_parts(self, hidden: Tensor, widen: _Convolution, deepen: _Convolution) -> Tensor:
        """Depthwise convolution of a wider layer, which is never there whole."""
        cells = len(hidden) * hidden[0, 0].numel() * widen.weight.element_size()
        size = max(WIDE // (LANES * cells), 1) * LANES  # channels
        parts = [slice(first, first + size) for first in range(0, len(widen.bias), size)]
        if len(parts) == 1 or not widen.onednn:
            return deepen(widen(hidden))
        return torch.cat([deepen.part(part)(widen.part(part)(hidden)) for part in parts], dim=1)

    def _gate(self, hidden: Tensor) -> Tensor | None:
        if self.excitation is None:
            return None
        if hidden.device.type == "cpu":
            cells = hidden.movedim(1, -1).flatten(1, 3)
            # A matrix product takes a quarter of the time of `mean` over three axes (torch 2.14, bfloat16).
            means = torch.matmul(cells.new_ones(1, cells.shape[1]), cells)[:, 0].float() / cells.shape[1]
        else:
            means = hidden.mean((2, 3, 4), dtype=torch.float32)
        reduce, expand = self.excitation.conv_reduce, self.excitation.conv_expand
        squeezed = functional.silu(functional.linear(means, reduce.weight.flatten(1), reduce.bias))
        excited = functional.linear(squeezed, expand.weight.flatten(1), expand.bias)
        return torch.sigmoid(excited)[..., None, None, None].to(hidden.dtype)
