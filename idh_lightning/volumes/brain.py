"""Where the brain is in an image, with the skull around it or without."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

_Mask = NDArray[np.bool_]

STRIPPED_MOST_ML = 2300.0
"""The foreground of a skull-stripped image is a brain, at most about 2 L; a head is larger."""

RESIDUE, RINGING = 0.01, 0.05
"""Shares of the brightness of an image. What is left of a background that was one number is nearly everywhere within
the first (95% of air in 159 real images with skull: 0.012 to 0.2); beside the brain, splines swing up by the second at
most, and farther down in a thin shell."""

FREQUENT = 0.01
"""Share of the outermost voxels that is one value because somebody set it, not by chance."""

_WORKING_MM = 3.0  # enough for a mask of the brain, and some 25 times fewer voxels than 1 mm


def find_brain(image: sitk.Image) -> tuple[_Mask, bool]:
    """Return the brain [D, H, W] of an image in LPS orientation, and whether its skull had been stripped.

    What is not background is no larger than a brain where the skull is gone; its mask is then exact. Otherwise the mask
    is found from intensity and is rough: see `brain_in_head`.
    """
    shown, stripped = foreground(sitk.GetArrayViewFromImage(image), float(np.prod(image.GetSpacing())))
    if stripped:
        return _solid(shown), True
    size = [max(1, round(n * mm / _WORKING_MM)) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    coarse = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [_WORKING_MM] * 3, image.GetDirection(), 0.0
    )
    brain = sitk.GetImageFromArray(brain_in_head(sitk.GetArrayFromImage(coarse), _WORKING_MM).astype(np.float32))
    brain.CopyInformation(coarse)
    full = sitk.Resample(brain, image, sitk.Transform(), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(full) > 0.5, False


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


def brain_in_head(voxels: NDArray[np.float32], spacing_mm: float) -> _Mask:
    """Return a rough mask of the brain in a head with skull and scalp.

    The head is what is brighter than air; the scalp is its outer 6 mm; of the rest, the brain is the largest piece of
    middling brightness that thin bridges do not hold together, closed and filled. The mask errs to the large side
    (face and neck may stay at the bottom), since a brain that is cut loses tumour. If nothing is left, the head is
    returned.

    Args:
        voxels: [D, H, W] in LPS orientation, any sequence.
        spacing_mm: Voxel edge, the same along each axis.
    """
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(np.minimum(voxels, np.percentile(voxels, 98))))
    air = 0.5 * otsu.GetThreshold()  # the scalp is so bright that Otsu's threshold itself cuts grey matter
    # Filled before the largest piece is taken: around a dark skull, the scalp alone would be smaller than the brain.
    head = _filled(ndimage.binary_opening(voxels > air, _ball(1.5 * spacing_mm, spacing_mm)))
    head = _filled(_largest(_closed(head, _ball(9.0, spacing_mm))))
    # The field of view cuts the head at its top and bottom: what touches those is not a surface, so the head goes on.
    pad = ((16, 16), (1, 1), (1, 1))
    depth_mm = ndimage.distance_transform_edt(np.pad(head, pad, mode="edge"), sampling=spacing_mm)[16:-16, 1:-1, 1:-1]
    inside, deep = head & (depth_mm > 6.0), head & (depth_mm > 25.0)
    if not deep.any():
        return head
    level = np.median(voxels[deep])
    tissue = inside & (voxels > 0.5 * level) & (voxels < 3.5 * level)
    core = ndimage.binary_erosion(tissue, _ball(5.0, spacing_mm))
    if not core.any():
        return head
    brain = ndimage.binary_dilation(_largest(core), _ball(7.0, spacing_mm)) & inside
    return _filled(_closed(brain, _ball(12.0, spacing_mm)) & inside)


def _solid(foreground: _Mask) -> _Mask:
    """Return the largest connected piece of a mask with its holes filled."""
    box = ndimage.find_objects(foreground.astype(np.uint8))
    if not box:
        return foreground
    solid = np.zeros_like(foreground)
    solid[box[0]] = ndimage.binary_fill_holes(_largest(foreground[box[0]]))
    return solid


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
