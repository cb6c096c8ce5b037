"""Depthwise 3D convolution with a backward pass that a CPU does fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class DepthwiseConv3d(nn.Conv3d):
    """A depthwise convolution of stride 1 whose gradients are depthwise convolutions too.

    torch 2.14 does the forward pass of a depthwise 3D convolution on a CPU with a fast kernel and its backward pass
    with a slow one: in the tail of B7 that was four fifths of the time. Both gradients can be written as forward
    passes: that of the input uses the mirrored kernel, that of the kernel takes every channel of every study as a
    channel of its own with the gradient as its kernel. Elsewhere than on a CPU this is an ordinary convolution.
    """

    @classmethod
    def of(cls, conv: nn.Conv3d) -> DepthwiseConv3d:
        """Return a convolution that shares the weight of another one.

        Raises:
            ValueError: If the other one is not of the kind that this class computes.
        """
        if not cls.fits(conv):
            raise ValueError(f"{conv}: expected a depthwise convolution of stride 1 with an odd kernel and no bias")
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
            device="meta",
        )
        made.weight = conv.weight
        return made

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module is a convolution that this class computes."""
        return (
            isinstance(module, nn.Conv3d)
            and module.groups == module.in_channels == module.out_channels
            and module.bias is None
            and set(module.stride) == set(module.dilation) == {1}
            and module.padding_mode == "zeros"
            and module.padding == tuple(edge // 2 for edge in module.kernel_size)
            and all(edge % 2 == 1 for edge in module.kernel_size)
        )

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the convolution of [B, C, d, h, w]; the shape stays."""
        if volumes.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(volumes)
        result: Tensor = _Depthwise.apply(volumes, self.weight)
        return result


class _Depthwise(torch.autograd.Function):
    """The convolution of [B, C, d, h, w] with [C, 1, k, k, k], padded so that the shape stays."""

    @staticmethod
    def forward(ctx: Any, volumes: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(volumes, weight)
        return functional.conv3d(volumes, weight, padding=_half(weight), groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        volumes, weight = ctx.saved_tensors
        batch, channels = volumes.shape[:2]
        of_volumes = of_weight = None
        if ctx.needs_input_grad[0]:
            of_volumes = functional.conv3d(gradient, weight.flip(2, 3, 4), padding=_half(weight), groups=channels)
        if ctx.needs_input_grad[1]:
            each = functional.conv3d(
                volumes.reshape(1, batch * channels, *volumes.shape[2:]),
                gradient.reshape(batch * channels, 1, *gradient.shape[2:]),
                padding=_half(weight),
                groups=batch * channels,
            )
            of_weight = each.view(batch, *weight.shape).sum(0)
        return of_volumes, of_weight


def _half(weight: Tensor) -> tuple[int, ...]:
    return tuple(edge // 2 for edge in weight.shape[2:])
