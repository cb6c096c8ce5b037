"""Checks of one image file: generators of faults, each with its remedy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from idh_lightning.cohort.study import Fault
from idh_lightning.errors import VolumeError

SPACING_MM = (0.2, 10.0)
"""Voxel edges seen in clinical brain MRI; outside it, the header's unit is not millimetres or the header is wrong."""

FEWEST_VOXELS, MOST_VOXELS = 8, 2**28
"""Along one axis, and in the whole image (1 GiB as float32): a larger header is damaged, and is refused unread."""

MOST_LABELS = 20
"""Of a tumour mask: more are a parcellation, or a probability from 0 to 255."""


class FaultyStudyError(VolumeError):
    """A study cannot be used as it is: `faults` lists all that is wrong with it, warnings included.

    `registrations` are those of its sequences, where it came to them.
    """

    def __init__(self, faults: Sequence[Fault], registrations: Sequence[Any] = ()) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        self.registrations = tuple(registrations)
        super().__init__("\n".join(str(fault) for fault in self.faults))


@dataclass(frozen=True)
class Place:
    """File (or, without one, all files) of a study that is being checked."""

    study_id: str
    file: str | None = None

    def fault(
        self, check: str, found: str, expected: str, remedy: str, severity: Literal["error", "warning"] = "error"
    ) -> Fault:
        """Fault at this place."""
        return Fault(
            where=f"study {self.study_id}" if self.file is None else f"{self.file}, study {self.study_id}",
            check=check, found=found, expected=expected, remedy=remedy, study_id=self.study_id, severity=severity,
        )  # fmt: skip


def is_error(faults: Iterable[Fault]) -> bool:
    """Whether any of the faults is an error."""
    return any(fault.severity == "error" for fault in faults)


def check_header(image: nib.Nifti1Image, place: Place) -> Iterator[Fault]:
    """Faults of a NIfTI header; no voxel is read.

    Source of the two transforms (sform, qform) and their codes: NIfTI-1 standard, section "3D image orientation".
    """
    shape = [int(size) for size in image.shape]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3:
        text = " x ".join(map(str, image.shape))
        yield place.fault("not_3d", f"the image is {text}", "three dimensions", "Save one volume of it as a 3D file.")
        return
    if min(shape) < FEWEST_VOXELS or int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        yield place.fault(
            "image_size", f"the header asks for {shape[0]} x {shape[1]} x {shape[2]} voxels",
            f"at least {FEWEST_VOXELS} along each axis and at most {MOST_VOXELS} in all", "Replace the file.",
        )  # fmt: skip
    if (kind := image.get_data_dtype()).kind not in "iuf":
        yield place.fault("voxel_type", f"voxels of type {kind}", "one number each", "Convert the file.")
    yield from _check_affine(image, place)


def _check_affine(image: nib.Nifti1Image, place: Place) -> Iterator[Fault]:
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        yield place.fault(
            "non_finite_affine", "the affine holds NaN or Inf", "finite numbers", "Convert the file anew."
        )
        return
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        yield place.fault(
            "implausible_spacing", f"the spacing is {' x '.join(f'{value:.4g}' for value in spacing)} mm",
            f"{low:g} to {high:g} mm along each axis", "Correct the header (its unit must be mm) or replace the file.",
        )  # fmt: skip
        return
    direction = affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        yield place.fault(
            "sheared_affine", "the axes of the affine are not at right angles", "a rotation and a scaling",
            "Resample the image to an orthogonal grid (gantry tilt, or an affine registration in the header).",
        )  # fmt: skip
        return
    yield from _check_sides(image, place)


def _check_sides(image: nib.Nifti1Image, place: Place) -> Iterator[Fault]:
    """Doubts about left and right that the header itself raises."""
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    if codes == (0, 0):
        yield place.fault(
            "left_right_unknown", "the header states no orientation (sform_code and qform_code are 0)",
            "a stated orientation",
            "Left and right are guessed: convert again from DICOM, or confirm the side and set sform_code.", "warning",
        )  # fmt: skip
    if 0 in codes:
        return
    qform = np.asarray(image.header.get_qform(), dtype=np.float64)
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(image.affine[:3, :3]) <= 0:
        yield place.fault(
            "left_right_conflict", "sform and qform of the header are mirror images of each other",
            "the same left and right in both",
            "Convert again from DICOM, or find out which is right and copy it over the other.",
        )  # fmt: skip
        return
    ends = [(0, size - 1) for size in image.shape[:3]]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)], dtype=np.float64)
    apart_mm = float(np.linalg.norm((corners @ (qform - image.affine).T)[:, :3], axis=1).max())
    if apart_mm > 1.0:
        yield place.fault(
            "two_geometries",
            f"sform and qform of the header place the image up to {apart_mm:.1f} mm apart; sform is used",
            "one geometry", "Copy the right one over the other.", "warning",
        )  # fmt: skip


