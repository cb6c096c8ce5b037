"""Results of a prediction as DICOM: tumour as Segmentation, map as Parametric Map, summary as encapsulated PDF."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import matplotlib.image
import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.base import SOPClass
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from matplotlib.figure import Figure
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

import idh_lightning
from idh_lightning.errors import CohortError
from idh_lightning.files import atomic_write
from idh_lightning.inference.dicom_frames import Frame, pydicom_silenced
from idh_lightning.inference.prediction import StudyPrediction
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.inference.series import Series
from idh_lightning.volumes.reading import Geometry

NAME = "idh_lightning"

CAUTION = "Research software, not for clinical use"

_EQUIPMENT = {"manufacturer": NAME, "manufacturer_model_name": NAME, "device_serial_number": "none"}

SERIES_NUMBERS = {"tumour": 9101, "map": 9102, "summary": 9103}

_OFTEN_ABSENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Tags that may be empty but must be there, and that de-identified files often lack."""

_A4_INCHES = (8.27, 11.69)


def write_dicom(answer: StudyPrediction, taken: Sequence[Series], output: Path | ResultFolder) -> list[Path]:
    """Write the tumour, the map and a summary of a prediction as DICOM into a folder; return the files.

    Each refers to the series on whose grid tumour and map lie, and takes patient and study from it.

    Args:
        answer: With its NIfTI files and its picture written into the folder.
        taken: Series of the study that the network has seen.
        output: For <study>_tumour.dcm, <study>_map.dcm and <study>_summary.dcm; of the first two, those that are known.

    Raises:
        CohortError: If none of the series has that grid, or it states no frame of reference.
    """
    output = ResultFolder(output) if isinstance(output, Path) else output
    results = {"tumour": answer.tumour_file, "map": answer.map_file}
    images = {what: sitk.ReadImage(str(file)) for what, file in results.items() if file is not None}
    grids = [Geometry.of(image) for image in images.values()]
    fitting = [one for one in taken if one.geometry and all(grid.agrees_with(one.geometry) for grid in grids)]
    if not fitting or not images:
        raise CohortError(
            f"study {answer.study_id}: its results lie on the grid of no DICOM series; expected one to refer to. Use "
            "the NIfTI files."
        )
    frames = fitting[0].frames
    with pydicom_silenced():
        files = list(dict.fromkeys(frame.header.path for frame in frames))
        sources = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files]
        if not sources[0].get("FrameOfReferenceUID"):
            raise CohortError(
                f"{files[0]}: states no FrameOfReferenceUID, to which results in DICOM must refer; expected one. Use "
                "the NIfTI files."
            )
        for keyword in _OFTEN_ABSENT:
            if keyword not in sources[0]:
                setattr(sources[0], keyword, "")
        make = {"tumour": _segmentation, "map": _parametric_map}
        try:
            made = {
                what: make[what](sources, sitk.GetArrayFromImage(image), _placed(frames) | _EQUIPMENT | _identity(what))
                for what, image in images.items()
            }
            made["summary"] = _encapsulated(
                sources[0], _summary_pdf(answer, output.file(answer.study_id, "picture")), answer.target.title
            )
        except Exception as error:  # whatever a library makes of tags that break a rule
            raise CohortError(
                f"{files[0]}: results in DICOM cannot refer to it ({type(error).__name__}: {error}); expected a series "
                "that highdicom can refer to. Use the NIfTI files."
            ) from error
        written = []
        for what, dataset in made.items():
            written.append(output.file(answer.study_id, f"{what}.dcm"))
            with atomic_write(written[-1]) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)
    return written


