"""Made-up MR images as DICOM files, classic and Enhanced, by pydicom alone."""

from __future__ import annotations

from collections.abc import Sequence as Several
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, -0.6)
ORIGIN_MM = (-90.0, -80.0, -70.0)
SPACING_MM = (3.0, 2.5, 5.0)
"""Between columns, between rows, between slices."""


def lump(slices: int = 24, rows: int = 40, columns: int = 32) -> np.ndarray:
    """Voxels [D, H, W], uint16, unlike themselves along every axis, and each plane unlike the others."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, rows, columns)), indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 + z**2 < 1
    return (inside * (600 + 250 * x + 120 * y + 90 * z)).astype(np.uint16)


def base(**tags: object) -> Dataset:
    """Data set with what every image has; tags by keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    usual: dict[str, object] = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": generate_uid(), "Modality": "MR", "PatientID": "made-up",
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SeriesNumber": 4,
        "SeriesDescription": "T2 TSE tra", "ImageType": ["ORIGINAL", "PRIMARY", "M"], "ScanningSequence": "SE",
        "EchoTime": 90.0,
        "RepetitionTime": 4000.0, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 0,
    }  # fmt: skip
    for keyword, value in (usual | tags).items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def places(number: int, orientation: Several[float], origin: Several[float], step_mm: float) -> list[list[float]]:
    """ImagePositionPatient of each slice."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        [round(float(value), 6) for value in np.array(origin) + normal * step_mm * index] for index in range(number)
    ]


def classic(
    voxels: np.ndarray,
    *,
    orientation: Several[float] = STRAIGHT,
    origin: Several[float] = ORIGIN_MM,
    spacing: Several[float] = SPACING_MM,
    **tags: object,
) -> list[Dataset]:
    """One data set for each slice of voxels [D, H, W]."""
    slices = []
    for index, position in enumerate(places(len(voxels), orientation, origin, spacing[2])):
        dataset = base(**{"InstanceNumber": index + 1, "SliceThickness": spacing[2]} | tags)
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = list(orientation), position
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.Rows, dataset.Columns = voxels.shape[1:]
        dataset.PixelData = voxels[index].astype("<u2").tobytes()
        slices.append(dataset)
    return slices


def group(**tags: object) -> Sequence:
    """Functional group: a sequence of one item."""
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return Sequence([item])


def frame(
    position: Several[float], pixels: np.ndarray, *, stack: str = "1", time: int = 1, **groups: Sequence
) -> tuple:
    """Frame of an Enhanced image: its functional groups and its pixels [H, W]."""
    item = Dataset()
    item.PlanePositionSequence = group(ImagePositionPatient=list(position))
    item.FrameContentSequence = group(StackID=stack, TemporalPositionIndex=time)
    for keyword, sequence in groups.items():
        setattr(item, keyword, sequence)
    return item, pixels


def enhanced(
    frames: Several[tuple],
    *,
    orientation: Several[float] = STRAIGHT,
    spacing: Several[float] = SPACING_MM,
    echo_ms: float = 90.0,
    **tags: object,
) -> Dataset:
    """One Enhanced MR image of frames in the order given."""
    dataset = base(SOPClassUID=EnhancedMRImageStorage, **tags)
    for keyword in ("EchoTime", "RepetitionTime", "ScanningSequence"):
        delattr(dataset, keyword)
    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=[spacing[1], spacing[0]], SliceThickness=spacing[2])
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(orientation))
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=4000.0)
    shared.MREchoSequence = group(EffectiveEchoTime=echo_ms)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([item for item, _ in frames])
    dataset.EchoPulseSequence = "SPIN"
    dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames[0][1].shape
    dataset.PixelData = np.stack([pixels for _, pixels in frames]).astype("<u2").tobytes()
    return dataset


def frames_of(voxels: np.ndarray, origin: Several[float] = ORIGIN_MM, **what: object) -> list[tuple]:
    """Frames of voxels [D, H, W], one place after the other."""
    positions = places(len(voxels), STRAIGHT, origin, SPACING_MM[2])
    return [frame(at, plane, **what) for at, plane in zip(positions, voxels, strict=True)]  # type: ignore[arg-type]


def save(datasets: Several[Dataset], folder: Path, prefix: str = "IM") -> Path:
    """Write data sets as files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{prefix}{index:04d}.dcm", enforce_file_format=True)
    return folder
