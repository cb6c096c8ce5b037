"""DICOM files -> frames: planes with their place, their times and the scale of their numbers; no pixel is decoded."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ImplicitVRLittleEndian

from idh_lightning.cohort.files import walk
from idh_lightning.inference.sequence_guess import agent_stated

_DIRECTORY = "1.2.840.10008.1.3.10"
_WHERE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_TIMES = ("EchoTime", "EffectiveEchoTime", "RepetitionTime", "InversionTime", "InversionTimes", "TriggerTime")
_SCALE = ("RescaleSlope", "RescaleIntercept")
_KIND = (
    "ImageType", "FrameType", "ComplexImageComponent", "ScanningSequence", "EchoPulseSequence",
    "EchoPlanarPulseSequence", "MRAcquisitionType", "DiffusionBValue", "StackID", "TemporalPositionIdentifier",
    "TemporalPositionIndex", "AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionTime",
    "FrameAcquisitionDateTime", "DimensionIndexValues",
)  # fmt: skip
_SERIES = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "InstanceNumber", "SeriesDescription", "ProtocolName", "Manufacturer", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "SeriesTime",
    "ContentDate", "ContentTime",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "DimensionIndexSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_GE_COMPONENT, _SIEMENS_B, _CREATOR = (0x0043, 0x102F), (0x0019, 0x100C), (0x0019, 0x0010)
_PRIVATE = (_GE_COMPONENT, _SIEMENS_B, _CREATOR)
_WANTED: list[Any] = [*_WHERE, *_TIMES, *_SCALE, *_KIND, *_SERIES, *_PRIVATE]
_SQUARE = 0.02
"""How far directions may be from length 1 and from right angles: those of vendors are rounded."""

_COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """Tags that all frames of a file share.

    Attributes:
        path: The file.
        study_uid: StudyInstanceUID, with PatientID: where identifiers were removed, patients may share the former.
        series_uid: SeriesInstanceUID, or a name made of the folder where there is none.
        number: SeriesNumber.
        description: SeriesDescription, or ProtocolName where there is none.
        modality: Such as MR.
        contrast: Whether a contrast agent is stated.
        acquired: Date and time of acquisition, YYYYMMDDHHMMSS..., "" where not stated.
        problem: Why its pixels cannot be used, or "".
    """

    path: Path
    study_uid: str
    series_uid: str
    number: str
    description: str
    modality: str
    contrast: bool
    acquired: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One plane of pixels.

    Attributes:
        header: Of its file.
        index: Its number within the file, from 0.
        uid: SOPInstanceUID and frame number.
        shape: Rows, columns.
        position: ImagePositionPatient, LPS mm, or None.
        orientation: ImageOrientationPatient, or None.
        spacing_mm: Between rows, between columns; or None.
        scale: Rescale slope and intercept.
        echo_ms: EchoTime, or None.
        repetition_ms: RepetitionTime, or None.
        inversion_ms: InversionTime, or None.
        b_value: Of diffusion, s/mm², or None.
        image_type: ImageType or FrameType.
        scanning_sequence: ScanningSequence; EP for echo-planar.
        is_3d: Whether all planes were excited at once; None where not stated.
        marks: What can tell frames of one place apart, by name.
    """

    header: FileHeader
    index: int
    uid: str
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    scale: tuple[float, float]
    echo_ms: float | None
    repetition_ms: float | None
    inversion_ms: float | None
    b_value: float | None
    image_type: tuple[str, ...]
    scanning_sequence: str
    is_3d: bool | None
    marks: Mapping[str, Hashable] = field(repr=False)

    @property
    def placed(self) -> bool:
        """Whether its tags say where its pixels lie, by directions of length 1 at right angles."""
        if self.position is None or self.orientation is None or self.spacing_mm is None:
            return False
        along, down = self.orientation[:3], self.orientation[3:]
        lean = abs(sum(a * b for a, b in zip(along, down, strict=True)))
        uneven = max(abs(math.hypot(*axis) - 1) for axis in (along, down))
        return max(lean, uneven) < _SQUARE and min(self.spacing_mm) > 0


@contextmanager
def pydicom_silenced() -> Iterator[None]:
    """Keep pydicom from warning of every value that breaks a rule of the standard: what matters is checked here."""
    log = logging.getLogger("pydicom")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def frames_in(folder: Path) -> tuple[list[Frame], dict[str, list[Path]]]:
    """Frames of all DICOM images in a folder and below it, or of one file; and the other files by the reason."""
    frames: list[Frame] = []
    unread: dict[str, list[Path]] = {}
    with pydicom_silenced():
        for path in _files(folder):
            if not _may_be_dicom(path):
                unread.setdefault("not DICOM", []).append(path)
                continue
            try:
                found, reason = _read(path)
            except Exception as error:  # whatever a library makes of a damaged file
                found, reason = [], f"damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            frames += found
            if reason:
                unread.setdefault(reason, []).append(path)
    return frames, unread


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        if folder.name.upper() != "DICOMDIR":
            yield folder
            return
        folder = folder.absolute().parent
    for place, subfolders, names in walk(folder):
        subfolders.sort()
        yield from (Path(place) / name for name in sorted(names) if (Path(place) / name).is_file())