def _placed(frames: Sequence[Frame]) -> dict[str, Any]:
    """Place of every plane, as a multi-frame image states it."""
    first = frames[0]
    assert first.orientation is not None
    assert first.spacing_mm is not None
    positions = [tuple(map(float, frame.position or ())) for frame in frames]
    apart = float(np.linalg.norm(np.subtract(positions[-1], positions[0]))) / max(len(frames) - 1, 1) or 1.0
    return {
        "plane_positions": [
            highdicom.PlanePositionSequence(highdicom.CoordinateSystemNames.PATIENT, position) for position in positions
        ],
        "plane_orientation": highdicom.PlaneOrientationSequence(
            highdicom.CoordinateSystemNames.PATIENT, first.orientation
        ),
        "pixel_measures": highdicom.PixelMeasuresSequence(
            pixel_spacing=first.spacing_mm, slice_thickness=apart, spacing_between_slices=apart
        ),
    }


def _identity(what: str) -> dict[str, Any]:
    return {
        "series_instance_uid": highdicom.UID(),
        "series_number": SERIES_NUMBERS[what],
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "software_versions": idh_lightning.__version__,
        "series_description": f"{what}: research only, not for clinical use",
    }


def _segmentation(sources: Sequence[Dataset], planes: Any, settings: dict[str, Any]) -> Dataset:
    described = SegmentDescription(
        segment_number=1,
        segment_label="Tumour",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=NAME, version=idh_lightning.__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    return Segmentation(
        source_images=sources,
        pixel_array=(planes > 0).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        content_label="TUMOUR",
        content_description="Tumour as a network has found it",
        **settings,
    )


def _parametric_map(sources: Sequence[Dataset], planes: Any, settings: dict[str, Any]) -> Dataset:
    mapping = RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation="Map of what spoke for the answer, share of its largest value",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=CodedConcept("evidence", "99IDHLIGHTNING", "Evidence for the answer of a network"),
    )
    made = ParametricMap(
        source_images=sources,
        pixel_array=np.asarray(planes, dtype=np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=0.5,
        window_width=1.0,
        content_label="EVIDENCE",
        content_description="Map of what spoke for the answer",
        **settings,
    )
    made.Laterality = ""  # type 2C, which validators ask for and the library leaves out
    return made


def _summary_pdf(answer: StudyPrediction, picture: Path) -> bytes:
    """One page: the caution, the answer with its interval and its doubts, and the picture of the study."""
    lines = [f"Study {answer.study_id}: {answer.status}"]
    if answer.probability is not None:
        lines.append(
            f"P({answer.target.named(1)}) {answer.probability:.2f} ({answer.low:.2f} to {answer.high:.2f}): "
            f"{answer.decision}"
        )
    if answer.tumour_ml is not None:
        lines.append(f"Tumour found: {answer.tumour_ml:.1f} mL")
    for text in (*answer.reasons, *answer.warnings):
        lines += textwrap.wrap(text, 105, initial_indent="- ", subsequent_indent="  ")
    figure = Figure(figsize=_A4_INCHES)
    figure.text(0.07, 0.955, f"{answer.target.title} from MRI", fontsize=16)
    figure.text(0.07, 0.93, f"{CAUTION}.", fontsize=11, color="#9a4300", weight="bold")
    figure.text(0.07, 0.91, "\n".join(lines[:40]), fontsize=8.5, va="top", linespacing=1.5, parse_math=False)
    if picture.is_file():
        axes = figure.add_axes((0.05, 0.03, 0.9, 0.42))
        axes.imshow(matplotlib.image.imread(picture))
        axes.set_axis_off()
    written = io.BytesIO()
    figure.savefig(written, format="pdf")
    return written.getvalue()


def _encapsulated(source: Dataset, pdf: bytes, title: str) -> Dataset:
    """PDF in a data set of its own, of the patient and study of another.

    Source: DICOM PS3.3, A.45.1 Encapsulated PDF.
    """
    now = datetime.now()
    made = SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        manufacturer=NAME,
        **_identity("summary"),
    )
    made.copy_patient_and_study_information(source)
    made.ConversionType = "WSD"
    made.ContentDate, made.ContentTime = DA(now.date()), TM(now.time())
    made.AcquisitionDateTime = ""
    made.BurnedInAnnotation = "NO"
    made.DocumentTitle = f"{title} from MRI. {CAUTION}"
    made.ConceptNameCodeSequence = []
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    made.SourceInstanceSequence = [reference]
    return made
