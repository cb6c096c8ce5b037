"""The sequences of a study on one grid: resampled there, and registered where their headers leave them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from idh_lightning.cohort.study import Fault, Study
from idh_lightning.volumes import consistency
from idh_lightning.volumes.brain import background, foreground
from idh_lightning.volumes.checks import Place, is_error
from idh_lightning.volumes.reading import Geometry
from idh_lightning.volumes.registration import (
    Registration,
    ShiftCheck,
    agreement,
    centre_of_mass,
    moved_mm,
    register,
    transform_of,
    turned_degrees,
)

MASK = "mask"

SHIFT_MM = 1.0
"""Root mean square over a head: what is less counts as in place. It is half of 2 mm, the least shift to be seen."""

_Affine = NDArray[np.float64]


class OneGrid(NamedTuple):
    """Images of a study on one grid.

    Attributes:
        images: Sequence, or mask -> image.
        registrations: One for each sequence that was registered.
        faults: What was found on the way.
    """

    images: dict[str, sitk.Image]
    registrations: tuple[Registration, ...]
    faults: list[Fault]


def reference_of(images: Mapping[str, sitk.Image], sequences: Sequence[str]) -> str:
    """Sequence on whose grid the others are brought: FLAIR; without it, the one whose longest voxel edge is shortest.

    Where all lie on one grid it is the first that is there.
    """
    there = [name for name in sequences if name in images]
    grids = {name: Geometry.of(images[name]) for name in there}
    if all(grids[name].agrees_with(grids[there[0]]) for name in there):
        return there[0]
    finest = min(there, key=lambda name: (max(grids[name].spacing_mm), float(np.prod(grids[name].spacing_mm))))
    return "FLAIR" if "FLAIR" in there else finest


def bring_to_one_grid(
    study: Study, images: Mapping[str, sitk.Image], reference: str, brain: NDArray[np.bool_], registration: str
) -> OneGrid:
    """Resample every image that is not on the grid of the reference, or not in its place there.

    An image that is on that grid and in place comes back as it is. A mask on the grid of a sequence goes where that
    sequence goes.

    Args:
        study: Names the files.
        images: In LPS orientation.
        reference: Sequence on whose grid all are brought.
        brain: [D, H, W], of the reference.
        registration: "auto", "always" or "never"; see `Preprocessing`.
    """
    fixed = images[reference]
    registrations: dict[str, Registration] = {}
    faults: list[Fault] = []
    brought, check = dict(images), ShiftCheck(fixed)
    for name in (name for name in images if name not in (reference, MASK)):
        found = register_where_needed(check, images[name], brain, reference, name, registration)
        registrations |= {} if found is None else {name: found}
    for name, image in images.items():
        leader = _leader(images, registrations, reference) if name == MASK else name
        moved = registrations.get(leader)
        if moved is None and Geometry.of(image).agrees_with(Geometry.of(fixed)):
            continue
        place = Place(study.study_id, _file_name(study, name))
        affine = np.eye(4) if moved is None else moved.affine
        covered = _covered(fixed, image, brain, affine)
        here = list(consistency.check_coverage(covered, name, "" if moved is None else leader, place))
        if moved is not None and name == leader and not is_error(here):
            here.append(consistency.check_registration(moved, place))
        faults += here
        brought[name] = _on_grid_of(fixed, image, brain, affine, labels=name == MASK)
    return OneGrid(brought, tuple(registrations.values()), faults)


def register_where_needed(
    check: ShiftCheck, moving: sitk.Image, brain: NDArray[np.bool_], reference: str, name: str, registration: str
) -> Registration | None:
    """Registration of a sequence to the image of a check; None where it stays where its header has it."""
    fixed = check.fixed
    same = Geometry.of(moving).agrees_with(Geometry.of(fixed))
    reason = "always" if registration == "always" else "shift" if same else "grid"
    if registration == "never" or not brain.any() or (reason == "shift" and check.shift_mm(moving) < SHIFT_MM):
        return None
    by_header, header_quality = agreement(fixed, moving, brain)
    affine = register(fixed, moving)
    shared, quality = agreement(fixed, moving, brain, affine)
    centre = centre_of_mass(fixed)
    if shared <= by_header:  # no place is better than that of the header
        affine, quality = np.eye(4), header_quality
    moved = moved_mm(affine, centre)
    if reason == "shift" and moved < SHIFT_MM:
        return None
    return Registration(
        sequence=name,
        reference=reference,
        reason=reason,
        rows=tuple(affine[:3].ravel().tolist()),
        moved_mm=moved,
        turned_degrees=turned_degrees(affine),
        quality=quality,
    )


def _leader(images: Mapping[str, sitk.Image], registrations: Mapping[str, Registration], reference: str) -> str:
    """Registered sequence whose grid the mask has: T1c before others, since most masks are drawn on it; "" for none."""
    mask = Geometry.of(images[MASK])
    if mask.agrees_with(Geometry.of(images[reference])):
        return ""
    theirs = [name for name in registrations if mask.agrees_with(Geometry.of(images[name]))]
    return "T1c" if "T1c" in theirs else next(iter(theirs), "")


def _file_name(study: Study, name: str) -> str | None:
    path = study.mask if name == MASK else study.files[name]
    return None if path is None else path.name


def _covered(fixed: sitk.Image, image: sitk.Image, brain: NDArray[np.bool_], affine: _Affine) -> float:
    """Share of the brain that lies in the field of view of an image."""
    everywhere = Geometry.of(image).image(np.ones(image.GetSize()[::-1], dtype=np.float32))
    view = Geometry.of(fixed).resampled(everywhere, sitk.sitkNearestNeighbor, transform_of(affine))
    return float(view[brain].mean()) if brain.any() else 0.0


def _on_grid_of(
    reference: sitk.Image, image: sitk.Image, brain: NDArray[np.bool_], affine: _Affine, *, labels: bool
) -> sitk.Image:
    """Image on the grid of another, interpolated within its own foreground: air darkens no edge of the brain.

    Outside the brain a voxel is foreground where most of it is: what was interpolated is no wider than it was.
    """
    grid, move = Geometry.of(reference), transform_of(affine)
    if labels:
        return grid.image(grid.resampled(image, sitk.sitkNearestNeighbor, move))
    air = background(sitk.GetArrayViewFromImage(image))
    mask, _ = foreground(sitk.GetArrayViewFromImage(image), float(np.prod(image.GetSpacing())))
    shown = Geometry.of(image).image(mask.astype(np.float32))
    total, share = (grid.resampled(part, sitk.sitkLinear, move) for part in (image * shown, shown))
    voxels = np.divide(total, share, out=np.full_like(total, air), where=(share > 0.5) | (brain & (share > 0.05)))
    return grid.image(voxels)
