"""Randomisation of volumes: what scanners, protocols and preparation vary, drawn anew for every volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Randomisation:
    """Random change of a volume [C, D, H, W] of z-scores, far wider than patients and scanners differ.

    What a network learns under it holds for images that it has never seen. Source: domain randomisation, Tobin et al.
    2017, arXiv:1703.06907; of brain MRI, Billot et al. 2023, doi:10.1016/j.media.2023.102789.

    Attributes:
        degrees: Standard deviation of the rotation about each axis.
        scale: Standard deviation of the logarithm of the size.
        shift: Standard deviation of the shift, as a share of half the grid.
        gain: Standard deviation of the logarithm of each sequence's contrast.
        offset: Standard deviation of each sequence's brightness, in z-scores, as of all that follows.
        bend: Standard deviation of the quadratic part of each sequence's intensity curve.
        shading: Standard deviation of a smooth field that multiplies each sequence.
        cloud: Standard deviation of a smooth field that is added to each sequence.
        noise: Largest standard deviation of the noise of each sequence.
        tumour: Standard deviation of what is added to each sequence in the tumour, smoothly uneven within it.
        coarse: Probability that a sequence loses resolution along one axis.
        coarsest: Largest factor of that loss.
        saturated: Probability that the brightest part of a sequence is cut off, as in 8 bits.
        residue: Probability that pieces of a rim around the brain are left, as a poor brain extraction leaves them.
        dropped: Probability that each sequence is missing; the first or the last is kept, where one of them is there.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    gain: float = 0.3
    offset: float = 0.3
    bend: float = 0.1
    shading: float = 0.1
    cloud: float = 0.2
    noise: float = 0.25
    tumour: float = 0.0
    coarse: float = 0.3
    coarsest: float = 3.0
    saturated: float = 0.0
    residue: float = 0.0
    dropped: Sequence[float] = (0.15, 0.15, 0.15, 0.15)

    def __call__(
        self, volume: Tensor, mask: Tensor, brain: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Changed volume [C, D, H, W], mask and brain [D, H, W], float32; outside the brain the volume is 0.

        A sequence that is 0 throughout is absent, and stays so.
        """
        absent = ~volume.flatten(1).any(dim=1).numpy()
        moved = self._moved(torch.cat([volume, mask[None], brain[None]]), rng)
        inside = moved[-1] > 0.5
        # Averages over the brain alone, so that what is outside darkens no edge.
        volume = torch.where(inside, moved[:-2] / moved[-1].clamp_min(0.5), 0.0)
        if self.tumour:
            volume = volume + self._uneven_tumour(moved[-2], len(volume), rng)
        if self.residue and rng.random() < self.residue:
            rim = _rim(inside, rng)
            volume = torch.where(rim, torch.stack([_patchy(rim.shape, rng) for _ in volume]), volume)
            inside = inside | rim
        volume = torch.stack([self._rescanned(one, rng) for one in volume])
        volume[torch.from_numpy(self._missing(absent, rng))] = 0
        return torch.where(inside, volume, 0.0), (moved[-2] > 0.5).float(), inside.float()

    def _moved(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Images [C, D, H, W] turned, scaled, shifted and, every other time, mirrored."""
        turn = np.eye(3)
        for (a, b), angle in zip(((0, 1), (1, 2), (0, 2)), np.deg2rad(rng.normal(0, self.degrees, 3)), strict=True):
            plane = np.eye(3)
            plane[a, a] = plane[b, b] = np.cos(angle)
            plane[a, b], plane[b, a] = -np.sin(angle), np.sin(angle)
            turn = turn @ plane
        sizes = np.array(images.shape[:0:-1], dtype=float)
        stretch = np.exp(rng.normal(0, self.scale) + rng.normal(0, 0.4 * self.scale, 3))
        matrix = (turn * stretch) * sizes / sizes[:, None]
        if rng.random() < 0.5:
            matrix[:, 0] *= -1
        affine = np.concatenate([matrix, rng.normal(0, self.shift, (3, 1))], axis=1)
        grid = functional.affine_grid(torch.from_numpy(affine).float()[None], [1, *images.shape], align_corners=False)
        return functional.grid_sample(images[None], grid, align_corners=False)[0]

    def _uneven_tumour(self, mask: Tensor, channels: int, rng: np.random.Generator) -> Tensor:
        """Change [C, D, H, W] of the intensities in a mask [D, H, W], partly the same in all sequences."""
        soft = functional.avg_pool3d(mask[None, None], 3, stride=1, padding=1)[0, 0]
        shape, common = mask.shape, smooth_noise(mask.shape, 10, rng)
        each = [
            rng.normal() + 0.7 * smooth_noise(shape, 10, rng) + rng.normal(0, 0.7) * common for _ in range(channels)
        ]
        return self.tumour * soft * torch.stack(each)

    def _rescanned(self, voxels: Tensor, rng: np.random.Generator) -> Tensor:
        """One sequence [D, H, W] as another scanner might have seen it."""
        shape = list(voxels.shape)
        if rng.random() < self.coarse:
            axis, factor = int(rng.integers(3)), rng.uniform(1.2, self.coarsest)
            coarse = [max(4, round(length / factor)) if at == axis else length for at, length in enumerate(shape)]
            voxels = _resized(_resized(voxels, coarse), shape)
        voxels = voxels * (1 + self.shading * smooth_noise(shape, 4, rng)) + self.cloud * smooth_noise(shape, 4, rng)
        voxels = voxels + rng.normal(0, self.bend) * (voxels.square() - 1).clamp(-1, 6)
        voxels = voxels * float(np.exp(rng.normal(0, self.gain))) + rng.normal(0, self.offset)
        voxels = voxels + rng.uniform(0, self.noise) * _normal(shape, rng)
        if rng.random() < self.saturated:
            voxels = voxels.clamp_max(rng.uniform(1.2, 3.5))
        return voxels

    def _missing(self, absent: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        missing: NDArray[Any] = absent | (rng.random(len(absent)) < np.asarray(self.dropped)[: len(absent)])
        first_and_last = np.array([0, len(absent) - 1])
        if missing[first_and_last].all() and len(there := first_and_last[~absent[first_and_last]]):
            missing[rng.choice(there)] = False
        return missing


def _rim(brain: Tensor, rng: np.random.Generator) -> Tensor:
    """Pieces [D, H, W], bool, of what lies within a voxel or two outside a brain."""
    width = 1 + 2 * int(rng.integers(1, 3))
    grown = functional.max_pool3d(brain[None, None].float(), width, stride=1, padding=width // 2)[0, 0] > 0.5
    return grown & ~brain & (smooth_noise(brain.shape, 8, rng) > rng.uniform(0, 1.5))


def _patchy(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    return rng.normal(0, 1.5) + smooth_noise(shape, 10, rng)


def smooth_noise(shape: Sequence[int], points: int, rng: np.random.Generator) -> Tensor:
    """Smooth random field [D, H, W] of standard deviation about 1, from normal numbers at so many points an axis."""
    return 1.6 * _resized(_normal([points] * 3, rng), shape, align_corners=True)


def _normal(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _resized(voxels: Tensor, shape: Sequence[int], *, align_corners: bool = False) -> Tensor:
    return functional.interpolate(voxels[None, None], list(shape), mode="trilinear", align_corners=align_corners)[0, 0]
