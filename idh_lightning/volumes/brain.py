"""Where the brain is in an image, with the skull around it or without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from idh_lightning.volumes.extraction import extract_brain

_Mask = NDArray[np.bool_]

STRIPPED_MOST_ML = 2300.0
"""The foreground of a skull-stripped image is a brain, at most about 2 L; a head is larger."""

RESIDUE, RINGING = 0.01, 0.05
"""Shares of the brightness of an image. What is left of a background that was one number is nearly everywhere within
the first (95% of air in 159 real images with skull: 0.012 to 0.2); beside the brain, splines swing up by the second at
most, and farther down in a thin shell."""

FREQUENT = 0.01
"""Share of the outermost voxels that is one value because somebody set it, not by chance."""


@dataclass(frozen=True)
class BrainRecord:
    """How the brain of a study was found.

    Attributes:
        volume_ml: Of the brain, on the grid of the file.
        extracted: Whether the skull was there, so that the brain had to be extracted.
        tumour_kept: Share of the tumour mask that lies in the brain, or None without a mask.
        sequence: In which it was found; the others were brought to its grid.
    """

    volume_ml: float
    extracted: bool
    tumour_kept: float | None
    sequence: str


def find_brain(image: sitk.Image) -> tuple[_Mask, bool]:
    """Return the brain [D, H, W] of an image in LPS orientation, and whether its skull had been stripped.

    What is not background is no larger than a brain where the skull is gone; its mask is then exact. Otherwise the
    brain is extracted by a network: see `extract_brain`.
    """
    shown, stripped = foreground(sitk.GetArrayViewFromImage(image), float(np.prod(image.GetSpacing())))
    return (_solid(shown), True) if stripped else (extract_brain(image), False)


def foreground(voxels: NDArray[np.float32], voxel_mm3: float) -> tuple[_Mask, bool]:
    """Return where an image [D, H, W] shows something, and whether that is no larger than a brain without its skull.

    The background of a skull-stripped image is one number. Where it was one, before interpolation by splines or noise
    of rounding left a residue, it is what is nearly that number. In a head with noisy air all is foreground.
    """
    most = STRIPPED_MOST_ML * 1000.0 / voxel_mm3
    air = np.float32(background(voxels))
    shown = voxels != air
    few = bool(np.count_nonzero(shown) <= most)
    if few and voxels.min() >= air:
        return shown, True
    away = voxels - air
    bright = float(np.percentile(np.abs(away[::2, ::2, ::2]), 99))
    above, below = np.count_nonzero(away > RINGING * bright), np.count_nonzero(away < -RINGING * bright)
    signed = 3 * below > above  # z-scores: tissue lies on both sides of the background
    if few and signed:
        return shown, True
    solid = np.abs(away) > RESIDUE * bright if signed else away > RINGING * bright
    rest = np.abs(away[~solid][::8])
    nearly_air = few or (rest.size > 0 and np.percentile(rest, 75) <= 0.5 * RESIDUE * bright)
    if nearly_air and np.count_nonzero(_filled(solid)) <= most:
        return (_closed(solid, _ball(2.0, 1.0)) if signed else solid), True
    return shown, few


def background(voxels: NDArray[np.float32]) -> float:
    """Return the most frequent value on the six faces of the field of view; their median where no value is frequent."""
    sides = [voxels[side] for side in (0, -1)]
    sides += [voxels[:, side] for side in (0, -1)] + [voxels[:, :, side] for side in (0, -1)]
    faces = np.concatenate([side.ravel() for side in sides])
    values, counts = np.unique(faces, return_counts=True)
    frequent = counts.max() > FREQUENT * faces.size
    return float(values[counts.argmax()] if frequent else np.median(faces))


def _solid(foreground: _Mask) -> _Mask:
    """Return the largest connected piece of a mask with its holes filled."""
    if not foreground.any():
        return foreground
    solid, box = np.zeros_like(foreground), bounding_box(foreground)
    solid[box] = _without_holes(_largest(foreground[box]))
    return solid


def bounding_box(mask: _Mask) -> tuple[slice, ...]:
    """Smallest box that holds a mask, which is not empty."""
    lines = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


def _without_holes(mask: _Mask) -> _Mask:
    """Mask with what it encloses; as `binary_fill_holes`, which takes three times as long."""
    labels, count = ndimage.label(~mask)
    faces = (np.take(labels, side, axis).ravel() for axis in range(3) for side in (0, -1))
    open_air = np.zeros(count + 1, dtype=bool)
    open_air[np.unique(np.concatenate(list(faces)))] = True
    open_air[0] = False
    return np.asarray(~open_air[labels])


def _largest(mask: _Mask) -> _Mask:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _closed(mask: _Mask, ball: _Mask) -> _Mask:
    pad = ball.shape[0] // 2 + 1  # without it, closing would treat the edge of the field of view as outside
    closed = ndimage.binary_closing(np.pad(mask, pad), ball)
    return np.asarray(closed[pad:-pad, pad:-pad, pad:-pad])


def _filled(mask: _Mask) -> _Mask:
    """Fill holes slice by slice: a head that is open at the neck encloses nothing in three dimensions."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def _ball(radius_mm: float, spacing_mm: float) -> _Mask:
    reach = int(np.ceil(radius_mm / spacing_mm))
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1] * spacing_mm
    return np.asarray((steps**2).sum(axis=0) <= radius_mm**2)
