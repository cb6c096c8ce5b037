"""3D convolutions whose backward pass a CPU does fast."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from idh_lightning.models.timm3d import Conv3dSame


class SameConv3d(nn.Conv3d):
    """A convolution that pads its input so that ceil(size / stride) cells come out, whatever the parity of each edge.

    timm_3d 1.0.1 pads the first axis as the third needs it, the second as the first, and the third as the second, which
    differs where one edge is odd and another even (its issue 9, mended by its pull request 8, which is not released).
    """

    same = True

    def forward(self, volumes: Tensor) -> Tensor:
        """Convolution of [B, C, d, h, w]."""
        return _convolved(self, volumes, zeros_around(self, volumes.shape, same=True))


class OneDNNConv3d(nn.Conv3d):
    """A convolution that a CPU computes with oneDNN where no gradient is wanted.

    torch 2.14.1 (`ConvParams::use_mkldnn`) leaves oneDNN aside for one study whose channels times its first two edges
    are at most 20480, whatever the third, and with one thread for kernels of one voxel; it takes a loop instead: one
    study took 0.33 s through the tumour segmenter, and two 0.17 s. findings/conv3d_one_image_without_onednn.sh says
    when this class can go.
    """

    def forward(self, volumes: Tensor) -> Tensor:
        """Convolution of [B, C, d, h, w]."""
        # Whether it is traced comes first, since what follows cannot be.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self._is_for_onednn(volumes):
            return super().forward(volumes)
        geometry = list(cast(Any, self.padding)), list(self.stride), list(self.dilation), self.groups
        compute: Any = torch.ops.mkldnn._convolution_pointwise
        return cast(Tensor, compute(volumes, self.weight, self.bias, *geometry, "none", [], ""))

    def _is_for_onednn(self, volumes: Tensor) -> bool:
        batch = type(volumes) is Tensor and volumes.device.type == "cpu" and volumes.ndim == 5
        single = volumes.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        padded = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return batch and single and padded and has_onednn()


def has_onednn() -> bool:
    """Whether oneDNN's convolutions are there, not switched off, and can be called by name."""
    available = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def correct_padding(module: nn.Module) -> None:
    """Correct, in place, the padding of timm_3d's convolutions that choose it by the size of their input."""
    for inner in module.modules():
        if isinstance(inner, Conv3dSame):
            inner.__class__ = SameConv3d  # it has the same attributes, and only this method of its own


def swap_convolutions(module: nn.Module, *, within: Iterable[str] | None = None) -> None:
    """Replace convolutions, in place, by those of this file that can stand for them and share their weights.

    Args:
        module: Holds the convolutions.
        within: Names of the submodules to change; by default all.
    """
    prefixes = ("",) if within is None else tuple(f"{name}." for name in within)
    for name, inner in list(module.named_modules()):
        kind = next((kind for kind in (DepthwiseConv3d, PointwiseConv3d) if kind.fits(inner)), None)
        if name and kind is not None and f"{name}.".startswith(prefixes):
            module.set_submodule(name, kind.of(inner))


def restore_convolutions(module: nn.Module) -> None:
    """Put stock convolutions back, in place, where `swap_convolutions` has put others; weights and results stay."""
    for name, inner in list(module.named_modules()):
        if isinstance(inner, _Swapped):
            module.set_submodule(name, inner.restored())


class _Swapped(nn.Conv3d):
    """A convolution that shares the weight of another one and computes the same on every device."""

    stock: type[nn.Conv3d]

    @property
    def same(self) -> bool:
        """Whether ceil(size / stride) cells come out; see `SameConv3d`."""
        return issubclass(self.stock, SameConv3d)

    @classmethod
    def of(cls, conv: nn.Module) -> Self:
        """Convolution that shares the weight of another one; ValueError if that is of another kind."""
        if not (isinstance(conv, nn.Conv3d) and cls.fits(conv)):
            raise ValueError(f"{conv}: {cls.__name__} cannot stand for it")
        made: Any = copy.copy(conv)
        made.__class__, made.stock = cls, type(conv)
        return cast(Self, made)

    def restored(self) -> nn.Conv3d:
        """Stock convolution that this one stands for."""
        made = copy.copy(self)
        made.__class__ = self.stock  # type: ignore[assignment]
        return made

    @classmethod
    def fits(cls, conv: nn.Module) -> bool:
        """Whether this class can stand for a convolution."""
        if not isinstance(conv, nn.Conv3d) or type(conv) not in (nn.Conv3d, SameConv3d):
            return False
        return conv.padding_mode == "zeros" and set(conv.dilation) == {1} and cls._computes(conv)

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        raise NotImplementedError


