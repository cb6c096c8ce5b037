"""DICOM folders: the sequence guessed from tags, shown, and only used when confirmed."""

from __future__ import annotations

import locale
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_predict import cohort, command, predictor, run  # noqa: F401 - fixtures
from tiny_studies import write_study

from idh_lightning.cohort import SEQUENCES
from idh_lightning.inference import Predictor
from idh_lightning.inference.dicom import by_study, dicom_series, guess_sequence, keeping_locale, new_study_of_series

TAGS: dict[str, dict[str, str]] = {
    "FLAIR": {"0008|103e": "AX T2 FLAIR", "0018|0081": "120", "0018|0080": "9000", "0018|0082": "2500"},
    "T1": {"0008|103e": "3D MPRAGE", "0018|0081": "3", "0018|0080": "2000", "0018|0082": "900"},
    "T1c": {"0008|103e": "3D MPRAGE", "0018|0081": "3", "0018|0080": "2000", "0018|0010": "GADAVIST"},
    "T2": {"0008|103e": "AX T2 TSE", "0018|0081": "100", "0018|0080": "5000"},
}


@keeping_locale()
def write_series(image: sitk.Image, folder: Path, number: int, tags: dict[str, str]) -> None:
    """Write an image as a DICOM series."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    axes = image.GetDirection()
    orientation = "\\".join(str(axes[index]) for index in (0, 3, 6, 1, 4, 7))
    whole = sitk.Cast(image, sitk.sitkInt16)
    for index in range(image.GetDepth()):
        plane = whole[:, :, index]
        shared = {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.3.{number}.{index + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": f"1.2.3.{number}",
            "0020|0011": str(number),
            "0020|0013": str(index + 1),
            "0020|0037": orientation,
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, index)))),
            "0018|0050": str(image.GetSpacing()[2]),
            "0028|0030": f"{image.GetSpacing()[1]}\\{image.GetSpacing()[0]}",
        }
        for tag, text in (shared | tags).items():
            plane.SetMetaData(tag, text)
        writer.SetFileName(str(folder / f"{index:04d}.dcm"))
        writer.Execute(plane)


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nifti")
    write_study(folder, "patient", seed=100, mask=False)
    return folder / "patient"


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory, nifti: Path) -> Path:
    """The same study as four series."""
    folder = tmp_path_factory.mktemp("dicom") / "patient"
    for number, name in enumerate(SEQUENCES, start=1):
        image = sitk.DICOMOrient(sitk.ReadImage(str(nifti / f"patient_{name}.nii.gz")), "LPS")
        write_series(image, folder / f"series{number}", number, TAGS[name])
    return folder


def test_reading_dicom_leaves_the_text_of_the_process_as_it_was(dicom: Path, tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    new_study_of_series(dicom_series(dicom), tmp_path, study_id="patient", named={}, sequences=SEQUENCES)
    assert locale.setlocale(locale.LC_ALL) == before


def test_the_same_study_as_dicom_gives_the_same_answer(
    predictor: Predictor,  # noqa: F811
    nifti: Path,
    dicom: Path,
    tmp_path: Path,
) -> None:
    (expected,) = predictor.predict(nifti)
    series = dicom_series(dicom)
    assert [one.guess for one in series] == list(SEQUENCES)
    ((name, theirs),) = by_study(series, dicom).items()
    new = new_study_of_series(theirs, tmp_path, study_id=name, named={}, sequences=SEQUENCES)
    (answer,) = predictor.predict([new])
    assert answer.probability == pytest.approx(expected.probability, abs=0.01)


def test_guesses_are_shown_and_used_only_when_confirmed(
    run: Path,  # noqa: F811
    dicom: Path,
    tmp_path: Path,
) -> None:
    asked = command(f"checkpoint={run}", f"input={dicom}", "output=out", folder=tmp_path)
    assert asked.returncode == 2, asked.stdout + asked.stderr
    assert "confirm=true" in asked.stderr
    assert "MPRAGE" in asked.stdout
    assert not (tmp_path / "out" / "predictions.csv").exists()
    named = [f"{name.lower()}={number}" for number, name in enumerate(SEQUENCES, start=1)]
    said = command(f"checkpoint={run}", f"input={dicom}", "output=out", *named, folder=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    assert (tmp_path / "out" / "dicom" / "patient_FLAIR.nii.gz").is_file()


def test_two_series_for_one_sequence_are_listed(dicom: Path, tmp_path: Path) -> None:
    series = dicom_series(dicom)
    doubled = [*series, series[1].__class__(**{**vars(series[1]), "number": "9", "uid": "other"})]
    new = new_study_of_series(doubled, tmp_path, study_id="p", named={}, sequences=SEQUENCES)
    assert "2 series could be T1: 2 (3D MPRAGE), 9 (3D MPRAGE)" in new.problem
    named = new_study_of_series(doubled, tmp_path, study_id="p", named={"T1": "2"}, sequences=SEQUENCES)
    assert named.problem == ""


def test_a_missing_slice_is_noticed(dicom: Path, tmp_path: Path) -> None:
    for path in sorted(dicom.rglob("*.dcm")):
        if path.name != "0010.dcm":
            copy = tmp_path / "patient" / path.relative_to(dicom)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    series = dicom_series(tmp_path / "patient")
    new = new_study_of_series(series, tmp_path, study_id="p", named={}, sequences=SEQUENCES)
    assert "a slice is missing" in new.problem


@pytest.mark.parametrize(
    ("description", "tags", "expected"),
    [
        ("t2_tirm_tra_dark-fluid", {}, "FLAIR"),
        ("Ax T1 FLAIR", {}, "T1"),
        ("Ax T1 post GAD", {}, "T1c"),
        ("t1_mprage_sag pre contrast", {"contrast": True}, "T1"),
        ("SAG T1 SE", {"contrast": True}, "T1c"),
        ("T2* GRE", {}, ""),
        ("ep2d_diff ADC", {}, ""),
        ("Localizer", {}, ""),
        ("AX T2 FSE", {"slices": 3}, ""),
        ("", {"echo_ms": 120.0, "repetition_ms": 9000.0, "inversion_ms": 2400.0}, "FLAIR"),
        ("", {"echo_ms": 100.0, "repetition_ms": 4500.0}, "T2"),
        ("", {"echo_ms": 9.0, "repetition_ms": 600.0, "contrast": True}, "T1c"),
        ("brain", {}, ""),
    ],
)
def test_the_tags_of_a_series_tell_its_sequence(description: str, tags: dict[str, object], expected: str) -> None:
    known = {"echo_ms": None, "repetition_ms": None, "inversion_ms": None, "contrast": False, "slices": 30}
    assert guess_sequence(description, **known | tags)[0] == expected  # type: ignore[arg-type]


def test_a_folder_of_other_files_holds_no_series(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(np.arange(300, dtype=np.uint8).tobytes())
    assert dicom_series(tmp_path) == []
