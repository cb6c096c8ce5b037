"""Where the brain is in an image, with the skull around it or without."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from idh_lightning.volumes.checks import STRIPPED_MOST_ML

Mask = NDArray[np.bool_]

_WORKING_MM = 3.0  # enough for a mask of the brain, and some 25 times fewer voxels than 1 mm


def find_brain(image: sitk.Image) -> tuple[Mask, bool]:
    """Return the brain [D, H, W] of an image in LPS orientation, and whether its skull had been stripped.

    The background of a skull-stripped image is one number, and what is not background is no larger than a brain; its
    mask is then exact. Otherwise the mask is found from intensity and is rough: see `brain_in_head`.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    foreground = voxels != background(voxels)
    if np.count_nonzero(foreground) * np.prod(image.GetSpacing()) <= STRIPPED_MOST_ML * 1000.0:
        return _solid(foreground), True
    size = [max(1, round(n * mm / _WORKING_MM)) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    coarse = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        [_WORKING_MM] * 3,
        image.GetDirection(),
        0.0,
    )
    brain = sitk.GetImageFromArray(brain_in_head(sitk.GetArrayFromImage(coarse), _WORKING_MM).astype(np.float32))
    brain.CopyInformation(coarse)
    full = sitk.Resample(brain, image, sitk.Transform(), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(full) > 0.5, False


def background(voxels: NDArray[np.float32]) -> float:
    """Return the most frequent value on the six faces of the field of view."""
    faces = [voxels[side] for side in (0, -1)]
    faces += [voxels[:, side] for side in (0, -1)] + [voxels[:, :, side] for side in (0, -1)]
    values, counts = np.unique(np.concatenate([face.ravel() for face in faces]), return_counts=True)
    return float(values[counts.argmax()])


def brain_in_head(voxels: NDArray[np.float32], spacing_mm: float) -> Mask:
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


def _solid(foreground: Mask) -> Mask:
    """Return the largest connected piece of a mask with its holes filled."""
    box = ndimage.find_objects(foreground.astype(np.uint8))
    if not box:
        return foreground
    solid = np.zeros_like(foreground)
    solid[box[0]] = ndimage.binary_fill_holes(_largest(foreground[box[0]]))
    return solid


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _closed(mask: Mask, ball: Mask) -> Mask:
    pad = ball.shape[0] // 2 + 1  # without it, closing would treat the edge of the field of view as outside
    closed = ndimage.binary_closing(np.pad(mask, pad), ball)
    return np.asarray(closed[pad:-pad, pad:-pad, pad:-pad])


def _filled(mask: Mask) -> Mask:
    """Fill holes slice by slice: a head that is open at the neck encloses nothing in three dimensions."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def _ball(radius_mm: float, spacing_mm: float) -> Mask:
    reach = int(np.ceil(radius_mm / spacing_mm))
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1] * spacing_mm
    return np.asarray((steps**2).sum(axis=0) <= radius_mm**2)
