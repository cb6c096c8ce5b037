"""Checks of one study's images: pure functions that return what is wrong, each as a fault with its remedy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from idh_lightning.cohort.study import Fault, Study
from idh_lightning.errors import VolumeError

SPACING_MM = (0.2, 10.0)
"""Voxel edges seen in clinical brain MRI; outside it, the header's unit is not millimetres or the header is wrong."""

FEWEST_VOXELS, MOST_VOXELS = 8, 2**28
"""Along one axis, and in the whole image (1 GiB as float32): a larger header is damaged, and is refused unread."""

STRIPPED_MOST_ML = 2300.0
"""The foreground of a skull-stripped image is a brain, at most about 2 L; a head is larger."""

BRAIN_LEAST_ML = 500.0

MOST_TUMOUR = 0.5
"""Share of the brain: of 68 real masks the largest, with oedema, covers 0.17, of 60 synthetic ones 0.26; grey matter,
white matter and CSF together 0.9 and more."""

WIDEST_TUMOUR = 0.8
"""Share of the brain's length along each of the three axes at once: of 69 real masks the widest spans 0.58, of 150
synthetic ones 0.61, grey matter alone 0.9 and more."""

MOST_LABELS = 20
"""Of a tumour mask: more are a parcellation, or a probability from 0 to 255."""

Severity = Literal["error", "warning"]


