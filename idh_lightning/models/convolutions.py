"""3D convolutions whose backward pass a CPU does fast."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
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


class DepthwiseConv3d(_Swapped):
    """A depthwise convolution whose gradients are depthwise convolutions too.

    torch 2.14 does the forward pass of a depthwise 3D convolution on a CPU with a fast kernel and its backward pass
    with a slow one: in the tail of B7 that was four fifths of the time. Both gradients can be written as forward
    passes: that of the input uses the mirrored kernel, that of the kernel takes every channel of every study as a
    channel of its own with the gradient as its kernel. Elsewhere than on a CPU this is an ordinary convolution.
    """

    @staticmethod
    def _computes(conv: nn.Conv3d) -> bool:
        return conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size[0] > 1

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the convolution of [B, C, d, h, w]."""
        pads = zeros_around(self, volumes.shape, same=self.same)
        if volumes.device.type != "cpu":
            return functional.conv3d(functional.pad(volumes, pads), self.weight, stride=self.stride, groups=self.groups)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else volumes.dtype
        with torch.autocast("cpu", enabled=False):  # one arithmetic for both passes
            result: Tensor = _Depthwise.apply(volumes.to(dtype), self.weight.to(dtype), self.stride, pads)
        return result


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
        last = functional.linear(volumes.movedim(1, -1), self.weight.flatten(1))
        return last.movedim(-1, 1).contiguous()
