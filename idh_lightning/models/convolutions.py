"""3D convolutions whose backward pass a CPU does fast."""

from __future__ import annotations

import functools
import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def swap_convolutions(module: nn.Module, same_padding: type[nn.Conv3d], *, only: str | None = None) -> None:
    """Put the convolutions of this file in the place of those that they can stand for; weights are shared.

    Args:
        module: Changed in place.
        same_padding: The class of convolutions that pad their input so that ceil(size / stride) cells come out.
        only: The child to change; by default every one.
    """
    for name, child in module.named_children():
        if only is not None and name != only:
            continue
        kind = next((kind for kind in (DepthwiseConv3d, PointwiseConv3d) if kind.fits(child, same_padding)), None)
        if kind is not None:
            setattr(module, name, kind.of(child, same_padding))
        else:
            swap_convolutions(child, same_padding)


def restore_convolutions(module: nn.Module) -> None:
    """Put stock convolutions back where `swap_convolutions` has put others; weights and results stay.

    Args:
        module: Changed in place.
    """
    for name, child in module.named_children():
        if isinstance(child, _Swapped):
            setattr(module, name, child.restored())
        else:
            restore_convolutions(child)


class _Swapped(nn.Conv3d):
    """A convolution that shares the weight of another one and computes the same on every device."""

    stock: type[nn.Conv3d]
    same: bool

    @classmethod
    def of(cls, conv: nn.Module, same_padding: type[nn.Conv3d]) -> Self:
        """Return a convolution that shares the weight of another one.

        Raises:
            ValueError: If the other one is not of the kind that this class computes.
        """
        if not (isinstance(conv, nn.Conv3d) and cls.fits(conv, same_padding)):
            raise ValueError(f"{conv}: {cls.__name__} cannot stand for it")
        with torch.device("meta"):
            made = cls(*_arguments(conv))
        made.weight = conv.weight
        made.stock, made.same = type(conv), isinstance(conv, same_padding)
        return made

    def restored(self) -> nn.Conv3d:
        """Return the stock convolution that this one stands for."""
        with torch.device("meta"):
            made = self.stock(*_arguments(self))
        made.weight = self.weight
        return made

    @classmethod
    def fits(cls, conv: nn.Module, same_padding: type[nn.Conv3d]) -> bool:
        """Return whether this class can stand for a convolution."""
        if not isinstance(conv, nn.Conv3d) or type(conv) not in (nn.Conv3d, same_padding):
            return False
        return conv.bias is None and conv.padding_mode == "zeros" and set(conv.dilation) == {1} and cls._computes(conv)

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        raise NotImplementedError


FEW_CELLS = 4096
"""Up to this product of cells in and cells out, a depthwise convolution is a small matrix per channel."""

STUDY_CELLS = 1024
"""And up to this product for each study of the batch, since a matrix takes as long to make for one as for many.

Forward and backward in bfloat16 on two cores, 2304 channels, 4^3 cells, 5^3 taps: 2 studies 27 ms with matrices and 17
without, 4 studies 18 and 35, 16 studies 35 and 216. With 3^3 cells matrices are faster from one study on.
"""

GPU_STUDIES = 8
"""From this batch on, that holds on a GPU too.

The tail of B7 at 128^3, forward and backward in float16 on an H200: 16 studies 38 ms with matrices and 72 ms without,
2 studies 38 and 27 ms, and then 0.4 GB more memory.
"""