def _may_be_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM: with its mark, or with an element of group 2 or 8 where it has no preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    group, element = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    return len(start) == 132 and group in (2, 8) and element <= 0x20


def _read(path: Path) -> tuple[list[Frame], str]:
    """Frames of a DICOM file, and why there are none."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_WANTED)
    syntax = dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    kind = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == _DIRECTORY:
        return [], _absent_of_directory(path)
    name = UID(kind).name
    if not dataset.get("Rows") or not dataset.get("Columns") or (name != kind and "Image" not in name):
        return [], f"no image: {name}" if kind else "not DICOM"
    number = int(dataset.get("NumberOfFrames") or 1)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    header = _header(dataset, path, syntax, kind)
    if number > 1 and len(each) != number:
        return [], f"{number} frames without a place of each ({UID(kind).name})"
    return [_frame(dataset, shared, each[i] if each else Dataset(), header, i) for i in range(number)], ""


def _absent_of_directory(path: Path) -> str:
    """Which files a DICOMDIR names that are not there; its own images are found without it."""
    records = pydicom.dcmread(path).get("DirectoryRecordSequence") or []
    listed = [record.ReferencedFileID for record in records if record.get("ReferencedFileID")]
    names = [Path(*([one] if isinstance(one, str) else one)) for one in listed]
    there = {str(one.relative_to(path.parent)).upper() for one in path.parent.rglob("*")}
    absent = [name for name in names if str(name).upper() not in there]
    more = f": {len(absent)} of its {len(names)} files are not there, such as {absent[0]}" if absent else ""
    return f"a directory of files (DICOMDIR){more}"


def _header(dataset: Dataset, path: Path, syntax: UID, kind: str) -> FileHeader:
    def text(*keywords: str) -> str:
        return next((str(dataset.get(one)).strip() for one in keywords if dataset.get(one)), "")

    series = text("SeriesInstanceUID") or f"{path.parent} {text('SeriesNumber')} {text('SeriesDescription')}"
    agents = dataset.get("ContrastBolusAgentSequence") or []
    date = text("AcquisitionDate", "SeriesDate", "ContentDate")
    time = text("AcquisitionTime", "SeriesTime", "ContentTime")
    return FileHeader(
        path=path,
        study_uid=" ".join(filter(None, (text("PatientID"), text("StudyInstanceUID")))),
        series_uid=series,
        number=_as_typed(text("SeriesNumber")),
        description=text("SeriesDescription", "ProtocolName"),
        modality=text("Modality"),
        contrast=agent_stated(text("ContrastBolusAgent")) or (bool(agents) and _administered(dataset)),
        acquired=text("AcquisitionDateTime") or (f"{date}{time}" if time else ""),
        problem=_problem(dataset, syntax, kind),
    )


def _administered(dataset: Dataset) -> bool:
    """Whether no functional group denies that the agent of an Enhanced image was given."""
    frames = [*(dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("Shared", "PerFrame"))]
    usages = [one for groups in frames for item in groups for one in item.get("ContrastBolusUsageSequence") or []]
    stated = {str(one.get("ContrastBolusAgentAdministered") or "") for one in usages}
    return stated != {"NO"}


def _as_typed(number: str) -> str:
    """Number as people type it, without the zeros or the plus sign before it that a file may hold."""
    try:
        return str(int(number))
    except ValueError:
        return number


def _problem(dataset: Dataset, syntax: UID, kind: str) -> str:
    """Why the pixels of a file cannot be used, or ""."""
    modality = str(dataset.get("Modality", ""))
    if modality not in ("", "MR"):
        return f"modality {modality}"
    if "Capture" in UID(kind).name:
        return "a secondary capture"
    if "MOSAIC" in _several(dataset.get("ImageType")):
        return "a mosaic of slices in one image, as of functional and diffusion series"
    colours, photometric = dataset.get("SamplesPerPixel") or 1, str(dataset.get("PhotometricInterpretation") or "")
    if colours != 1 or photometric not in ("", "MONOCHROME2"):
        return f"{photometric or 'colour'} images; expected MONOCHROME2, one number per voxel"
    try:
        decoder = get_decoder(syntax)
        missing = "" if decoder.is_available else "no decoder"
    except NotImplementedError:
        missing = "no decoder"
    if missing:
        return (
            f"its pixels are coded as {syntax.name} ({syntax}), which cannot be decoded here. Export it again as "
            "Explicit VR Little Endian, or convert a copy, for example with `gdcmconv --raw`"
        )
    return ""


def _frame(dataset: Dataset, shared: Dataset, own: Dataset, header: FileHeader, index: int) -> Frame:
    """Frame of a file; each value is that of the frame itself, else that of all frames, else that of the file."""

    def value(*keywords: str) -> Any:
        for groups in (own, shared):
            for element in groups:
                if element.VR == "SQ" and element.value and not element.tag.is_private:
                    for keyword in keywords:
                        if (found := element.value[0].get(keyword)) not in (None, ""):
                            return found
        return next((dataset.get(one) for one in keywords if dataset.get(one) not in (None, "")), None)

    def number(*keywords: str) -> float | None:
        found = value(*keywords)
        found = found[0] if isinstance(found, pydicom.multival.MultiValue) and found else found
        return None if found is None else float(found)

    def numbers(keyword: str, length: int) -> tuple[float, ...] | None:
        found = value(keyword)
        each = tuple(map(float, found)) if found is not None and len(found) == length else (math.nan,)
        return each if all(map(math.isfinite, each)) else None

    image_type = _several(value("FrameType", "ImageType"))
    echo, inversion = number("EchoTime", "EffectiveEchoTime"), number("InversionTime", "InversionTimes")
    b_value = _siemens_b(dataset) if (stated := number("DiffusionBValue")) is None else stated
    pulse = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}.get(str(value("EchoPulseSequence")), ())
    planar = ("EP",) if str(value("EchoPlanarPulseSequence")) == "YES" else ()
    acquisition, time = str(value("MRAcquisitionType") or ""), value("FrameAcquisitionDateTime", "AcquisitionTime")
    slope, intercept = number("RescaleSlope"), number("RescaleIntercept")
    marks = {
        "component": _component(dataset, value("ComplexImageComponent"), image_type),
        "image type": "/".join(image_type).upper(),
        "stack": value("StackID"),
        "echo time": None if echo is None else round(echo, 1),
        "inversion time": None if inversion is None else round(inversion),
        "b-value": b_value,
        "time point": value("TemporalPositionIndex", "TemporalPositionIdentifier"),
        "acquisition": value("FrameAcquisitionNumber", "AcquisitionNumber"),
        "trigger time": number("TriggerTime"),
        **_dimensions(dataset, own),
        "time": None if time is None else str(time),
        "instance": dataset.get("InstanceNumber") if index == 0 else None,
    }
    return Frame(
        header=header,
        index=index,
        uid=f"{dataset.get('SOPInstanceUID') or header.path} {index}",
        shape=(int(dataset.Rows), int(dataset.Columns)),
        position=numbers("ImagePositionPatient", 3),
        orientation=numbers("ImageOrientationPatient", 6),
        spacing_mm=numbers("PixelSpacing", 2),
        scale=(1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
        echo_ms=echo,
        repetition_ms=number("RepetitionTime"),
        inversion_ms=inversion,
        b_value=b_value,
        image_type=image_type,
        scanning_sequence=" ".join((*(_several(value("ScanningSequence")) or pulse), *planar)),
        is_3d=acquisition.startswith("3D") if acquisition else None,
        marks={name: found for name, found in marks.items() if found not in (None, "")},
    )


def _several(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value or ()))


def _private(dataset: Dataset, tag: tuple[int, int]) -> float | None:
    if tag not in dataset:
        return None
    try:
        return float(dataset[tag].value)
    except (TypeError, ValueError):
        return None


def _siemens_b(dataset: Dataset) -> float | None:
    """B-value by Siemens, whose element another vendor may use for something else."""
    creator = str(dataset[_CREATOR].value).upper() if _CREATOR in dataset else "SIEMENS"
    return _private(dataset, _SIEMENS_B) if creator.startswith("SIEMENS") else None


def _component(dataset: Dataset, stated: Any, image_type: tuple[str, ...]) -> str:
    """Magnitude, phase, real or imaginary, as one of several tags says."""
    if stated:
        return str(stated).lower()
    if "GE" in str(dataset.get("Manufacturer", "")).upper() and _GE_COMPONENT in dataset:
        code = _private(dataset, _GE_COMPONENT)
        return {1.0: "phase", 2.0: "real", 3.0: "imaginary"}.get(code or 0.0, "magnitude")
    words = [word.upper() for word in image_type[2:]]
    return next((_COMPONENTS[word] for word in words if word in _COMPONENTS), "magnitude")


def _dimensions(dataset: Dataset, own: Dataset) -> dict[str, Hashable]:
    """Indices of an Enhanced frame along the dimensions that its file states, but those of its place."""
    content = own.get("FrameContentSequence") or [Dataset()]
    indices = content[0].get("DimensionIndexValues")
    pointers = dataset.get("DimensionIndexSequence") or []
    if indices is None:
        return {}
    values = [indices] if isinstance(indices, int) else list(indices)
    named: dict[str, Hashable] = {}
    for pointer, index in zip(pointers, values, strict=False):
        tag = pointer.get("DimensionIndexPointer")
        keyword = pydicom.datadict.keyword_for_tag(tag) if tag is not None else ""
        if keyword not in ("StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient"):
            named[f"dimension {keyword or tag}"] = int(index)
    return named
