"""DICOM frames -> volumes: one for each echo, time point, orientation and kind of image, and written as NIfTI."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from idh_lightning.errors import CohortError
from idh_lightning.files import atomic_write
from idh_lightning.inference.dicom_frames import Frame, frames_in, pydicom_silenced
from idh_lightning.inference.predictor import MOST_VOXELS
from idh_lightning.inference.sequence_guess import guess_sequence
from idh_lightning.inference.series import Series
from idh_lightning.volumes.reading import Geometry

MOST_PARTS = 8
"""Volumes of one series that are offered one by one; more are a course in time, diffusion or projections."""

_SAME_PLACE_MM = 0.05
_SAME_DIRECTION = 0.005
_SAME_SPACING_MM = 0.001
_UNEVEN = 0.1
_SIDEWAYS_MM = 1.0

Part = tuple[str, list[Frame], str]
"""Name of the part, its frames in the order of their places, and why it is no volume, or ""."""


def dicom_series(folder: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """Series of all DICOM images in a folder and below it, by number, and the other files by the reason.

    A series that holds several volumes (echoes, time points, orientations, kinds of image) becomes one for each, with
    letters after its number. Files of one series may lie in several folders, and a file may be there twice.
    """
    frames, unread = frames_in(folder)
    groups: dict[tuple[str, str], dict[Hashable, Frame]] = defaultdict(dict)
    for frame in frames:
        known, key = groups[frame.header.study_uid, frame.header.series_uid], (frame.uid, frame.position)
        if key in known and frame.index == 0:
            unread.setdefault("there twice", []).append(frame.header.path)
        known.setdefault(key, frame)
    found = [one for group in groups.values() for one in _series_of(list(group.values()))]
    return sorted(found, key=lambda one: one.order), unread


def _series_of(frames: list[Frame]) -> list[Series]:
    parts = _parts(frames)
    letters = [""] if len(parts) == 1 else "abcdefgh"
    b_value = max(frame.b_value or 0.0 for frame in frames)
    return [_series(*part, letter, b_value) for part, letter in zip(parts, letters, strict=False)]


def _series(part: str, frames: list[Frame], problem: str, letter: str, b_value: float) -> Series:
    """One part of a series; its greatest b-value makes diffusion of all parts, also of that without weighting."""
    first, middle = frames[0].header, frames[len(frames) // 2]
    places = len(_places(frames)) if all(one.placed for one in frames) else len(frames)
    problem = problem or next((one.header.problem for one in frames if one.header.problem), "")
    guess, why = guess_sequence(
        first.description,
        contrast=first.contrast,
        slices=places,
        image_type=middle.image_type,
        scanning_sequence=middle.scanning_sequence,
        b_value=b_value,
        echo_ms=middle.echo_ms,
        repetition_ms=middle.repetition_ms,
        inversion_ms=middle.inversion_ms,
    )
    component = str(middle.marks.get("component", "magnitude"))
    if guess and component not in ("magnitude", "mixed"):
        guess, why = "", f"{component} image"
    if first.modality not in ("", "MR"):
        guess, why = "", first.problem
    geometry = None if problem else _geometry(frames)
    return Series(
        uid=first.series_uid,
        study_uid=first.study_uid,
        number=f"{first.number}{letter}",
        description=first.description,
        part=part,
        slices=places,
        folder=Path(os.path.commonpath([one.header.path.parent for one in frames])),
        contrast=first.contrast,
        acquired=min(one.header.acquired for one in frames),
        is_3d=middle.is_3d,
        derived="DERIVED" in {word.upper() for word in middle.image_type[:1]},
        geometry=geometry,
        guess=guess,
        why=why,
        problem=problem,
        save=partial(save_volume, frames),
        frames=tuple(frames),
        echo_ms=middle.echo_ms,
        repetition_ms=middle.repetition_ms,
        inversion_ms=middle.inversion_ms,
    )


def _parts(frames: list[Frame]) -> list[Part]:
    """Volumes in the frames of a series; one part with a problem where they are none or too many."""
    if not all(one.placed for one in frames):
        tags = "ImagePositionPatient, ImageOrientationPatient, PixelSpacing"
        return [("", frames, f"its planes have no place that can be used ({tags})")]
    parts: list[Part] = []
    grids = _grids(frames)
    for index, grid in enumerate(grids, start=1):
        name = f"orientation or grid {index}" if len(grids) > 1 else ""
        parts += [(", ".join(filter(None, (name, what))), some, problem) for what, some, problem in _apart(grid)]
    if len(parts) > MOST_PARTS:
        return [("", frames, f"{len(parts)} volumes of different orientation or grid in one series")]
    return [(what, some, problem or _uneven(some)) for what, some, problem in parts]


def _grids(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames with the same direction, size, spacing and stack."""
    grids: list[tuple[NDArray[np.float64], Hashable, list[Frame]]] = []
    for frame in frames:
        lengths = np.array([*(frame.orientation or ()), *(frame.spacing_mm or ())])
        rest = (frame.shape, frame.marks.get("stack"))
        for known, others, members in grids:
            if others == rest and (np.abs(known - lengths) < [_SAME_DIRECTION] * 6 + [_SAME_SPACING_MM] * 2).all():
                members.append(frame)
                break
        else:
            grids.append((lengths, rest, [frame]))
    return [members for _, _, members in grids]


