"""Checks of the images of one study against each other, and of the studies of a cohort: generators of faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from idh_lightning.cohort.study import Fault, Study
from idh_lightning.volumes.brain import background, foreground
from idh_lightning.volumes.checks import Place
from idh_lightning.volumes.information import LEVELS, mutual_information
from idh_lightning.volumes.registration import Registration

BRAIN_LEAST_ML = 500.0

EXTRACTED_LEAST_ML = 400.0
"""What is extracted from a head and is smaller is no brain: of 53 real heads the smallest brain is three times that."""

CUT_TUMOUR = 0.02
"""Share of the tumour mask outside the brain above which there is a warning."""

MOST_TUMOUR = 0.5
"""Share of the brain: of 68 real masks the largest, with oedema, covers 0.17, of 60 synthetic ones 0.26; grey matter,
white matter and CSF together 0.9 and more."""

WIDEST_TUMOUR = 0.8
"""Share of the brain's length along each of the three axes at once: of 69 real masks the widest spans 0.58, of 150
synthetic ones 0.61, grey matter alone 0.9 and more."""

LOST_STRIPPED, LOST = (0.02, 0.1), (0.15, 0.25)
"""Share of the head that an image may lack before there is a warning, and before it counts as damaged, where the skull
is gone and where it is there. Of 16 stripped real studies and 120 synthetic ones none lacks 0.005; of 54 unstripped
ones, whose files were cut and filled differently, the worst lacks 0.142."""

FAILED, POOR = 0.2, 0.25
"""Quality of a registration below which it counts as failed, and as doubtful."""

_LOST_STEP_MM = 4.0


def check_mask_place(labels: NDArray[np.float32], brain: NDArray[np.bool_], place: Place) -> Iterator[Fault]:
    """Fault of a mask whose labels [D, H, W] lie outside the brain [D, H, W] of the same grid, or fill it."""
    tumour = labels != 0
    if not tumour.any():
        return  # already named as empty
    within = int(np.count_nonzero(tumour & brain))
    inside, filled = within / np.count_nonzero(tumour), within / max(int(np.count_nonzero(brain)), 1)
    spans = min(1.0, *(one / max(other, 1) for one, other in zip(_lengths(tumour), _lengths(brain), strict=True)))
    if filled > MOST_TUMOUR or spans > WIDEST_TUMOUR:
        values, counts = np.unique(labels[tumour & brain], return_counts=True)
        shares = ", ".join(
            f"{value:g} {count / within:.0%}" for value, count in list(zip(values, counts, strict=True))[:8]
        )
        yield place.fault(
            "mask_of_the_brain",
            f"the mask covers {filled:.0%} of the brain (its labels: {shares}) and spans {spans:.0%} of its "
            "length, width and height",
            f"a tumour, at most {MOST_TUMOUR:.0%}, and {WIDEST_TUMOUR:.0%} across",
            "Name the tumour segmentation: this is one of tissues (grey matter, white matter, CSF) or of the whole "
            "brain. If one label of it is the tumour, save that one alone.",
        )
    elif inside < 0.8:
        yield place.fault(
            "misaligned_mask", f"{inside:.0%} of the mask lies in the brain", "nearly all of it",
            "Check that mask and images belong to the same session, and that no step flipped or moved one of them.",
            "error" if inside < 0.5 else "warning",
        )  # fmt: skip
    elif inside < 1 - CUT_TUMOUR:
        yield place.fault(
            "cut_tumour", f"{1 - inside:.1%} of the tumour mask lies outside the brain that was found",
            f"at most {CUT_TUMOUR:.0%}",
            "Look at its picture, for `prepare` with figures=true. Where the brain is cut, strip the skull from all "
            "sequences with another tool and name those files; where the mask is too wide, correct it.", "warning",
        )  # fmt: skip


def _lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Voxels that a mask [D, H, W] extends along each axis, the outermost 2% of it at each end left out."""
    thinned = mask[tuple(slice(None, None, 1 + (size > 100)) for size in mask.shape)]  # enough, and eight times as fast
    sums = (np.cumsum(np.count_nonzero(thinned, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return [int(np.ptp(np.searchsorted(total, (0.02 * total[-1], 0.98 * total[-1])))) for total in sums]


def check_brain(brain_ml: float, stripped: bool, place: Place) -> Iterator[Fault]:
    """Fault of a brain that is too small to be one, or warning of a skull that is still there."""
    if brain_ml < EXTRACTED_LEAST_ML and not stripped:
        yield place.fault(
            "no_brain",
            f"the image is no skull-stripped one, and the brain extracted from it measures {brain_ml:.0f} mL",
            f"a head whose brain measures at least {EXTRACTED_LEAST_ML:.0f} mL",
            "Look at the image: is it a whole head, and is the orientation in its header right? If so, strip the skull "
            "from all sequences with another tool (HD-BET or SynthStrip, say) and name those files; else exclude the "
            "study.",
        )  # fmt: skip
    elif brain_ml < BRAIN_LEAST_ML:
        yield place.fault(
            "small_brain", f"the brain that was found measures {brain_ml:.0f} mL", f"at least {BRAIN_LEAST_ML:.0f} mL",
            "Look at the image: wrong spacing, partial coverage or failed skull-stripping.", "warning",
        )  # fmt: skip
    elif not stripped:
        yield place.fault(
            "skull_not_stripped",
            f"the head is there with skull and scalp; a brain of {brain_ml:.0f} mL was extracted from it",
            "a skull-stripped image, or a brain that was found whole",
            "Look at its picture (on the page of the study; of `prepare`, with figures=true): all of the brain should "
            "be there, and nothing else.",
            "warning",
        )  # fmt: skip


def check_coverage(covered: float, name: str, leader: str, place: Place) -> Iterator[Fault]:
    """Fault of an image that was brought to the grid of the reference, of whose brain it covers this much.

    Args:
        covered: Share of the brain.
        name: Sequence, or "mask".
        leader: Registered sequence with which it was moved; "" where its header was believed.
        place: Names the file.
    """
    if covered < 0.95:
        yield place.fault(
            "disagreeing_fields_of_view", f"the field of view of {name} holds {covered:.0%} of the brain",
            "nearly all of it",
            "Check that the file shows the whole head and belongs to this session; if so, register it with another "
            "tool and name that file, else leave it out."
            if leader else
            "Register the sequences to each other (data.registration=auto does), or check that the file belongs to "
            "this session.",
        )  # fmt: skip
    elif not leader:
        yield place.fault(
            "different_grid", f"{name} lies on another grid; it is resampled", "one grid for all sequences",
            "None needed if it lies on the others by its header; else register it first, or draw it on one of their "
            "grids." if name == "mask" else
            "None needed if the sequences are registered; otherwise set data.registration=auto.", "warning",
        )  # fmt: skip
    elif leader != name:
        yield place.fault(
            "different_grid", f"{name} lies on the grid of {leader} and was moved with it", "one grid for all",
            f"None needed if the mask was drawn on {leader}.", "warning",
        )  # fmt: skip


def check_registration(found: Registration, place: Place) -> Fault:
    """Note of a sequence that was registered; fault of one whose registration cannot be trusted."""
    if found.quality < POOR:
        return place.fault(
            "poor_registration", found.words, f"a quality of {POOR:g} at least",
            f"Check that the file shows the same head in the same session as {found.reference}, with the orientation "
            "right in its header. If so, register it with another tool (ANTs or FSL FLIRT, say) and name that file, or "
            "where the headers are right, `prepare` and `train` with data.registration=never; else leave the sequence "
            "or the study out.",
            "error" if found.quality < FAILED else "warning",
        )  # fmt: skip
    return place.fault(
        "registered", found.words, f"sequences in one place, or a quality of {POOR:g} at least",
        "Look at its picture (on the page of the study; of `prepare`, with figures=true): edges should go on from "
        "square to square.", "warning",
    )  # fmt: skip


def check_lost_parts(images: Mapping[str, sitk.Image], *, stripped: bool, place: Place) -> Iterator[Fault]:
    """Fault of the sequence that lacks most of the head, if it lacks more than it may: slices that read as zero, say.

    Args:
        images: Sequence -> image, all on one grid.
        stripped: Whether the skull is gone.
        place: Names the study.
    """
    lost, name = _most_lost(images)
    warned, refused = LOST_STRIPPED if stripped else LOST
    if lost > warned:
        yield place.fault(
            "lost_part", f"{name} shows nothing in {lost:.0%} of the head that the others show", "the whole head",
            "Look at the file: slices that were lost, a part that was cut away, or another head. Replace it or exclude "
            "the study.", "error" if lost > refused else "warning",
        )  # fmt: skip


def _most_lost(images: Mapping[str, sitk.Image]) -> tuple[float, str]:
    """Largest share of the head that one image lacks, and the name of its sequence.

    An image lacks what is its background while most of the others clearly show something there.
    """
    shown, there = [], []
    for image in images.values():
        steps = [max(1, round(_LOST_STEP_MM / mm)) for mm in image.GetSpacing()]
        voxels = sitk.GetArrayViewFromImage(image)[tuple(slice(None, None, step) for step in steps[::-1])]
        away = np.abs(voxels - background(voxels))
        shown.append(away > 0.15 * np.percentile(away, 99))
        there.append(foreground(voxels, float(np.prod(image.GetSpacing()) * np.prod(steps)))[0])
    found = (0.0, "")
    for index, name in enumerate(images):
        others = [mask for other, mask in enumerate(shown) if other != index]
        head = np.mean(others, axis=0) > 0.5 if others else np.zeros(1, dtype=bool)
        if head.any():
            found = max(found, (float(1 - there[index][head].mean()), name))
    return found


def check_sides_by_content(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    brain: NDArray[np.bool_],
    presence: Sequence[bool],
    names: Sequence[str],
    place: Place,
) -> Iterator[Fault]:
    """Doubts about sequences (and a mask) that fit the reference better when mirrored left to right.

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
    for index in present[1:]:
        direct, mirrored = (
            max(mutual_information(reference, moved[inside]) for moved in _shifted(other))
            for other in (levels[index], levels[index][..., ::-1])
        )
        if mirrored > 1.1 * direct:
            yield _side_doubt(place, names[index], names[present[0]])
    bright = [index for index in present if names[index] in ("FLAIR", "T2")]
    if mask is not None and bright:
        own, other = mask & brain, mask[..., ::-1] & brain & ~mask
        # Gliomas are bright on T2 and nearly all on FLAIR: a mask beside a brighter lesion was mirrored.
        if other.sum() > 0.3 * own.sum() > 0 and all(
            image[index][other].mean() > image[index][own].mean() + 0.4 for index in bright
        ):
            yield _side_doubt(place, "the mask", names[bright[0]])


def _side_doubt(place: Place, name: str, reference: str) -> Fault:
    return place.fault(
        "left_right_doubt", f"{name} fits {reference} better when mirrored left to right",
        "the same side in all files of a study",
        "Look at both in one viewer; a file that was flipped without its header must be converted anew.", "warning",
    )  # fmt: skip


def _shifted(volume: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the volume moved by up to two voxels left and right: mirroring moves a head that is not centred."""
    return (np.roll(volume, shift, axis=-1) for shift in range(-2, 3))


def _levels(z_scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Z-scores from -3 to 3 as whole numbers from 0 to 23."""
    return ((z_scores + 3.0) * (LEVELS / 6.0)).clip(0, LEVELS - 1).astype(np.uint8)


def check_repeats_within(fingerprints: Mapping[str, str], place: Place) -> Iterator[Fault]:
    """Warnings of sequences of one study that are the same image under two names."""
    first: dict[str, str] = {}
    for name, fingerprint in fingerprints.items():
        if (original := first.setdefault(fingerprint, name)) != name:
            yield place.fault(
                "repeated_sequence", f"{name} is the same image as {original}", "two sequences",
                f"Name the right file for {name}, or leave it out as missing.", "warning",
            )  # fmt: skip


def check_repeats_between(studies: Sequence[Study], fingerprints: Mapping[str, Mapping[str, str]]) -> Iterator[Fault]:
    """Faults of studies that share an image with an earlier study of the cohort, one per later study.

    It is an error when the two studies count as two patients (the same image could be trained on and tested on) or
    disagree in label, and a warning when they are one patient's.

    Args:
        studies: The whole cohort.
        fingerprints: study_id -> sequence -> hash of the voxels, for the studies that could be read.
    """
    first: dict[str, tuple[Study, str]] = {}
    for study in sorted(studies, key=lambda one: one.study_id):
        for name, fingerprint in fingerprints.get(study.study_id, {}).items():
            other, other_name = first.setdefault(fingerprint, (study, name))
            if other.study_id == study.study_id:
                continue
            same = other.patient_id == study.patient_id and other.label == study.label
            yield Place(study.study_id).fault(
                "duplicate_image",
                f"its {name} is voxel for voxel the {other_name} of study {other.study_id}"
                f" (patients {study.patient_id} and {other.patient_id})", "each image under one study",
                "Give both one patient_id, or keep one of the two studies.", "warning" if same else "error",
            )  # fmt: skip
            break
