"""Intensity augmentation in one pass: gamma, bias field and noise over the voxels that are not background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor

from idh_lightning.volumes.transforms import (
    Background,
    Box,
    DrawnTransform,
    background_of,
    change_scalars,
    check_fusable,
    happens,
    occupied_box,
)


class RandomIntensity(DrawnTransform, tio.IntensityTransform):  # type: ignore[misc]
    """Gamma, bias field and noise in one pass over the voxels that are not background.

    As TorchIO's three transforms in this order, but every channel has its own draws and background stays constant.
    """

    def __init__(
        self,
        gamma: tio.RandomGamma | None = None,
        bias_field: tio.RandomBiasField | None = None,
        noise: tio.RandomNoise | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fusable(gamma=gamma, bias_field=bias_field, noise=noise)
        self.gamma: Any = gamma
        self.bias_field: Any = bias_field
        self.noise: Any = noise
        self.background = background

    def draw(self, channels: int) -> Intensity | None:
        """Transform for one study of so many channels, or None if nothing happens to it."""
        gamma = coefficients = noise = None
        if happens(self.gamma):
            gamma = [float(self.gamma.get_params(self.gamma.log_gamma_range)) for _ in range(channels)]
        if happens(self.bias_field):
            bounds = (self.bias_field.order, self.bias_field.coefficients_range)
            coefficients = [self.bias_field.get_params(*bounds) for _ in range(channels)]
        if happens(self.noise):
            bounds = (self.noise.mean_range, self.noise.std_range)
            noise = [self.noise.get_params(*bounds) for _ in range(channels)]
        if gamma is None and coefficients is None and noise is None:
            return None
        return Intensity(gamma, coefficients, noise, self.background, include=self.include, exclude=self.exclude)


class Intensity(tio.IntensityTransform):  # type: ignore[misc]
    """Power, then bias field, then noise, in one pass over the voxels that are not background.

    Args:
        gamma: The power of each channel, counted over all images of the subject, or None.
        coefficients: For each channel the polynomial coefficients of the bias field, in TorchIO's order, or None.
        noise: For each channel mean, standard deviation and seed, or None.
        background: See `Augmentation`.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        gamma: Sequence[float] | None = None,
        coefficients: Sequence[Sequence[float]] | None = None,
        noise: Sequence[tuple[float, float, int]] | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gamma, self.coefficients, self.noise, self.background = gamma, coefficients, noise, background
        self.args_names = ["gamma", "coefficients", "noise", "background"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Change the intensities of all scalar images of a subject."""
        return change_scalars(self.get_images(subject), self._changed, subject)

    def _changed(self, volume: Tensor, order: Sequence[int]) -> Tensor:
        """New volume [C, *shape].

        `order` tells which of TorchIO's W, H, D each array axis is; the bias field is defined along those.
        """
        out = volume.clone(memory_format=torch.contiguous_format)
        background = background_of(volume, self.background)
        # Channel by channel: the temporaries are small enough for the allocator to use the same memory again.
        for channel, fill in enumerate(background):
            box = occupied_box(volume[channel, None], fill[None])
            if box is None:
                continue
            before = out[channel][box]
            after = before.clone()
            field = None
            if self.coefficients is not None:
                field = _log_bias_field(self.coefficients[channel], volume.shape[1:], order, box)
            if self.gamma is not None:
                # sign(x) |x|^gamma exp(field): one exponential for both effects.
                after.abs_().clamp_(min=1e-30).log_().mul_(self.gamma[channel])  # the logarithm of 0 is slow
                after = (after if field is None else after.add_(field)).exp_().copysign_(before)
            elif field is not None:
                after.mul_(field.exp_())
            if self.noise is not None:
                mean, std, seed = self.noise[channel]
                generator = torch.Generator().manual_seed(seed)
                after.add_(torch.empty_like(after).normal_(mean, std, generator=generator))
            before.copy_(torch.where(before == fill, before, after))
        return out


def _log_bias_field(coefficients: Sequence[float], shape: Sequence[int], order: Sequence[int], box: Box) -> Tensor:
    """Logarithm of TorchIO's bias field inside a box: a polynomial along axes that run from -1 to 1.

    Source: Van Leemput et al. 1999, IEEE TMI 18(10):885, as in `torchio.BiasField`.
    """
    degree = next(d for d in range(len(coefficients) + 1) if math.comb(d + 3, 3) == len(coefficients))
    cube = np.zeros((degree + 1,) * 3)
    exponents = [(i, j, k) for i in range(degree + 1) for j in range(degree + 1 - i) for k in range(degree + 1 - i - j)]
    cube[tuple(np.transpose(exponents))] = coefficients
    field = torch.from_numpy(cube.transpose(order)).float()
    for size, part in zip(shape, box, strict=True):
        line = torch.linspace(-1, 1, size)[part] if size > 1 else torch.zeros(1)
        field = torch.tensordot(field, torch.stack([line**i for i in range(degree + 1)]), ([0], [0]))
    return field
