"""NIfTI files of a DICOM converter: series by the JSON sidecars beside them, whatever the files are called."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib

from idh_lightning.cohort.files import NIFTI, walk
from idh_lightning.cohort.unlabelled import sequence_of
from idh_lightning.inference.sequence_guess import agent_stated, guess_sequence
from idh_lightning.inference.series import Series
from idh_lightning.volumes.reading import header_geometry

_STATED = ("SeriesDescription", "ProtocolName", "EchoTime")


def sidecar_series(folder: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """Series of the NIfTI files with a JSON sidecar in a folder and below it, and the other NIfTI files by the reason.

    None are found where the name of any file states its sequence: then the names count, not the sidecars. Sidecars are
    those of BIDS and dcm2niix: times in seconds.
    """
    found: list[Series] = []
    unread: dict[str, list[Path]] = defaultdict(list)
    for place, subfolders, names in walk(folder):
        subfolders.sort()
        for name in sorted(names):
            suffix = next((end for end in sorted(NIFTI, reverse=True) if name.lower().endswith(end)), None)
            if suffix is None or name.startswith("."):
                continue
            if sequence_of(name):
                return [], {}
            path = Path(place) / name
            tags = _tags(path.with_name(name[: -len(suffix)] + ".json"))
            if tags is None:
                unread["no JSON sidecar beside it"].append(path)
                continue
            try:
                found.append(_series(path, name[: -len(suffix)], tags))
            except Exception as error:  # whatever a library makes of a damaged file
                unread[f"damaged ({' '.join(str(error).split())[:120]})"].append(path)
    numbers = Counter((one.study_uid, one.number) for one in found)
    lettered: Counter[tuple[str, str]] = Counter()
    named = []
    for one in found:
        key = one.study_uid, one.number
        letter = chr(ord("a") + lettered[key] % 26) if numbers[key] > 1 else ""
        lettered[key] += 1
        named.append(Series(**{**vars(one), "number": f"{one.number}{letter}"}))
    return sorted(named, key=lambda one: one.order), dict(unread)


def _tags(path: Path) -> dict[str, Any] | None:
    try:
        tags = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tags if isinstance(tags, dict) and any(key in tags for key in _STATED) else None


def _series(path: Path, stem: str, tags: dict[str, Any]) -> Series:
    def text(*keys: str) -> str:
        return next((str(tags[key]) for key in keys if tags.get(key)), "")

    def milliseconds(key: str) -> float | None:
        seconds = tags.get(key)
        return round(float(seconds) * 1000, 3) if isinstance(seconds, int | float) else None

    header: Any = nib.load(path)
    size = [length for length in header.shape if length > 1]
    image_type = tags.get("ImageType") or ()
    description = text("SeriesDescription", "ProtocolName")
    acquisition = text("MRAcquisitionType")
    echo_ms, repetition_ms = milliseconds("EchoTime"), milliseconds("RepetitionTime")
    inversion_ms = milliseconds("InversionTime")
    given = agent_stated(text("ContrastBolusIngredient", "ContrastBolusAgent"))
    slices = int(header.shape[2]) if len(header.shape) > 2 else 1
    guess, why = guess_sequence(
        description,
        contrast=given,
        slices=slices,
        image_type=tuple(map(str, image_type)) if isinstance(image_type, list) else (),
        scanning_sequence=text("ScanningSequence"),
        echo_ms=echo_ms,
        repetition_ms=repetition_ms,
        inversion_ms=inversion_ms,
    )
    return Series(
        uid=stem,
        study_uid=text("StudyInstanceUID") or str(path.parent),
        number=text("SeriesNumber"),
        description=description,
        slices=slices,
        folder=path.parent,
        contrast=given,
        acquired=text("AcquisitionDateTime", "AcquisitionTime"),
        is_3d=acquisition.startswith("3D") if acquisition else None,
        derived="DERIVED" in map(str, image_type),
        geometry=header_geometry(header) if len(size) == 3 else None,
        guess=guess,
        why=why,
        problem="" if len(size) == 3 else f"{len(size)} dimensions; expected one volume",
        save=lambda _: path,
        echo_ms=echo_ms,
        repetition_ms=repetition_ms,
        inversion_ms=inversion_ms,
    )