class DepthwiseConv3d(_Swapped):
    """A depthwise convolution whose gradients are depthwise convolutions too, or products of small matrices.

    torch 2.14 does the forward pass of a depthwise 3D convolution on a CPU with a fast kernel and its backward pass
    with a slow one: in the tail of B7 that was four fifths of the time. Both gradients can be written as forward
    passes: that of the input uses the mirrored kernel, that of the kernel takes every channel of every study as a
    channel of its own with the gradient as its kernel. Elsewhere than on a CPU this is an ordinary convolution.

    On the small grids at the end of a network most taps of a kernel fall on padding. There every channel is multiplied
    by the matrix that takes its cells to their convolution: with 2304 channels, 3^3 cells, 5^3 taps and 16 studies in
    bfloat16, 9 ms forward and backward on one core instead of 122.
    """

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        return conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size[0] > 1

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the convolution of [B, C, d, h, w]."""
        pads, device = zeros_around(self, volumes.shape, same=self.same), volumes.device.type
        cells = _cells_out(volumes.shape, self.weight.shape, self.stride, pads)
        few = volumes.shape[2:].numel() * math.prod(cells) <= min(FEW_CELLS, STUDY_CELLS * len(volumes))
        few = few and (device == "cpu" or len(volumes) >= GPU_STUDIES)
        if device != "cpu" and not few:
            return self._by_torch(volumes, pads)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else volumes.dtype
        with torch.autocast(device, enabled=False):  # one arithmetic for both passes
            operands = _in_order(volumes.to(dtype)), self.weight.to(dtype), tuple(self.stride), pads
            result: Tensor = _by_matrices(*operands, cells) if few else _Depthwise.apply(*operands)
        return result

    def _by_torch(self, volumes: Tensor, pads: list[int]) -> Tensor:
        before, after = pads[-2::-2], pads[-1::-2]
        if before != after:
            volumes, before = functional.pad(volumes, pads), [0, 0, 0]
        return functional.conv3d(volumes, self.weight, stride=self.stride, padding=before, groups=self.groups)


class _InOrder(torch.autograd.Function):
    """Nothing; its gradient lies in memory as a new tensor would.

    Matrix products give gradients whose channels lie last. torch 2.14 takes several times as long for the gradients of
    SiLU and BatchNorm where what came in and what comes back lie differently: a training
    step of 16 studies, from the stem's features of B7 at 65^3, takes 1.8 instead of 2.5 s on one core.
    """

    @staticmethod
    def forward(ctx: Any, volumes: Tensor) -> Tensor:
        return volumes.view_as(volumes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def _in_order(volumes: Tensor) -> Tensor:
    result: Tensor = _InOrder.apply(volumes) if volumes.is_contiguous() else volumes
    return result


def _by_matrices(
    volumes: Tensor, weight: Tensor, stride: tuple[int, ...], pads: list[int], cells: tuple[int, ...]
) -> Tensor:
    """Return the depthwise convolution of [B, C, d, h, w] as one matrix product per channel."""
    batch, channels, *sizes = volumes.shape
    where = tuple(sizes), tuple(weight.shape[2:]), stride, tuple(pads[::2][::-1]), cells
    picks = weight.device.type == "cpu" and weight.dtype == torch.float32
    make: Any = _tap_of if picks else _taps
    # A tensor that has a shape and no values must not be kept.
    make = make.__wrapped__ if isinstance(weight, FakeTensor) else make
    taps = make(weight.device, weight.dtype, *where)
    if picks:
        # With 2304 channels, 3^3 cells and 5^3 taps, 1.3 + 1.3 ms forward and backward on one core instead of 12 + 8
        # for the product, which bfloat16 keeps: here gradients would be summed in it.
        placed = functional.pad(weight.flatten(1), (0, 1)).gather(1, taps.expand(channels, -1))
    else:
        placed = weight.flatten(1) @ taps
    matrices = placed.view(channels, math.prod(cells), math.prod(sizes))
    return torch.bmm(matrices, volumes.flatten(2).permute(1, 2, 0)).permute(2, 0, 1).reshape(batch, channels, *cells)


@functools.lru_cache(maxsize=32)
def _taps(device: torch.device, dtype: torch.dtype, *where: Any) -> Tensor:
    """Return `_placement` as a tensor [taps, cells out x cells in]."""
    with torch.inference_mode(False):  # what is kept may be asked for its part in a gradient later
        return torch.from_numpy(_placement(*where)).to(device, dtype).flatten(1)


@functools.lru_cache(maxsize=32)
def _tap_of(device: torch.device, _dtype: torch.dtype, *where: Any) -> Tensor:
    """Return which tap lies on each cell, [cells out x cells in]; where none does, the number of taps."""
    placed = _placement(*where)
    placed = placed.reshape(len(placed), -1)
    with torch.inference_mode(False):
        return torch.from_numpy(np.where(placed.any(0), placed.argmax(0), len(placed))).to(device)


@functools.lru_cache(maxsize=32)
def _placement(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    before: tuple[int, ...],
    cells: tuple[int, ...],
) -> NDArray[np.float32]:
    """Return which tap lies on which cell: [taps, cells out, cells in], 1 where it does, else 0."""
    axes = []
    for size, edge, step, first, count in zip(sizes, kernel, stride, before, cells, strict=True):
        tap = np.arange(size) - (np.arange(count)[:, None] * step - first)
        axes.append((tap == np.arange(edge)[:, None, None]).astype(np.float32))
    placed: NDArray[np.float32] = np.einsum("apx,bqy,crz->abcpqrxyz", *axes)
    return np.reshape(placed, (math.prod(kernel), math.prod(cells), math.prod(sizes)))


def _cells_out(volumes: torch.Size, weight: torch.Size, stride: tuple[int, ...], pads: list[int]) -> tuple[int, ...]:
    """Return the cells along each axis that come out of a convolution."""
    around = zip(volumes[2:], weight[2:], stride, pads[::2][::-1], pads[1::2][::-1], strict=True)
    return tuple((size + first + last - edge) // step + 1 for size, edge, step, first, last in around)


class _Depthwise(torch.autograd.Function):
    """The convolution of [B, C, d, h, w] with [C, 1, k, k, k], after padding it as `functional.pad` does."""

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, weight: Tensor, stride: tuple[int, ...], pads: list[int]) -> Tensor:
        ctx.save_for_backward(volumes, weight)
        ctx.stride, ctx.pads = stride, pads
        return functional.conv3d(functional.pad(volumes, pads), weight, stride=stride, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        volumes, weight = ctx.saved_tensors
        batch, channels = volumes.shape[:2]
        of_volumes = of_weight = None
        if ctx.needs_input_grad[0]:
            spread = _spread(gradient, volumes.shape, weight.shape, ctx.stride, ctx.pads)
            of_volumes = functional.conv3d(spread, weight.flip(2, 3, 4), groups=channels)
        if ctx.needs_input_grad[1]:
            padded = functional.pad(volumes, ctx.pads)
            each = functional.conv3d(
                padded.reshape(1, batch * channels, *padded.shape[2:]),
                gradient.reshape(batch * channels, 1, *gradient.shape[2:]),
                dilation=ctx.stride,
                groups=batch * channels,
            )
            each = each[..., : weight.shape[2], : weight.shape[3], : weight.shape[4]]
            of_weight = each.reshape(batch, *weight.shape).sum(0)
        return of_volumes, of_weight, None, None


def _arguments(conv: nn.Conv3d) -> tuple[Any, ...]:
    channels = conv.in_channels, conv.out_channels
    return *channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, False


def zeros_around(conv: nn.Conv3d, shape: torch.Size, *, same: bool) -> list[int]:
    """Return how a convolution pads volumes of a shape, the last axis first, as `functional.pad` wants it.

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