FEW_CELLS = 16
"""Up to this number of cells out, a CPU makes the gradient of a depthwise kernel from small matrices.

With 2304 channels, 5^3 taps and 16 studies in bfloat16 on two cores: 12 cells 0.6 ms instead of 1.5; 27 cells would
take 2.6 instead of 1.9.
"""

GPU_CELLS = 4096
"""Up to this number of cells out, a GPU makes the gradients of a depthwise convolution from forward passes too.

Both passes of two studies in float16 on an H200, 3^3 taps: 480 channels of 16^3 cells 0.33 ms instead of 0.38, 288 of
32^3 cells 2.5 instead of 1.7. With 5^3 taps and 4^3 cells 0.11 instead of 1.18 ms (2304 channels). The kernels of a
step of B7's tail at 128^3 take 7.4 instead of 22.6 ms, those of a step of 16 studies 20.6 instead of 71.4 ms.
"""


class DepthwiseConv3d(_Swapped):
    """A depthwise convolution whose gradients are depthwise convolutions too.

    torch 2.14 does the forward pass of a depthwise 3D convolution on a CPU with a fast kernel and its backward pass
    with a slow one: with 2304 channels, 4^3 cells, 5^3 taps and 2 studies in bfloat16, 192 ms. Both gradients can be
    written as forward passes: that of the input uses the mirrored kernel, that of the kernel takes every channel of
    every study as a channel of its own with the gradient as its kernel. So they take 1.2 ms, and the forward pass
    0.2 ms, with channels last, where nothing is padded beforehand. On the small grids at the end of a network most taps
    of a kernel fall on padding; there a CPU makes the gradient of the kernel from products of cells in with cells out.

    torch 2.11 is no faster in the backward pass on a GPU. There too the forward pass is a fast kernel, with channels
    first.
    """

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        alone = conv.groups == conv.in_channels == conv.out_channels > 1
        return alone and conv.kernel_size[0] > 1 and conv.bias is None

    def forward(self, volumes: Tensor) -> Tensor:
        """Convolution of [B, C, d, h, w]; on a CPU its channels lie last."""
        pads, device = zeros_around(self, volumes.shape, same=self.same), volumes.device.type
        stride = tuple(self.stride)
        if device != "cpu" and math.prod(_cells_out(volumes.shape, self.weight.shape, stride, pads)) > GPU_CELLS:
            return _convolved(self, volumes, pads)
        dtype = _computed_in(volumes)
        with torch.autocast(device, enabled=False):  # one arithmetic for both passes
            result: Tensor = _Depthwise.apply(volumes.to(dtype), self.weight, stride, pads)
        return result


@functools.lru_cache(maxsize=32)
def _placement(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    cells: Sequence[int],
) -> Tensor:
    """Matrix of which tap lies on which cell: [taps, cells out x cells in], 1 where it does, else 0."""
    axes = []
    for size, edge, step, first, count in zip(sizes, kernel, stride, before, cells, strict=True):
        tap = np.arange(size) - (np.arange(count)[:, None] * step - first)
        axes.append((tap == np.arange(edge)[:, None, None]).astype(np.float32))
    placed = np.einsum("apx,bqy,crz->abcpqrxyz", *axes)
    return torch.from_numpy(placed.reshape(math.prod(kernel), -1)).to(device, dtype)