class FaultyStudyError(VolumeError):
    """A study cannot be used as it is: `faults` lists all that is wrong with it, warnings included."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


@dataclass(frozen=True)
class Place:
    """Where a check is looking: a file (or, without one, all files) of a study."""

    study_id: str
    file: str | None = None

    def fault(self, check: str, found: str, expected: str, remedy: str, severity: Severity = "error") -> Fault:
        """Return a fault at this place."""
        study = f"study {self.study_id}"
        where = study if self.file is None else f"{self.file}, {study}"
        return Fault(
            where=where,
            check=check,
            found=found,
            expected=expected,
            remedy=remedy,
            study_id=self.study_id,
            severity=severity,
        )


def is_error(faults: Iterable[Fault]) -> bool:
    """Return whether any of the faults is an error."""
    return any(fault.severity == "error" for fault in faults)


def check_header(image: nib.Nifti1Image, place: Place) -> list[Fault]:
    """Return what is wrong with a NIfTI header; no voxel is read.

    Source of the two transforms (sform, qform) and their codes: NIfTI-1 standard, section "3D image orientation".
    """
    faults = []
    shape = _without_trailing_ones(image.shape)
    if len(shape) != 3:
        text = " x ".join(map(str, image.shape))
        return [
            place.fault("not_3d", f"the image is {text}", "three dimensions", "Save one volume of it as a 3D file.")
        ]
    if min(shape) < FEWEST_VOXELS or int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        faults.append(
            place.fault(
                "image_size",
                f"the header asks for {shape[0]} x {shape[1]} x {shape[2]} voxels",
                f"at least {FEWEST_VOXELS} along each axis and at most {MOST_VOXELS} in all",
                "Replace the file.",
            )
        )
    if image.get_data_dtype().kind not in "iuf":
        faults.append(
            place.fault(
                "voxel_type", f"voxels of type {image.get_data_dtype()}", "one number each", "Convert the file."
            )
        )
    return faults + _check_affine(image, place)


def _check_affine(image: nib.Nifti1Image, place: Place) -> list[Fault]:
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        return [
            place.fault("non_finite_affine", "the affine holds NaN or Inf", "finite numbers", "Convert the file anew.")
        ]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        text = " x ".join(f"{value:.4g}" for value in spacing)
        return [
            place.fault(
                "implausible_spacing",
                f"the spacing is {text} mm",
                f"{low:g} to {high:g} mm along each axis",
                "Correct the header (its unit must be mm) or replace the file.",
            )
        ]
    direction = affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        return [
            place.fault(
                "sheared_affine",
                "the axes of the affine are not at right angles",
                "a rotation and a scaling",
                "Resample the image to an orthogonal grid (gantry tilt, or an affine registration in the header).",
            )
        ]
    return _check_sides(image, place)


def _check_sides(image: nib.Nifti1Image, place: Place) -> list[Fault]:
    """Return doubts about left and right that the header itself raises."""
    header = image.header
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code == 0 and qform_code == 0:
        return [
            place.fault(
                "left_right_unknown",
                "the header states no orientation (sform_code and qform_code are 0)",
                "a stated orientation",
                "Left and right are guessed: convert again from DICOM, or confirm the side and set sform_code.",
                "warning",
            )
        ]
    if sform_code == 0 or qform_code == 0:
        return []
    qform = np.asarray(header.get_qform(), dtype=np.float64)
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(image.affine[:3, :3]) <= 0:
        return [
            place.fault(
                "left_right_conflict",
                "sform and qform of the header are mirror images of each other",
                "the same left and right in both",
                "Convert again from DICOM, or find out which is right and copy it over the other.",
            )
        ]
    ends = [(0, size - 1) for size in image.shape[:3]]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)], dtype=np.float64)
    apart_mm = float(np.linalg.norm((corners @ (qform - image.affine).T)[:, :3], axis=1).max())
    if apart_mm > 1.0:
        return [
            place.fault(
                "two_geometries",
                f"sform and qform of the header place the image up to {apart_mm:.1f} mm apart; sform is used",
                "one geometry",
                "Copy the right one over the other.",
                "warning",
            )
        ]
    return []


def check_voxels(voxels: NDArray[np.float32], place: Place) -> list[Fault]:
    """Return whether voxels [D, H, W] hold numbers that are not finite, or all the same number."""
    finite = np.isfinite(voxels)
    if not finite.all():
        count = int(voxels.size - np.count_nonzero(finite))
        return [
            place.fault(
                "non_finite_voxels",
                f"{count} of {voxels.size} voxels are NaN or Inf",
                "finite numbers",
                "Replace the file; find the step that made them (a division by zero in bias correction is common).",
            )
        ]
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        return [
            place.fault(
                "constant_image", f"every voxel is {low:g}", "an image", "Replace the file or drop the sequence."
            )
        ]
    if has_wrapped(voxels):
        return [
            place.fault(
                "wrapped_voxels",
                f"{np.count_nonzero(voxels < 0)} of the brightest voxels are negative (from {high:g} on they go on at "
                f"{low:g}): they did not fit 16 bits",
                "values that rise from dark to bright",
                "Convert it again from DICOM, or add 65536 (times the slope of the header) to its negative voxels.",
            )
        ]
    return []


def has_wrapped(voxels: NDArray[np.float32]) -> bool:
    """Return whether the brightest voxels of an image [D, H, W] are negative: numbers that were too large went round.

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
    """Return the labels of a mask [D, H, W], 0 outside the tumour, and what is wrong with them.

    Whole numbers that were saved with a slope of 1.0000153, say, are whole numbers. Where some are negative, the
    tumour is what is positive; where none is positive, it is what is not the most frequent number.
    """
    labels = np.round(voxels)
    values: list[float] = np.unique(labels[labels != 0]).tolist() if np.isfinite(voxels).all() else []
    if len(values) > MOST_LABELS or not np.allclose(voxels, labels, rtol=1e-4, atol=1e-3):
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
    """Return whether a mask [D, H, W] is empty, or full."""
    tumour = np.count_nonzero(labels)
    if tumour == 0:
        remedy = "Replace the mask, leave it out of the table, or exclude the study."
        return [place.fault("empty_mask", "no voxel of the mask is tumour", "some tumour", remedy)]
    if tumour > 0.9 * labels.size:
        share = "every voxel" if tumour == labels.size else f"{tumour / labels.size:.1%}"
        remedy = "Replace the mask; 0 must stand for background."
        return [place.fault("full_mask", f"{share} of the mask is tumour", "some background", remedy)]
    return []