def check_voxels(voxels: NDArray[np.float32], place: Place) -> Iterator[Fault]:
    """Faults of voxels [D, H, W]: numbers that are not finite, all the same, or wrapped round."""
    low, high = float(voxels.min()), float(voxels.max())
    if bad := int(voxels.size - np.count_nonzero(np.isfinite(voxels))):
        yield place.fault(
            "non_finite_voxels", f"{bad} of {voxels.size} voxels are NaN or Inf", "finite numbers",
            "Replace the file; find the step that made them (a division by zero in bias correction is common).",
        )  # fmt: skip
    elif low == high:
        yield place.fault(
            "constant_image", f"every voxel is {low:g}", "an image", "Replace the file or drop the sequence."
        )
    elif has_wrapped(voxels):
        yield place.fault(
            "wrapped_voxels",
            f"{np.count_nonzero(voxels < 0)} of the brightest voxels are negative (from {high:g} on they go on at "
            f"{low:g}): they did not fit 16 bits", "values that rise from dark to bright",
            "Convert it again from DICOM, or add 65536 (times the slope of the header) to its negative voxels.",
        )  # fmt: skip


def has_wrapped(voxels: NDArray[np.float32]) -> bool:
    """Whether the brightest voxels of an image [D, H, W] are negative: numbers that were too large went round.

    Where numbers went round, neighbours of opposite sign lie more than half the range apart, on one side the largest
    numbers there are and on the other the smallest. In z-scores, Hounsfield units and the ringing of splines the sign
    changes near zero, or beside a background that is the smallest number; then neighbours seldom are so far apart.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if low > -0.25 * high or high <= 0 or np.median(voxels[:: max(1, len(voxels) - 1)]) < 0.1 * low:
        return False
    changes = jumps = 0
    for axis in range(3):
        turned = np.moveaxis(voxels, axis, 0)
        opposite = (turned[1:] < 0) != (turned[:-1] < 0)
        one, other = turned[1:][opposite], turned[:-1][opposite]
        changes += one.size
        apart = np.abs(one - other) > 0.5 * (high - low)
        jumps += int(np.count_nonzero(apart & (np.maximum(one, other) > 0.2 * high)))
    return jumps > 0.1 * changes


def read_labels(voxels: NDArray[np.float32], place: Place) -> tuple[NDArray[np.float32], list[Fault]]:
    """Labels of a mask [D, H, W], 0 outside the tumour, and what is wrong with them.

    Whole numbers that were saved with a slope of 1.0000153, say, are whole numbers. Where some are negative, the
    tumour is what is positive; where none is positive, it is what is not the most frequent number.
    """
    labels = np.round(voxels)
    values: list[float] = np.unique(labels[labels != 0]).tolist() if np.isfinite(voxels).all() else []
    whole = np.array_equal(voxels, labels) or np.allclose(voxels, labels, rtol=1e-4, atol=1e-3)  # which takes longer
    if len(values) > MOST_LABELS or not whole:
        several = f"{len(values)} different values" if len(values) > MOST_LABELS else "fractions, NaN or Inf"
        return labels, [
            place.fault(
                "mask_not_labels",
                f"the mask holds {several}",
                f"whole-number labels, at most {MOST_LABELS}, 0 outside the tumour",
                "Name the segmentation file, or export it with nearest-neighbour interpolation.",
            )
        ]
    if values and values[0] < 0:
        share = np.count_nonzero(labels < 0) / labels.size
        outside = labels <= 0 if values[-1] > 0 else labels == (values[0] if share > 0.5 else 0)
        found = f"{', '.join(f'{value:g}' for value in values if value < 0)} stands in {share:.1%} of the mask's voxels"
        taken = f"the {np.count_nonzero(~outside)} voxels that are {'positive' if values[-1] > 0 else 'rarer'}"
        remedy = f"None needed if {taken} are the tumour, as which they are taken; otherwise write 0 outside it."
        fault = place.fault("negative_labels", found, "0 outside the tumour", remedy, "warning")
        labels = np.where(outside, np.float32(0), np.where(labels > 0, labels, np.float32(1)))
        return labels, [fault, *_check_extent(labels, place)]
    return labels, _check_extent(labels, place)


def _check_extent(labels: NDArray[np.float32], place: Place) -> list[Fault]:
    """Fault of a mask [D, H, W] that is empty, or full."""
    tumour = np.count_nonzero(labels)
    if tumour == 0:
        remedy = "Replace the mask, leave it out of the table, or exclude the study."
        return [place.fault("empty_mask", "no voxel of the mask is tumour", "some tumour", remedy)]
    if tumour > 0.9 * labels.size:
        share = "every voxel" if tumour == labels.size else f"{tumour / labels.size:.1%}"
        remedy = "Replace the mask; 0 must stand for background."
        return [place.fault("full_mask", f"{share} of the mask is tumour", "some background", remedy)]
    return []
