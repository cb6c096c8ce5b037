"""Between the grid of the network and the patient: maps on the grid of the study's own FLAIR, and codes from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip
from numpy.typing import NDArray

from idh_lightning.errors import VolumeError
from idh_lightning.files import atomic_write
from idh_lightning.volumes.entries import StoredVolume
from idh_lightning.volumes.reading import Geometry
from idh_lightning.volumes.registration import Registration, transform_of


def to_patient_space(values: NDArray[np.floating], stored: StoredVolume) -> tuple[NDArray[np.float32], Geometry]:
    """Return a map of a study on the grid of its own FLAIR, in the orientation of the file.

    Args:
        values: [D, H, W] on the grid of the store, 0..1.
        stored: The study.

    Returns:
        The map [z, y, x], linearly interpolated, 0 outside the grid of the store; and the geometry of the file.

    Raises:
        VolumeError: If the map has another shape than the study, or values outside 0..1.
    """
    shape = stored.brain.shape
    values = np.asarray(values, dtype=np.float32)
    if values.shape != shape:
        raise VolumeError(f"study {stored.study_id}: the map has shape {values.shape}; expected {shape}, as the study.")
    if not (values.min() >= 0.0 and values.max() <= 1.0):
        raise VolumeError(
            f"study {stored.study_id}: the map has values from {values.min()} to {values.max()}; expected 0 to 1. "
            "Scale it first."
        )
    resampled = stored.geometry.resampled(stored.grid.image(values), sitk.sitkLinear)
    return np.clip(resampled, 0.0, 1.0), stored.geometry


def mask_in_patient_space(probability: NDArray[np.floating], stored: StoredVolume) -> tuple[NDArray[np.uint8], float]:
    """Tumour of a study, on the grid of its own FLAIR, where its probability, linearly interpolated, is half or more.

    Args:
        probability: [D, H, W] on the grid of the store, 0..1.
        stored: The study.

    Returns:
        The mask [z, y, x], 0 and 1, and its volume in mL.

    Raises:
        VolumeError: If the probability has another shape than the study, or values outside 0..1.
    """
    voxels, geometry = to_patient_space(probability, stored)
    mask = (voxels >= 0.5).astype(np.uint8)
    return mask, float(np.count_nonzero(mask) * np.prod(geometry.spacing_mm) / 1000)


def write_map(values: NDArray[np.floating], stored: StoredVolume, path: Path) -> None:
    """Write a map [D, H, W] of a study as a NIfTI file that lies on its FLAIR: same shape, same affine.

    Args:
        values: [D, H, W] on the grid of the store, 0..1.
        stored: The study.
        path: A name ending in `.nii.gz`; the file appears there whole.

    Raises:
        VolumeError: If the map does not fit the study, or the name is no NIfTI name.
    """
    write_in_patient_space(to_patient_space(values, stored)[0], stored, path)


def write_in_patient_space(voxels: NDArray[np.float32 | np.uint8], stored: StoredVolume, path: Path) -> None:
    """Write voxels [z, y, x] on the grid of a study's own FLAIR as a NIfTI file.

    Raises:
        VolumeError: If the name is no NIfTI name.
    """
    if not path.name.endswith(".nii.gz"):
        raise VolumeError(f"{path}: the name of a map must end in .nii.gz.")
    affine_ras = stored.geometry.affine_ras
    image = nib.Nifti1Image(voxels.T, affine_ras)
    image.set_qform(affine_ras, code=1)
    image.set_sform(affine_ras, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_write(path) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), compresslevel=2, mtime=0))


def head_around(
    path: Path, stored: StoredVolume, step_mm: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_] | None, NDArray[np.float64]]:
    """Image of a study as it is in its file, skull and all, on the field of view of the store's grid, and its brain.

    Args:
        path: NIfTI file of one of its sequences.
        stored: The study.
        step_mm: Voxel edge of what is returned.

    Returns:
        Head, brain and tumour (None without a mask), each [d, h, w] in LPS order, and their affine to RAS mm.
    """
    close = _close_grid(stored.grid, step_mm)

    def shown(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.asarray(close.resampled(stored.grid.image(np.asarray(mask, np.float32)), sitk.sitkLinear) > 0.5)

    head = close.resampled(sitk.ReadImage(str(path), sitk.sitkFloat32), sitk.sitkLinear)
    return head, shown(stored.brain), None if stored.mask is None else shown(stored.mask), close.affine_ras


def pair_around(
    files: Mapping[str, Path], registration: Registration, grid: Geometry, step_mm: float = 1.5
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Two sequences of a study as they are in their files, on the field of view of a grid.

    Args:
        files: Sequence -> NIfTI file.
        registration: Of one of them on another.
        grid: In LPS order.
        step_mm: Voxel edge of what is returned.

    Returns:
        Fixed image, moving image where its header has it, and where it was laid, each [d, h, w] in LPS order, and their
        affine to RAS mm.
    """
    close = _close_grid(grid, step_mm)
    fixed, moving = (
        sitk.ReadImage(str(files[name]), sitk.sitkFloat32) for name in (registration.reference, registration.sequence)
    )
    before = close.resampled(moving, sitk.sitkLinear)
    after = close.resampled(moving, sitk.sitkLinear, transform_of(registration.affine))
    return close.resampled(fixed, sitk.sitkLinear), before, after, close.affine_ras


def _close_grid(grid: Geometry, step_mm: float) -> Geometry:
    """Grid of this voxel edge over the field of view of another."""
    size = [max(1, round(n * mm / step_mm)) for n, mm in zip(grid.size, grid.spacing_mm, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] *= step_mm / np.array(grid.spacing_mm)
    middle = grid.affine @ [*((np.array(grid.size) - 1) / 2), 1.0]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Geometry.from_affine((size[0], size[1], size[2]), affine)


def codes_on_grid(path: Path, stored: StoredVolume) -> NDArray[np.int64]:
    """Return the codes of an image in patient space on the grid of a study, [D, H, W]; 0 where the image ends.

    Args:
        path: NIfTI file of whole numbers; the nearest voxel counts.
        stored: The study.
    """
    return stored.grid.resampled(sitk.ReadImage(str(path)), sitk.sitkNearestNeighbor).astype(np.int64)