def _depths(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Position of each frame along the normal of the first, mm."""
    along, down = np.reshape(np.array(frames[0].orientation), (2, 3))
    return np.asarray(np.array([one.position for one in frames]) @ np.cross(along, down))


def _places(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames by their place along the normal, in ascending order."""
    depths = _depths(frames)
    order = np.argsort(depths, kind="stable")
    places: list[list[Frame]] = []
    last = -np.inf
    for index in order:
        if depths[index] - last > _SAME_PLACE_MM:
            places.append([])
            last = depths[index]
        places[-1].append(frames[index])
    return places


def _most_at_one_place(frames: Sequence[Frame]) -> int:
    return max(map(len, _places(frames)))


def _apart(frames: Sequence[Frame]) -> list[Part]:
    """Volumes among frames of one grid: told apart, where a place is taken several times, by what their tags state."""
    places = _places(frames)
    most = max(map(len, places))
    if most == 1:
        return [("", [one for (one,) in places], "")]
    for name in dict.fromkeys(name for frame in frames for name in frame.marks if name not in ("time", "instance")):
        groups: dict[Hashable, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.marks.get(name)].append(frame)
        if 1 < len(groups) <= most and max(map(_most_at_one_place, groups.values())) < most:
            break
    else:
        name, groups = "time", _by_time(places, most)
    if not groups:
        counts = Counter(map(len, places))
        reason = f"{min(counts)} to {most}" if len(counts) > 1 else f"{most}"
        return [("", list(frames), f"{reason} images at each place, and no tag tells them apart")]
    if len(groups) > MOST_PARTS:
        return [("", list(frames), f"{len(groups)} images at each place, told apart by {name}: no single volume")]
    parts: list[Part] = []
    for order, (value, group) in enumerate(groups.items(), start=1):
        label = f"time {order} of {len(groups)}" if name in ("time", "time point") else f"{name} {value}"
        parts += [(", ".join(filter(None, (label, what))), some, problem) for what, some, problem in _apart(group)]
    return parts


def _by_time(places: list[list[Frame]], most: int) -> dict[Hashable, list[Frame]]:
    """First, second, ... frame of each place by the time of acquisition; empty where that does not tell them apart."""
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for place in places:
        times = [str(frame.marks.get("time", "")) for frame in place]
        if len(place) != most or len(set(times)) != most or "" in times:
            return {}
        for rank, index in enumerate(np.argsort(times)):
            groups[rank].append(place[index])
    return dict(groups)


def _uneven(frames: Sequence[Frame]) -> str:
    """Why frames of different places, in order, are no volume, or ""."""
    if len(frames) < 2:
        return ""
    steps = np.diff(_depths(frames))
    usual = float(np.median(steps))
    if np.abs(steps / usual - 1).max() > _UNEVEN:
        return (
            f"its slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; expected one distance: a slice is "
            "missing. Export the series again"
        )
    places = np.array([one.position for one in frames])
    along, down = np.reshape(np.array(frames[0].orientation), (2, 3))
    sideways = np.abs((places - places[0]) @ np.stack([along, down], axis=1)).max()
    if sideways > _SIDEWAYS_MM:
        return f"its slices are shifted against each other by up to {sideways:.1f} mm in their plane (a sheared volume)"
    return ""


def _geometry(frames: Sequence[Frame]) -> Geometry:
    """Grid of frames in the order of their places."""
    first = frames[0]
    along, down = np.reshape(np.array(first.orientation), (2, 3))
    along = along / np.linalg.norm(along)
    down = down - along * (along @ down)
    down = down / np.linalg.norm(down)
    depths = _depths(frames)
    step = (depths[-1] - depths[0]) / (len(frames) - 1) if len(frames) > 1 else 1.0
    rows_mm, columns_mm = first.spacing_mm or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * columns_mm, down * rows_mm, np.cross(along, down) * step], axis=1)
    affine[:3, 3] = first.position
    return Geometry.from_affine((first.shape[1], first.shape[0], len(frames)), affine)


def save_volume(frames: Sequence[Frame], path: Path) -> Path:
    """Write frames, in the order of their places, as NIfTI: float32, each frame with its own slope and intercept.

    Raises:
        CohortError: If the pixels of a file cannot be decoded, or are too many.
    """
    geometry = _geometry(frames)
    if np.prod(geometry.size, dtype=object) > MOST_VOXELS:
        raise CohortError(f"{geometry.size} voxels; expected at most {MOST_VOXELS:.2e} in all")
    voxels = np.empty(geometry.size[::-1], np.float32)
    slots: dict[Path, list[int]] = defaultdict(list)
    for slot, frame in enumerate(frames):
        slots[frame.header.path].append(slot)
    for file, its in slots.items():
        _decode(file, [frames[slot] for slot in its], its, voxels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        sitk.WriteImage(geometry.image(voxels), str(temporary), useCompression=True, compressionLevel=1)
    return path


def _decode(file: Path, frames: Sequence[Frame], slots: Sequence[int], voxels: NDArray[np.float32]) -> None:
    """Fill slots of a volume [D, H, W] with some frames of one file."""
    try:
        with pydicom_silenced():
            dataset = pydicom.dcmread(file, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:  # a file without preamble
                implicit, little = dataset.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
            pixels = iter_pixels(dataset, indices=[frame.index for frame in frames])
            for frame, slot, plane in zip(frames, slots, pixels, strict=True):
                slope, intercept = frame.scale
                voxels[slot] = plane.astype(np.float64) * slope + intercept
    except CohortError:
        raise
    except Exception as error:  # whatever a library makes of a damaged file
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CohortError(f"{file}: its pixels cannot be decoded ({text}). Export it again") from error
