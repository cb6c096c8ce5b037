"""Results as DICOM: they lie where the NIfTI files do, refer to their source, and are valid."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ParametricMapStorage, SegmentationStorage
from test_predict import cohort, command, run  # noqa: F401 - fixtures
from test_predict_dicom import TAGS, slices_of
from tiny_dicom import OBLIQUE, classic, enhanced, frames_of, lump, save
from tiny_studies import write_study

from idh_lightning.cohort import SEQUENCES
from idh_lightning.errors import CohortError
from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.dicom_output import write_dicom
from idh_lightning.inference.prediction import StudyPrediction
from idh_lightning.inference.series import Series

PATIENT = {
    "PatientName": "Made^Up", "PatientBirthDate": "", "PatientSex": "O", "StudyDate": "20200101",
    "StudyTime": "120000", "StudyID": "1", "AccessionNumber": "", "ReferringPhysicianName": "",
    "FrameOfReferenceUID": "1.2.3.9", "PositionReferenceIndicator": "",
}  # fmt: skip
VOXELS = lump()


def series_of(kind: str, folder: Path, **tags: object) -> Series:
    made = classic(VOXELS, orientation=OBLIQUE, **PATIENT, **tags) if kind == "classic" else None
    save(made or [enhanced(frames_of(VOXELS), **PATIENT, **tags)], folder)
    ((one,), _) = dicom_series(folder)
    return one


def predicted(series: Series, output: Path) -> StudyPrediction:
    """Answer whose tumour and map are written on the grid of a series."""
    output.mkdir()
    assert series.geometry is not None
    files = {"map": (VOXELS / VOXELS.max()).astype(np.float32), "tumour": (VOXELS > 700).astype(np.uint8)}
    for name, voxels in files.items():
        sitk.WriteImage(series.geometry.image(voxels), str(output / f"{name}.nii.gz"))
    return StudyPrediction(
        study_id="patient",
        status="flagged",
        probability=0.7,
        low=0.5,
        high=0.8,
        decision="mutant",
        tumour_ml=12.0,
        warnings=("Learnt from synthetic patients only.",),
        map_file=output / "map.nii.gz",
        tumour_file=output / "tumour.nii.gz",
    )


def values_by_place(dataset: Dataset, planes: np.ndarray) -> dict[tuple[float, ...], float]:
    """Value of each pixel that is not 0 by its place in LPS mm, from the tags of a multi-frame image alone."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    along, down = np.reshape(np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), (2, 3))
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = {}
    for item, plane in zip(dataset.PerFrameFunctionalGroupsSequence, planes, strict=True):
        corner = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(plane):
            place = corner + along * columns_mm * column + down * rows_mm * row
            found[tuple(np.round(place, 2) + 0.0)] = float(plane[row, column])
    return found


def values_of_nifti(file: Path) -> dict[tuple[float, ...], float]:
    image = nib.load(file)
    voxels = np.asarray(image.dataobj)
    indices = np.argwhere(voxels)
    places = (indices @ image.affine[:3, :3].T + image.affine[:3, 3]) * [-1, -1, 1]
    return dict(zip(map(tuple, np.round(places, 2) + 0.0), voxels[tuple(indices.T)].astype(float), strict=True))


