"""A made-up head, defined in patient space and written on whatever grid a test asks for."""

import gzip
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from idh_lightning.cohort.study import SEQUENCES, Study

TUMOUR_RAS_MM = np.array([-32.0, -18.0, 12.0])
"""Left, posterior and superior of the centre."""

RADII_MM = np.array([66.0, 82.0, 60.0])


def ras_affine(
    spacing=(4.0, 4.0, 4.0), size=(40, 48, 38), axes=((1, 0, 0), (0, 1, 0), (0, 0, 1)), centre=(5.0, -8.0, 3)
):
    """Return a RAS affine whose field of view is centred on `centre`; `axes` are the directions of i, j, k."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, dtype=float).T * spacing
    affine[:3, 3] = np.array(centre, dtype=float) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def rotation(degrees, axis):
    """Return the rotation matrix about one of the axes 0, 1, 2."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def points_mm(affine, size):
    """Return the RAS position of every voxel, [i, j, k, 3]."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def tissue(points, seed=0):
    """Return a smooth, asymmetric map in about -1..1 that all sequences of one head share."""
    x, y, z = np.moveaxis(points / 20.0 + np.random.default_rng(seed).uniform(0, 3, 3), -1, 0)
    return (np.sin(1.3 * x + 0.4 * y) + np.cos(1.1 * y - 0.5 * z) + np.sin(0.9 * z + 0.7 * x + 1.0)) / 3.0


def in_brain(points, scale=1.0):
    """Return where the ellipsoid of the brain (or, scaled, of the head) is."""
    return ((points / (RADII_MM * scale)) ** 2).sum(-1) <= 1.0


def brain_of_made_up_head(image):
    """Return where the brain is in an image of SimpleITK, [D, H, W]."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return in_brain(points_mm(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, image.GetSize())).transpose(2, 1, 0)


def in_tumour(points):
    """Return where the ball of the tumour is."""
    return ((points - TUMOUR_RAS_MM) ** 2).sum(-1) <= 20.0**2


def sequence_values(name, points, *, seed=0, skull=False):
    """Return the intensities of one sequence at some points."""
    shared, tumour = tissue(points, seed), in_tumour(points)
    values = {
        "FLAIR": 300 + 80 * shared + 200 * tumour,
        "T1": 500 - 120 * shared - 150 * tumour,
        "T1c": 520 - 110 * shared**3 + 220 * tumour,
        "T2": 350 + 90 * shared**2 + 40 * shared + 260 * tumour,
    }[name]
    if not skull:
        return np.where(in_brain(points), values, 0.0)
    noise = np.random.default_rng(seed).uniform(0, 20, points.shape[:-1])
    scalp = in_brain(points, 1.25) & ~in_brain(points, 1.13)
    return np.where(in_brain(points), values, np.where(scalp, 800.0, noise))


def nifti(values, affine, dtype=np.int16):
    """Return voxels [i, j, k] as NIfTI with sform and qform."""
    image = nib.Nifti1Image(np.asarray(values).astype(dtype), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def write(path, values, affine, dtype=np.int16):
    """Write voxels [i, j, k] as NIfTI with sform and qform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti(values, affine, dtype), path)
    return path


@lru_cache(maxsize=512)
def _compressed(name, affine, size, seed, skull):
    """Return the content of a compressed file of one sequence, or of the mask; many tests ask for the same."""
    affine = np.array(affine)
    points = points_mm(affine, size)
    if name == "mask":
        return gzip.compress(nifti(in_tumour(points), affine, np.uint8).to_bytes(), 1, mtime=0)
    return gzip.compress(nifti(sequence_values(name, points, seed=seed, skull=skull), affine).to_bytes(), 1, mtime=0)


def write_study(
    folder: Path,
    study_id: str = "study-1",
    *,
    affine=None,
    size=(40, 48, 38),
    sequences=SEQUENCES,
    mask=True,
    seed=0,
    skull=False,
    others: Mapping[str, tuple] | None = None,
    **record,
) -> Study:
    """Write a study and return its record; `others` gives single sequences (affine, size) of their own."""
    affine = ras_affine() if affine is None else affine
    place = folder / study_id
    place.mkdir(parents=True, exist_ok=True)
    files = {name: place / f"{study_id}_{name}.nii.gz" for name in sequences}
    mask_file = place / f"{study_id}_seg.nii.gz" if mask else None
    for name, file in (files | ({"mask": mask_file} if mask_file else {})).items():
        own_affine, own_size = (others or {}).get(name, (affine, size))
        file.write_bytes(_compressed(name, tuple(map(tuple, own_affine)), tuple(own_size), seed, skull))
    record = {"patient_id": study_id, "label": 1} | record
    return Study(study_id=study_id, files=files, mask=mask_file, **record)