def _cells_out(volumes: torch.Size, weight: torch.Size, stride: tuple[int, ...], pads: list[int]) -> tuple[int, ...]:
    """Cells along each axis that come out of a convolution."""
    around = zip(volumes[2:], weight[2:], stride, pads[::2][::-1], pads[1::2][::-1], strict=True)
    return tuple((size + first + last - edge) // step + 1 for size, edge, step, first, last in around)


def layout(device: str) -> torch.memory_format:
    """Memory format in which 3D convolutions want [B, C, d, h, w].

    On a GPU, depthwise convolutions of channels that lie last are done one channel at a time: the stem of B7 took
    0.25 s for two studies at 128^3 in float16 on an H200, and 0.02 s with channels first (torch 2.11, cuDNN 9.19).
    """
    return torch.contiguous_format if device == "cuda" else torch.channels_last_3d


class _Depthwise(torch.autograd.Function):
    """The convolution of [B, C, d, h, w] with [C, 1, k, k, k], after padding it as `functional.pad` does.

    It computes as the volumes do, whatever the kernel's arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, weight: Tensor, stride: tuple[int, ...], pads: list[int]) -> Tensor:
        volumes = volumes.contiguous(memory_format=layout(volumes.device.type))
        ctx.save_for_backward(volumes, weight)
        ctx.stride, ctx.pads = stride, pads
        # Where one zero more is needed behind than before, one in front of the kernel saves a copy of the volumes.
        more = [last - first for first, last in zip(pads[::2], pads[1::2], strict=True)]
        kernel = functional.pad(weight.to(volumes.dtype), [zeros for one in more for zeros in (one, 0)])
        return functional.conv3d(volumes, kernel, stride=stride, padding=pads[1::2][::-1], groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        volumes, weight = ctx.saved_tensors
        kernel = weight.to(volumes.dtype)
        gradient = gradient.contiguous(memory_format=layout(volumes.device.type))
        of_volumes = of_weight = None
        if ctx.needs_input_grad[0]:
            of_volumes = _gradient_of_volumes(gradient, volumes.shape, kernel, ctx.stride, ctx.pads)
        if ctx.needs_input_grad[1]:
            if volumes.device.type == "cpu" and gradient.shape[2:].numel() <= FEW_CELLS:
                of_weight = _gradient_of_few_cells(gradient, volumes, kernel, ctx.stride, ctx.pads)
            else:
                of_weight = _gradient_of_weight(gradient, volumes, weight.shape[2:], ctx.stride, ctx.pads)
            of_weight = of_weight.to(weight.dtype)
        return of_volumes, of_weight, None, None


def _gradient_of_volumes(
    gradient: Tensor, volumes: torch.Size, weight: Tensor, stride: tuple[int, ...], pads: list[int]
) -> Tensor:
    """Gradient of [B, C, d, h, w]: the mirrored kernel over the gradient, with zeros between its cells."""
    sizes, edges, before, after = volumes[2:], weight.shape[2:], pads[::2][::-1], pads[1::2][::-1]
    if set(stride) != {1}:
        around = zip(sizes, edges, before, after, strict=True)
        steps = [size + first + last - edge + 1 for size, edge, first, last in around]
        shape, where = (*gradient.shape[:2], *steps), layout(gradient.device.type)
        spread = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=where).zero_()
        d, h, w = (slice(None, None, step) for step in stride)
        spread[..., d, h, w] = gradient
        gradient = spread
    padding = [edge - 1 - first for edge, first in zip(edges, before, strict=True)]
    whole = functional.conv3d(gradient, weight.flip(2, 3, 4), padding=padding, groups=len(weight))
    d, h, w = map(slice, sizes)
    return whole[..., d, h, w]


def _gradient_of_weight(
    gradient: Tensor, volumes: Tensor, edges: Sequence[int], stride: tuple[int, ...], pads: list[int]
) -> Tensor:
    """Gradient of [C, 1, *edges]: every channel of every study is a channel, the gradient its kernel.

    Taps that lie whole strides apart see the same cells and are one convolution: of two studies with 1344 channels, 8^3
    cells and stride 2, a CPU takes 1.9 ms so and 14 ms for a dilated convolution. With channels last one study follows
    the other: to put all in a row takes longer, 0.9 instead of 0.5 ms with 2304 channels, 4^3 cells and 5^3 taps.
    """
    channels, dtype = volumes.shape[1], torch.promote_types(volumes.dtype, torch.float32)
    channels_last = layout(volumes.device.type) is torch.channels_last_3d
    together = 1 if channels_last else len(volumes)
    kernels = [some.flatten(0, 1)[:, None] for some in torch.split(gradient, together)]

    def correlated(cells: Tensor, kernel: Tensor, around: list[int], d: slice, h: slice, w: slice) -> Tensor:
        row = cells if together == 1 else cells.flatten(0, 1)[None]
        each = functional.conv3d(row, kernel, padding=around, groups=len(kernel))[..., d, h, w]
        return each.to(dtype) if together == 1 else each.view(together, channels, *each.shape[2:]).sum(0, dtype=dtype)

    result = torch.empty(channels, 1, *edges, dtype=dtype, device=volumes.device)
    axes = list(zip(volumes.shape[2:], edges, stride, pads[::2][::-1], gradient.shape[2:], strict=True))
    for firsts in itertools.product(*(range(min(step, edge)) for _, edge, step, *_ in axes)):
        ranges = [_taps_from(first, *axis) for first, axis in zip(firsts, axes, strict=True)]
        d, h, w = (seen for seen, _, _ in ranges)
        around, found = [zeros for _, zeros, _ in ranges], [taps for _, _, taps in ranges]
        studies = zip(torch.split(volumes[..., d, h, w], together), kernels, strict=True)
        of_taps = functools.reduce(Tensor.add_, (correlated(*study, around, *found) for study in studies))
        d, h, w = (slice(first, None, step) for first, step in zip(firsts, stride, strict=True))
        result[..., d, h, w] = of_taps.view(channels, 1, *of_taps.shape[-3:])
    return result


def _taps_from(tap: int, size: int, edge: int, step: int, before: int, cells: int) -> tuple[slice, int, slice]:
    """Cells, padding and outputs of the taps that lie whole strides behind one, along an axis.

    Args:
        tap: The first of them.
        size: Cells in.
        edge: Taps in all.
        step: The stride.
        before: Zeros before the cells in.
        cells: Cells out.

    Returns:
        The cells in that they see, how many zeros to put on either side of those, and which cells of their convolution
        with the gradient belong to them.
    """
    behind, at = divmod(tap - before, step)
    seen, taps = len(range(at, size, step)), len(range(tap, edge, step))
    around = max(-behind, taps - 1 + cells + behind - seen, 0)
    return slice(at, None, step), around, slice(around + behind, around + behind + taps)


def _gradient_of_few_cells(
    gradient: Tensor, volumes: Tensor, weight: Tensor, stride: tuple[int, ...], pads: list[int]
) -> Tensor:
    """Gradient of [C, 1, k, k, k] from products of all cells in with all cells out."""
    of_cells, cells = (
        tensor.permute(1, 0, 2, 3, 4).flatten(2).contiguous() for tensor in (gradient, volumes)
    )  # [C, B, cells]: small products of strided tensors are slow
    # A tensor that has a shape and no values must not be kept.
    make: Any = _placement.__wrapped__ if isinstance(weight, FakeTensor) else _placement
    edges, before = tuple(weight.shape[2:]), tuple(pads[::2][::-1])
    taps = make(weight.device, weight.dtype, tuple(volumes.shape[2:]), edges, stride, before, tuple(gradient.shape[2:]))
    found: Tensor = torch.bmm(of_cells.transpose(1, 2), cells).flatten(1) @ taps.t()
    return found.view_as(weight)


def _convolved(conv: nn.Conv3d, volumes: Tensor, pads: list[int]) -> Tensor:
    """Torch's convolution of [B, C, d, h, w] with zeros around, without a copy where both sides are alike."""
    before, after = pads[-2::-2], pads[-1::-2]
    if before != after:
        volumes, before = functional.pad(volumes, pads), [0, 0, 0]
    return functional.conv3d(volumes, conv.weight, conv.bias, conv.stride, before, conv.dilation, conv.groups)


def zeros_around(conv: nn.Conv3d, shape: torch.Size, *, same: bool) -> list[int]:
    """Zeros before and after each axis of a convolution's input, the last axis first, as `functional.pad` wants them.

    Args:
        conv: Gives kernel, stride and, unless `same`, padding.
        shape: [B, C, d, h, w].
        same: Whether ceil(size / stride) cells are to come out.
    """
    pads: list[int] = []
    paddings: Any = conv.padding
    for size, edge, stride, padding in zip(shape[2:], conv.kernel_size, conv.stride, paddings, strict=True):
        total = max((-(-size // stride) - 1) * stride + edge - size, 0) if same else 2 * padding
        pads = [total // 2, total - total // 2, *pads]
    return pads


class PointwiseConv3d(_Swapped):
    """A 1 x 1 x 1 convolution as the matrix product that it is.

    torch 2.14 has fast bfloat16 matrix products on a CPU, and no fast backward pass of a bfloat16 convolution.
    """

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        return conv.groups == 1 and set(conv.kernel_size) == set(conv.stride) == {1} and not any(map(int, conv.padding))

    def forward(self, volumes: Tensor) -> Tensor:
        """Convolution of [B, C, d, h, w]; on a CPU its channels lie last."""
        if volumes.device.type != "cpu":
            return functional.conv3d(volumes, self.weight, self.bias)
        dtype, last = _computed_in(volumes), volumes.movedim(1, -1)
        with torch.autocast("cpu", enabled=False):
            # Of more than two axes, torch 2.14 would copy the weight for each of them where no gradient is wanted.
            cells: Tensor = _Pointwise.apply(last.flatten(0, 3).to(dtype), self.weight, self.bias)
        return cells.view(*last.shape[:4], -1).movedim(-1, 1)


class _Pointwise(torch.autograd.Function):
    """The product of cells [N, C] with a kernel [F, C, 1, 1, 1] of another arithmetic, and [F] added.

    Autocast would keep a copy of each kernel in the cells' arithmetic until its gradient is made: 0.1 GB in B7's tail.
    This one is made again.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(cells, weight)
        bias = None if bias is None else bias.to(cells.dtype)
        return functional.linear(cells, weight.flatten(1).to(cells.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        cells, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_cells = gradient @ weight.flatten(1).to(gradient.dtype) if wanted[0] else None
        of_weight = (gradient.t() @ cells).to(weight.dtype).view_as(weight) if wanted[1] else None
        return of_cells, of_weight, gradient.sum(0, dtype=weight.dtype) if wanted[2] else None


def _computed_in(volumes: Tensor) -> torch.dtype:
    """Arithmetic of autocast, or without it that of the volumes."""
    device = volumes.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else volumes.dtype