def _spread(
    gradient: Tensor, volumes: torch.Size, weight: torch.Size, stride: tuple[int, ...], pads: list[int]
) -> Tensor:
    """Return the gradient with zeros between its cells and around it, as the mirrored kernel has to see it."""
    before = pads[::2][::-1]
    sizes = [size + edge - 1 for size, edge in zip(volumes[2:], weight[2:], strict=True)]
    if set(stride) == {1}:
        around = [
            (edge - 1 - first, size - cells - (edge - 1 - first))
            for edge, first, size, cells in zip(weight[2:], before, sizes, gradient.shape[2:], strict=True)
        ]
        return functional.pad(gradient, [zeros for pair in reversed(around) for zeros in pair])
    whole = [
        size + first + last + edge - 1
        for size, first, last, edge in zip(volumes[2:], before, pads[1::2][::-1], weight[2:], strict=True)
    ]
    spread = gradient.new_zeros(*gradient.shape[:2], *whole)
    places = [
        slice(edge - 1, edge - 1 + (cells - 1) * step + 1, step)
        for edge, cells, step in zip(weight[2:], gradient.shape[2:], stride, strict=True)
    ]
    spread[(slice(None), slice(None), *places)] = gradient
    cuts = [slice(first, first + size) for first, size in zip(before, sizes, strict=True)]
    return spread[(slice(None), slice(None), *cuts)]


class PointwiseConv3d(_Swapped):
    """A 1 x 1 x 1 convolution as the matrix product that it is.

    torch 2.14 has fast bfloat16 matrix products on a CPU, and no fast backward pass of a bfloat16 convolution.
    """

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        return conv.groups == 1 and set(conv.kernel_size) == set(conv.stride) == {1} and not any(map(int, conv.padding))

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the convolution of [B, C, d, h, w]."""
        if volumes.device.type != "cpu":
            return functional.conv3d(volumes, self.weight)
        last = functional.linear(_in_order(volumes).movedim(1, -1), self.weight.flatten(1))
        return last.movedim(-1, 1).contiguous()