def check_mask_place(labels: NDArray[np.float32], brain: NDArray[np.bool_], place: Place) -> list[Fault]:
    """Return whether the labels [D, H, W] of a mask lie outside the brain [D, H, W] of the same grid, or fill it."""
    tumour = labels != 0
    if not tumour.any():
        return []  # already named as empty
    within = int(np.count_nonzero(tumour & brain))
    inside, filled = within / np.count_nonzero(tumour), within / max(int(np.count_nonzero(brain)), 1)
    spans = min(1.0, *(one / max(other, 1) for one, other in zip(_lengths(tumour), _lengths(brain), strict=True)))
    if filled > MOST_TUMOUR or spans > WIDEST_TUMOUR:
        values, counts = np.unique(labels[tumour & brain], return_counts=True)
        shares = ", ".join(
            f"{value:g} {count / within:.0%}" for value, count in zip(values[:8], counts[:8], strict=True)
        )
        return [
            place.fault(
                "mask_of_the_brain",
                f"the mask covers {filled:.0%} of the brain (its labels: {shares}) and spans {spans:.0%} of its "
                "length, width and height",
                f"a tumour, at most {MOST_TUMOUR:.0%}, and {WIDEST_TUMOUR:.0%} across",
                "Name the tumour segmentation: this is one of tissues (grey matter, white matter, CSF) or of the whole "
                "brain. If one label of it is the tumour, save that one alone.",
            )
        ]
    if inside >= 0.8:
        return []
    return [
        place.fault(
            "misaligned_mask",
            f"{inside:.0%} of the mask lies in the brain",
            "nearly all of it",
            "Check that mask and images belong to the same session, and that no step flipped or moved one of them.",
            "error" if inside < 0.5 else "warning",
        )
    ]


def _lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return how many voxels long a mask [D, H, W] is along each axis, the outermost 2 % of it at each end left out."""
    thinned = mask[tuple(slice(None, None, 1 + (size > 100)) for size in mask.shape)]  # enough, and eight times as fast
    sums = (np.cumsum(np.count_nonzero(thinned, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return [int(np.ptp(np.searchsorted(total, (0.02 * total[-1], 0.98 * total[-1])))) for total in sums]


def check_brain(brain_ml: float, stripped: bool, place: Place) -> list[Fault]:
    """Return whether the skull is still there, and whether the brain is too small to be one."""
    if brain_ml < BRAIN_LEAST_ML:
        return [
            place.fault(
                "small_brain",
                f"the brain that was found measures {brain_ml:.0f} mL",
                f"at least {BRAIN_LEAST_ML:.0f} mL",
                "Look at the image: wrong spacing, partial coverage or failed skull-stripping.",
                "warning",
            )
        ]
    if stripped:
        return []
    return [
        place.fault(
            "skull_not_stripped",
            "the head is there with skull and scalp; the brain mask is a rough one, from intensity",
            "a skull-stripped image",
            "Skull-strip all sequences with a dedicated tool for best results.",
            "warning",
        )
    ]


def check_coverage(covered: float, name: str, place: Place) -> list[Fault]:
    """Return what is wrong with a sequence on another grid than the reference that covers this much of its brain."""
    if covered >= 0.95:
        return [
            place.fault(
                "different_grid",
                f"{name} lies on another grid; it is resampled",
                "one grid for all sequences",
                "None needed if the sequences are registered; otherwise register them first.",
                "warning",
            )
        ]
    return [
        place.fault(
            "disagreeing_fields_of_view",
            f"the field of view of {name} holds {covered:.0%} of the brain",
            "nearly all of it",
            "Register the sequences to each other, or check that the file belongs to this session.",
        )
    ]


def check_sides_by_content(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    brain: NDArray[np.bool_],
    presence: Sequence[bool],
    names: Sequence[str],
    place: Place,
) -> list[Fault]:
    """Return sequences (and a mask) that fit the reference better when mirrored left to right.

    A brain is nearly symmetric and its tumour is not, so the mutual information of two sequences falls when one is
    mirrored; where it rises, one of the two was flipped without its header. On 61 real studies this names each of 130
    flipped sequences and none that was not; of 60 flipped masks it names 52, and none that was not.

    Args:
        image: [C, D, H, W], normalised, 0 outside the brain.
        mask: [D, H, W] or None.
        brain: [D, H, W].
        presence: [C].
        names: [C], sequence names; the first present one is the reference.
        place: Names the study.
    """
    step = max(1, max(brain.shape) // 40)
    inside = brain[::step, ::step, ::step]
    levels = _levels(image[:, ::step, ::step, ::step])
    present = [index for index, there in enumerate(presence) if there]
    reference = levels[present[0]][inside]
    faults = []
    for index in present[1:]:
        direct, mirrored = (
            max(_mutual_information(reference, moved[inside]) for moved in _shifted(other))
            for other in (levels[index], levels[index][..., ::-1])
        )
        if mirrored > 1.1 * direct:
            faults.append(_side_doubt(place, names[index], names[present[0]]))
    bright = [index for index in present if names[index] in ("FLAIR", "T2")]
    if mask is not None and bright:
        own, other = mask & brain, mask[..., ::-1] & brain & ~mask
        # Gliomas are bright on T2 and nearly all on FLAIR: a mask beside a brighter lesion was mirrored.
        if other.sum() > 0.3 * own.sum() > 0 and all(
            image[index][other].mean() > image[index][own].mean() + 0.4 for index in bright
        ):
            faults.append(_side_doubt(place, "the mask", names[bright[0]]))
    return faults


def _side_doubt(place: Place, name: str, reference: str) -> Fault:
    return place.fault(
        "left_right_doubt",
        f"{name} fits {reference} better when mirrored left to right",
        "the same side in all files of a study",
        "Look at both in one viewer; a file that was flipped without its header must be converted anew.",
        "warning",
    )


def _shifted(volume: NDArray[np.uint8]) -> Iterable[NDArray[np.uint8]]:
    """Yield the volume moved by up to two voxels left and right: mirroring moves a head that is not centred."""
    return (np.roll(volume, shift, axis=-1) for shift in range(-2, 3))


_LEVELS = 24


def _levels(z_scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return z-scores from -3 to 3 as whole numbers from 0 to 23."""
    return ((z_scores + 3.0) * (_LEVELS / 6.0)).clip(0, _LEVELS - 1).astype(np.uint8)


