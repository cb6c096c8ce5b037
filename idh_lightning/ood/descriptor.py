"""Descriptor of a prepared study: geometry, intensities and features, for comparison with the training studies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from idh_lightning.models import StemTailNetwork, VotingNetwork
from idh_lightning.volumes import StoredVolume
from idh_lightning.volumes.brain import bounding_box

FloatArray = NDArray[np.float64]

PERCENTILES: tuple[float, ...] = (0.5, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99.5)
"""Of the z-scores of the brain: the shape of the distribution, its tails included."""

COARSE = 12
"""Voxels along an edge of the small picture by which the orientation of a head is told."""


@dataclass(frozen=True, eq=False)
class StudyDescriptor:
    """One study in numbers.

    Attributes:
        geometry: Name -> number, in the unit that the name states.
        profiles: [C, Q], percentiles of each sequence within the brain.
        roughness: [C], logarithm of the standard deviation of neighbouring voxels' differences.
        skewness: [C], of each sequence within the brain.
        correlation: [C, C], between sequences.
        contrast: [C, C], skewness of the second sequence minus the first: contrast agent makes few voxels brighter.
        picture: [C + 1, 12, 12, 12], the study made coarse, and the share of brain.
        features: [F], mean of the stem's output over the volume.
    """

    geometry: dict[str, float]
    profiles: FloatArray
    roughness: FloatArray
    skewness: FloatArray
    correlation: FloatArray
    contrast: FloatArray
    picture: FloatArray
    features: FloatArray

    def order(self, places: Sequence[int]) -> FloatArray:
        """Numbers that tell the sequences apart, as if sequence k were the one in `places[k]`.

        For four sequences these are 4 of skewness, 6 of correlation and 6 of contrast, bent so that all have a range
        of about one.
        """
        chosen = list(places)
        upper = np.triu_indices(len(chosen), 1)
        pairs = np.ix_(chosen, chosen)
        return np.concatenate(
            [
                np.tanh(self.skewness[chosen] / 2),
                np.arctanh(np.clip(self.correlation[pairs][upper], -0.99, 0.99)),
                np.tanh(self.contrast[pairs][upper] / 2),
            ]
        )


def study_descriptor(stored: StoredVolume, network: StemTailNetwork | VotingNetwork) -> StudyDescriptor:
    """Descriptor of a prepared study; the network gives the features."""
    return volume_descriptor(
        np.asarray(stored.image, dtype=np.float32),
        np.asarray(stored.brain) > 0,
        network,
        spacing_mm=stored.spacing_mm,
        native_spacing_mm=stored.geometry.spacing_mm,
    )


def volume_descriptor(
    image: NDArray[np.float32],
    brain: NDArray[np.bool_],
    network: StemTailNetwork | VotingNetwork,
    *,
    spacing_mm: Sequence[float],
    native_spacing_mm: Sequence[float],
) -> StudyDescriptor:
    """Descriptor of a volume that need not come from a store.

    Args:
        image: [C, D, H, W], z-scores within the brain, 0 outside it.
        brain: [D, H, W].
        network: Gives the features.
        spacing_mm: Voxel size of the grid along D, H, W.
        native_spacing_mm: Voxel size of the study's own images.
    """
    inner = ndimage.binary_erosion(brain, iterations=2)  # without the rim, where sequences differ by registration
    inner = inner if inner.any() else brain
    values = image[:, inner].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # a missing sequence correlates with none
        together = np.nan_to_num(np.corrcoef(values)).reshape(len(image), len(image))
    contrast = np.array([[_skew(second - first) for second in values] for first in values])
    steps = [np.diff(image, axis=axis)[:, _both(brain, axis - 1)] for axis in (1, 2, 3)]
    device = next(network.parameters()).device
    volume = torch.from_numpy(image)[None]
    whole = torch.cat([volume, torch.from_numpy(brain)[None, None].float()], dim=1)
    features = network.own(network.stem(volume.to(device))).mean(dim=(2, 3, 4))[0].double().cpu().numpy()
    return StudyDescriptor(
        geometry=_geometry(brain, spacing_mm, native_spacing_mm),
        profiles=np.percentile(values, PERCENTILES, axis=1).T,
        roughness=np.log(np.concatenate(steps, axis=1).std(axis=1).astype(np.float64) + 1e-3),
        skewness=np.array([_skew(one) for one in values]),
        correlation=together,
        contrast=contrast,
        picture=functional.adaptive_avg_pool3d(whole, COARSE)[0].double().numpy(),
        features=features,
    )


def turns(cubic: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ways in which a head can lie wrongly, as (axes, flipped axes) of [D, H, W].

    A mirror image from left to right looks like a head and is left out; see `checks.check_sides_by_content`. On a grid
    that is no cube the axes stay.
    """
    orders = itertools.permutations((1, 2, 3)) if cubic else [(1, 2, 3)]
    flips = [(), (1,), (2,), (1, 2)]
    return [(axes, flipped) for axes in orders for flipped in flips if (axes, flipped) != ((1, 2, 3), ())]


def turned(picture: FloatArray, axes: Sequence[int], flipped: Sequence[int]) -> FloatArray:
    """Picture [C + 1, d, d, d] turned one of those ways."""
    return np.flip(picture.transpose(0, *axes), axis=tuple(flipped))


def _geometry(
    brain: NDArray[np.bool_], spacing_mm: Sequence[float], native_spacing_mm: Sequence[float]
) -> dict[str, float]:
    edge_mm = np.array(spacing_mm)
    sides = [side.stop - side.start for side in bounding_box(brain)] if brain.any() else [0, 0, 0]
    height, depth, width = (float(n * mm) for n, mm in zip(sides, edge_mm, strict=True))
    return {
        "least_voxel_edge_mm": float(min(native_spacing_mm)),
        "greatest_voxel_edge_mm": float(max(native_spacing_mm)),
        "brain_ml": float(brain.sum() * np.prod(edge_mm) / 1000),
        "brain_height_mm": height,
        "brain_length_mm": depth,
        "brain_width_mm": width,
    }


def _both(brain: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Where a voxel and its next neighbour along an axis are both brain."""
    length = brain.shape[axis]
    return np.take(brain, range(1, length), axis) & np.take(brain, range(length - 1), axis)


def _skew(values: NDArray[Any]) -> float:
    """Third moment over the standard deviation cubed, as `scipy.stats.skew`, whose import takes most of a second."""
    if (spread := values.std()) <= 1e-6:
        return 0.0
    return float(np.mean(((values - values.mean()) / spread) ** 3))