@pytest.fixture(scope="module", params=["classic", "enhanced"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the source and of the results."""
    folder = tmp_path_factory.mktemp(request.param)
    series = series_of(request.param, folder / "in")
    answer = predicted(series, folder / "out")
    files = write_dicom(answer, [series], folder / "out")
    assert [file.name for file in files] == ["patient_tumour.dcm", "patient_map.dcm", "patient_summary.dcm"]
    return folder / "in", folder / "out"


def test_tumour_and_map_lie_where_the_nifti_files_have_them(written: tuple[Path, Path]) -> None:
    _, out = written
    tumour, heat = pydicom.dcmread(out / "patient_tumour.dcm"), pydicom.dcmread(out / "patient_map.dcm")
    assert (tumour.SOPClassUID, heat.SOPClassUID) == (SegmentationStorage, ParametricMapStorage)
    found, expected = values_by_place(tumour, tumour.pixel_array), values_of_nifti(out / "tumour.nii.gz")
    assert set(found) == set(expected)
    planes = np.frombuffer(heat.FloatPixelData, "<f4").reshape(-1, heat.Rows, heat.Columns)
    found, expected = values_by_place(heat, planes), values_of_nifti(out / "map.nii.gz")
    assert set(found) == set(expected)
    assert max(abs(found[place] - expected[place]) for place in found) < 1e-6


def test_results_belong_to_the_patient_and_study_and_refer_to_the_source(written: tuple[Path, Path]) -> None:
    source, out = written
    originals = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(source.glob("*.dcm"))]
    made = {name: pydicom.dcmread(out / f"patient_{name}.dcm") for name in ("tumour", "map", "summary")}
    for dataset in made.values():
        assert (dataset.PatientID, dataset.StudyInstanceUID) == (originals[0].PatientID, originals[0].StudyInstanceUID)
        assert "not for clinical use" in dataset.SeriesDescription
    assert len({one.SeriesInstanceUID for one in (*made.values(), originals[0])}) == 4
    for name in ("tumour", "map"):
        assert made[name].FrameOfReferenceUID == originals[0].FrameOfReferenceUID
        (referred,) = made[name].ReferencedSeriesSequence
        assert referred.SeriesInstanceUID == originals[0].SeriesInstanceUID
        instances = {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
        assert instances == {one.SOPInstanceUID for one in originals}


def test_the_summary_is_a_pdf_that_says_it_is_not_for_clinical_use(written: tuple[Path, Path]) -> None:
    dataset = pydicom.dcmread(written[1] / "patient_summary.dcm")
    assert dataset.SOPClassUID == EncapsulatedPDFStorage
    assert dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength].startswith(b"%PDF-")
    assert "not for clinical use" in dataset.DocumentTitle


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
def test_a_validator_finds_no_error(written: tuple[Path, Path]) -> None:
    for file in sorted(written[1].glob("*.dcm")):
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert [line for line in said if line.startswith("Error")] == [], file.name


def test_results_on_the_grid_of_no_series_or_without_a_frame_of_reference_are_not_written(tmp_path: Path) -> None:
    series = series_of("classic", tmp_path / "in")
    answer = predicted(series, tmp_path / "out")
    assert series.geometry is not None
    elsewhere = replace(series, geometry=replace(series.geometry, origin_mm=(0.0, 0.0, 0.0)))
    with pytest.raises(CohortError, match="on the grid of no DICOM series"):
        write_dicom(answer, [elsewhere], tmp_path / "out")
    assert write_dicom(answer, [elsewhere, series], tmp_path / "out")
    for file in (tmp_path / "in").glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        del dataset.FrameOfReferenceUID
        dataset.save_as(file)
    ((one,), _) = dicom_series(tmp_path / "in")
    with pytest.raises(CohortError, match="FrameOfReferenceUID"):
        write_dicom(answer, [one], tmp_path / "out")


@pytest.mark.slow
def test_predict_writes_them_when_asked_and_refuses_where_there_is_no_dicom(run: Path, tmp_path: Path) -> None:  # noqa: F811
    write_study(tmp_path, "patient", seed=100, mask=False)
    for number, name in enumerate(SEQUENCES, start=1):
        image = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "patient" / f"patient_{name}.nii.gz")), "LPS")
        save(slices_of(image, number, **TAGS[name], **PATIENT), tmp_path / "dicom" / f"series{number}")
    asked = (f"checkpoint={run}", "dicom_output=true", "output=out")
    refused = command(*asked, f"input={tmp_path / 'patient'}", folder=tmp_path)
    assert refused.returncode == 2
    assert "dicom_output: found true" in refused.stderr
    named = [f"{name.lower()}={number}" for number, name in enumerate(SEQUENCES, start=1)]
    said = command(*asked, f"input={tmp_path / 'dicom'}", *named, folder=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    (summary,) = (tmp_path / "out").glob("*_summary.dcm")
    heat = pydicom.dcmread(summary.with_name(summary.name.replace("_summary", "_map")))
    assert heat.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.1"


def test_results_refer_to_a_patient_of_whom_only_the_images_were_left(tmp_path: Path) -> None:
    absent = {"PatientID", *PATIENT} - {"FrameOfReferenceUID"}
    made = classic(VOXELS, **PATIENT)
    for dataset in made:
        for keyword in absent:
            delattr(dataset, keyword)
    save(made, tmp_path / "in")
    ((series,), _) = dicom_series(tmp_path / "in")
    for file in write_dicom(predicted(series, tmp_path / "out"), [series], tmp_path / "out"):
        assert pydicom.dcmread(file).PatientSex == ""


@pytest.mark.parametrize("what", ["several multi-frame files", "odd tags"])
def test_a_series_that_nothing_can_refer_to_has_its_answer_and_a_reason(what: str, tmp_path: Path) -> None:
    frames = frames_of(VOXELS)
    parts = [enhanced(some, **PATIENT) for some in (frames[:12], frames[12:])]
    save(parts if what != "odd tags" else classic(VOXELS, **PATIENT | {"PatientSex": "U"}), tmp_path / "in")
    ((series,), _) = dicom_series(tmp_path / "in")
    with pytest.raises(CohortError, match=r"cannot refer to it \(.*Use the NIfTI files"):
        write_dicom(predicted(series, tmp_path / "out"), [series], tmp_path / "out")