def _mutual_information(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mutual information, in nats, of two images given as levels."""
    counts = np.bincount(a.astype(np.int16) * _LEVELS + b, minlength=_LEVELS**2)
    joint = counts.reshape(_LEVELS, _LEVELS) / max(a.size, 1)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def check_repeats_within(fingerprints: Mapping[str, str], place: Place) -> list[Fault]:
    """Return sequences of one study that are the same image under two names."""
    first: dict[str, str] = {}
    faults = []
    for name, fingerprint in fingerprints.items():
        original = first.setdefault(fingerprint, name)
        if original != name:
            faults.append(
                place.fault(
                    "repeated_sequence",
                    f"{name} is the same image as {original}",
                    "two sequences",
                    f"Name the right file for {name}, or leave it out as missing.",
                    "warning",
                )
            )
    return faults


def check_repeats_between(studies: Sequence[Study], fingerprints: Mapping[str, Mapping[str, str]]) -> list[Fault]:
    """Return studies that share an image with an earlier study of the cohort.

    Args:
        studies: The whole cohort.
        fingerprints: study_id -> sequence -> hash of the voxels, for the studies that could be read.

    Returns:
        One fault per later study. It is an error when the two studies count as two patients (the same image could be
        trained on and tested on) or disagree in label, and a warning when they are one patient's.
    """
    first: dict[str, tuple[Study, str]] = {}
    faults = []
    for study in sorted(studies, key=lambda one: one.study_id):
        for name, fingerprint in fingerprints.get(study.study_id, {}).items():
            other, other_name = first.setdefault(fingerprint, (study, name))
            if other.study_id == study.study_id:
                continue
            same = other.patient_id == study.patient_id and other.label == study.label
            faults.append(
                Place(study.study_id).fault(
                    "duplicate_image",
                    f"its {name} is voxel for voxel the {other_name} of study {other.study_id}"
                    f" (patients {study.patient_id} and {other.patient_id})",
                    "each image under one study",
                    "Give both one patient_id, or keep one of the two studies.",
                    "warning" if same else "error",
                )
            )
            break
    return faults


def _without_trailing_ones(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = [int(size) for size in shape]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
