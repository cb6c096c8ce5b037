"""Mutual information of two images of a study, at points of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from idh_lightning.volumes.reading import Geometry

LEVELS = 24
"""Of intensity, in the joint histogram."""

_Points = NDArray[np.float64]
_Affine = NDArray[np.float64]


def mutual_information(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mutual information, in nats, of two images given as levels below `LEVELS`."""
    counts = np.bincount(a.astype(np.int16) * LEVELS + b, minlength=LEVELS**2)
    joint = counts.reshape(LEVELS, LEVELS) / max(a.size, 1)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def coarse(image: sitk.Image, voxel_mm: float) -> sitk.Image:
    """Image of means over blocks of about this edge, from 0 up to what nearly all voxels stay below."""
    edges = zip(image.GetSpacing(), image.GetSize(), strict=True)
    small = sitk.BinShrink(image, [min(n, max(1, round(voxel_mm / mm))) for mm, n in edges])
    voxels = sitk.GetArrayFromImage(small).astype(np.float32, copy=False)
    low, high = np.percentile(voxels, (0.1, 99.9)).astype(np.float32)
    return Geometry.of(small).image(voxels.clip(low, high) - low)


def mapped(affine: _Affine, points: _Points) -> _Points:
    """Points [n, 3] that an affine [4, 4] makes of points [n, 3]."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def points_of(image: sitk.Image, number: int, seed: int) -> _Points:
    """LPS mm of random points [n, 3] of an image, between its voxels as often as on them."""
    last = np.array(image.GetSize()) - 1.0
    return mapped(Geometry.of(image).affine, np.random.default_rng(seed).uniform(0.0, last, (number, 3)))


def inside(indices: Sequence[NDArray[np.float64]], grid: Geometry, room_mm: float) -> NDArray[np.bool_]:
    """Whether places, given as arrays of their x, y and z indices, lie in a grid, this far from its faces."""
    found = np.asarray(True)
    for index, n, mm in zip(indices, grid.size, grid.spacing_mm, strict=True):
        found = found & (np.minimum(index + 0.5, n - 0.5 - index) * mm >= room_mm)
    return found


class PointSample:
    """Points at which an image is compared with others, which lie on one grid and may be moved."""

    def __init__(self, fixed: sitk.Image, grid: Geometry, points: _Points) -> None:
        """Look up the levels of the fixed image at points [n, 3] of LPS mm; `grid` is that of the others."""
        self.points, self.grid = points, grid
        self.fixed_levels = _levels(_values(fixed, _places(points, Geometry.of(fixed), [np.eye(4)])))[0]
        self._known: dict[bytes, Tensor] = {}

    def information(
        self, moving: sitk.Image, *affines: _Affine, shuffled: np.random.Generator | None = None
    ) -> list[float]:
        """Mutual information, in nats, with an image of the grid where each of some affines [4, 4] puts it.

        Args:
            moving: The other image.
            affines: LPS mm of the fixed image to those of the moving one.
            shuffled: Shuffles the points of the moving image: what is shared by chance.
        """
        key = b"".join(affine.tobytes() for affine in affines)
        if key not in self._known:  # the next image of a study is looked up at the same places
            self._known[key] = _places(self.points, self.grid, affines)
        found = _levels(_values(moving, self._known[key]))
        if shuffled is not None:
            found = np.stack([shuffled.permutation(levels) for levels in found])
        return [mutual_information(self.fixed_levels, levels) for levels in found]


def _places(points: _Points, grid: Geometry, affines: Sequence[_Affine]) -> Tensor:
    """Where points [n, 3] of LPS mm lie in a grid once affines [4, 4] have moved them, as `grid_sample` takes them."""
    indices = np.stack([mapped(grid.inverse @ affine, points) for affine in affines])
    places = 2 * indices / np.maximum(np.array(grid.size) - 1, 1) - 1
    return torch.from_numpy(places.astype(np.float32))[None, None]


def _values(image: sitk.Image, places: Tensor) -> NDArray[np.float32]:
    """Voxels [m, n] of an image at places [1, 1, m, n, 3] between them; beyond its faces 0."""
    voxels = torch.from_numpy(sitk.GetArrayFromImage(image))[None, None]
    return np.asarray(functional.grid_sample(voxels, places, align_corners=True)[0, 0, 0].numpy())


def _levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values [m, n] as whole numbers from 0 to the highest level, of each row all but the outermost percent evenly."""
    low, high = np.percentile(values, (0.5, 99.5), axis=1, keepdims=True) if values.size else np.array([[0.0], [1.0]])
    return np.asarray(((values - low) * (LEVELS / np.maximum(high - low, 1e-9))).clip(0, LEVELS - 1), dtype=np.uint8)
