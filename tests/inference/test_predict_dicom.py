"""A folder of DICOM, or of NIfTI with sidecars: guessed, shown, only used when confirmed, and answered as NIfTI is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from test_predict import cohort, command, command_apart, predictor, run  # noqa: F401 - fixtures
from tiny_dicom import base, classic, save
from tiny_studies import write_study

from idh_lightning.cohort import SEQUENCES
from idh_lightning.commands import predicting
from idh_lightning.commands.predicting import _converted, _series_in
from idh_lightning.errors import CohortError
from idh_lightning.inference import Predictor
from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.series import by_study, new_study_of_series, select
from idh_lightning.inference.sidecars import sidecar_series

TAGS: dict[str, dict[str, object]] = {
    "FLAIR": {"SeriesDescription": "AX T2 FLAIR", "EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500},
    "T1": {"SeriesDescription": "3D MPRAGE", "EchoTime": 3, "RepetitionTime": 2000, "InversionTime": 900},
    "T1c": {"SeriesDescription": "3D MPRAGE", "EchoTime": 3, "RepetitionTime": 2000, "ContrastBolusAgent": "GADAVIST"},
    "T2": {"SeriesDescription": "AX T2 TSE", "EchoTime": 100, "RepetitionTime": 5000},
}


def slices_of(image: sitk.Image, number: int, **tags: object) -> list[Dataset]:
    """Classic DICOM slices of an image."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    voxels = sitk.GetArrayFromImage(image).astype(np.int32)
    return classic(
        voxels,
        orientation=tuple(axes[:, 0]) + tuple(axes[:, 1]),
        origin=image.GetOrigin(),
        spacing=image.GetSpacing(),
        SeriesNumber=number,
        SeriesInstanceUID=f"1.2.3.{number}",
        **tags,
    )


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
        save(slices_of(image, number, **TAGS[name]), folder / f"series{number}")
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, nifti: Path) -> Path:
    """The same study as a converter leaves it: names that state no sequence, and a sidecar beside each."""
    folder = tmp_path_factory.mktemp("converted") / "patient"
    folder.mkdir()
    for number, name in enumerate(SEQUENCES, start=1):
        stem = f"patient_{TAGS[name]['SeriesDescription']}_20200101120000_{number}".replace(" ", "_")
        (folder / f"{stem}.nii.gz").write_bytes((nifti / f"patient_{name}.nii.gz").read_bytes())
        tags = {key: value / 1000 if isinstance(value, int) else value for key, value in TAGS[name].items()}
        (folder / f"{stem}.json").write_text(json.dumps({"Modality": "MR", "SeriesNumber": number} | tags))
    return folder


@pytest.mark.parametrize("kind", ["dicom", "converted"])
def test_the_same_study_gives_the_same_answer(
    kind: str,
    predictor: Predictor,  # noqa: F811
    nifti: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    (expected,) = predictor.predict(nifti)
    folder = request.getfixturevalue(kind)
    series, unread = dicom_series(folder) if kind == "dicom" else sidecar_series(folder)
    assert [one.guess for one in series] == list(SEQUENCES)
    assert unread == {}
    ((name, theirs),) = by_study(series, folder).items()
    new = new_study_of_series(select(theirs, named={}, sequences=SEQUENCES), tmp_path, study_id=name)
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
    assert f"name them by number: {' '.join(named)}." in asked.stderr
    said = command(f"checkpoint={run}", f"input={dicom}", "output=out", *named, folder=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    assert (tmp_path / "out" / "dicom" / "patient_FLAIR.nii.gz").is_file()


def test_what_is_not_used_is_listed_with_the_reason(
    run: Path,  # noqa: F811
    dicom: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "patient"
    folder.symlink_to(dicom)
    more = tmp_path / "both"
    more.mkdir()
    (more / "patient").symlink_to(dicom)
    (more / "notes.txt").write_text("seen on Monday " * 20)
    save(classic(np.ones((9, 8, 8)), SeriesNumber=9, SeriesInstanceUID="1.2.9", SeriesDescription="ep2d_diff"), more)
    save([base(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")], more, "SR")
    asked = command(f"checkpoint={run}", f"input={more}", "output=out", folder=tmp_path)
    assert "1 file not used: not DICOM; such as notes.txt." in asked.stdout
    assert "no image: Basic Text SR" in asked.stdout
    table = pd.read_csv(tmp_path / "out" / "series.csv", dtype=str, keep_default_na=False)
    assert list(table.loc[table["taken"] != "", "number"]) == ["1", "2", "3", "4"]
    assert set(table.loc[table["taken"] != "", "study_id"]) == {"both"}
    (diffusion,) = table.loc[table["number"] == "9", "why"]
    assert "diffusion" in diffusion
    assert {Path(file).name for file in table.loc[table["number"] == "", "file"]} == {"notes.txt", "SR0000.dcm"}


def test_a_doubt_about_contrast_goes_with_the_answer(
    predictor: Predictor,  # noqa: F811
    nifti: Path,
    tmp_path: Path,
) -> None:
    for number, name in enumerate(SEQUENCES, start=1):
        image = sitk.DICOMOrient(sitk.ReadImage(str(nifti / f"patient_{name}.nii.gz")), "LPS")
        tags = TAGS[name] | {"ContrastBolusAgent": "GADAVIST", "AcquisitionTime": f"12000{number}"}
        save(slices_of(image, number, AcquisitionDate="20200101", **tags), tmp_path / "patient" / str(number))
    series, _ = dicom_series(tmp_path / "patient")
    new = new_study_of_series(select(series, named={}, sequences=SEQUENCES), tmp_path / "out", study_id="p")
    (answer,) = predictor.predict([new])
    assert answer.status == "flagged"
    assert any("T1c is series 3" in warning and "copied" in warning for warning in answer.warnings)


def test_studies_are_called_as_their_folders_where_each_has_its_own(tmp_path: Path) -> None:
    for name in ("anna", "berta"):
        save(classic(np.ones((9, 8, 8)), StudyInstanceUID=name, SeriesInstanceUID=f"{name}.1"), tmp_path / name / "1")
    series, _ = dicom_series(tmp_path)
    assert sorted(by_study(series, tmp_path)) == ["anna", "berta"]
    save(classic(np.ones((9, 8, 8)), StudyInstanceUID="later", SeriesInstanceUID="later.1"), tmp_path / "anna" / "2")
    series, _ = dicom_series(tmp_path)
    assert sorted(by_study(series, tmp_path)) == ["anna_1", "anna_2", "berta_1"]


def test_studies_of_an_archive_are_converted_a_few_at_a_time_also_one_that_holds_nothing_of_use(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the first have answers while the last are DICOM."""
    monkeypatch.setattr(predicting, "CHUNK", 1)
    series = dicom_series(dicom)[0]
    fitting = select(series, named={}, sequences=SEQUENCES)
    other = select([replace(series[0], guess="other")], named={}, sequences=SEQUENCES)
    chunks = _converted({"anna": fitting, "berta": other, "carl": fitting}, tmp_path)
    (anna,) = next(chunks)
    assert anna.study is not None
    assert {file.name.partition("_")[0] for file in tmp_path.iterdir()} == {"anna"}
    (berta,), (carl,) = chunks
    assert berta.study is None
    assert berta.problem
    assert carl.study is not None


def test_a_study_is_left_without_the_sequences_that_no_series_fits(dicom: Path, tmp_path: Path) -> None:
    series = [one for one in dicom_series(dicom)[0] if one.guess != "T2"]
    new = new_study_of_series(select(series, named={}, sequences=SEQUENCES), tmp_path, study_id="p")
    assert new.study is not None
    assert list(new.study.files) == ["FLAIR", "T1", "T1c"]


def test_a_folder_of_other_files_holds_no_series(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(np.arange(300, dtype=np.uint8).tobytes())
    series, unread = dicom_series(tmp_path)
    assert series == []
    assert list(unread) == ["not DICOM"]


def test_dicom_without_an_image_is_told_by_its_reason_unless_there_is_nifti(nifti: Path, tmp_path: Path) -> None:
    report = tmp_path / "reports"
    save([base(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")], report)
    with pytest.raises(CohortError, match=r"1 file not used: no image: Basic Text SR.*unpack an archive first"):
        _series_in(report)
    (tmp_path / "study.zip").write_bytes(b"PK")
    with pytest.raises(CohortError, match=r"study\.zip: 1 file not used: not DICOM"):
        _series_in(tmp_path / "study.zip")
    (report / "nifti").symlink_to(nifti)
    assert _series_in(report) == ([], {})


def test_sidecars_count_only_where_no_name_states_a_sequence(converted: Path, nifti: Path, tmp_path: Path) -> None:
    assert len(sidecar_series(converted)[0]) == 4
    for path in converted.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "patient_FLAIR.nii.gz").symlink_to(nifti / "patient_FLAIR.nii.gz")
    assert sidecar_series(tmp_path) == ([], {})


def test_echoes_of_one_number_get_letters_and_four_dimensions_are_told(tmp_path: Path) -> None:
    for stem, echo_s, shape in (("x_e1", 0.015, (8, 8, 9)), ("x_e2", 0.09, (8, 8, 9)), ("y", 0.09, (8, 8, 9, 5))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / f"{stem}.nii.gz")
        tags = {"SeriesNumber": 4 if stem[0] == "x" else 5, "SeriesDescription": "pd+t2_tse", "EchoTime": echo_s}
        (tmp_path / f"{stem}.json").write_text(json.dumps(tags))
    nib.save(nib.Nifti1Image(np.ones((8, 8, 9), np.float32), np.eye(4)), tmp_path / "alone.nii.gz")
    series, unread = sidecar_series(tmp_path)
    assert [(one.number, one.guess, bool(one.problem)) for one in series] == [
        ("4a", "", False),
        ("4b", "T2", False),
        ("5", "T2", True),
    ]
    assert list(unread) == ["no JSON sidecar beside it"]


def peak_mb(run: Path, patients: Path) -> float:  # noqa: F811
    """Most memory that the command has had resident for the studies of a folder."""
    code = (
        "import runpy\nfrom idh_lightning.machine import peak_resident_bytes\n"
        "try:\n    runpy.run_module('idh_lightning.predict', run_name='__main__')\n"
        "finally:\n    print(peak_resident_bytes())"
    )
    settings = (f"checkpoint={run}", f"input={patients}", f"output={patients}_out", "confirm=true", "withhold=false")
    said = subprocess.run([sys.executable, "-c", code, *settings], capture_output=True, check=True, encoding="utf-8")
    assert len(pd.read_csv(f"{patients}_out/predictions.csv")["probability"].dropna()) == len([*patients.iterdir()])
    return float(said.stdout.split()[-1]) / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is asked of Linux")
def test_an_archive_of_three_times_as_many_patients_takes_hardly_more_memory(
    run: Path,  # noqa: F811
    nifti: Path,
    tmp_path: Path,
) -> None:
    images = {
        name: sitk.DICOMOrient(sitk.Expand(sitk.ReadImage(str(nifti / f"patient_{name}.nii.gz")), [4, 4, 2]), "LPS")
        for name in SEQUENCES
    }
    held = sum(2 * image.GetNumberOfPixels() for image in images.values()) / 2**20  # MB, of 16 bits each
    for many in (4, 12):
        for patient in range(many):
            for number, (name, image) in enumerate(images.items(), start=1):
                made = slices_of(image, number, StudyInstanceUID=f"1.2.{patient}", **TAGS[name])
                save(made, tmp_path / str(many) / f"patient{patient}" / str(number))
    few, more = (peak_mb(run, tmp_path / str(many)) for many in (4, 12))
    assert more - few < 8 * held / 2, (few, more, held)


GRIDS = {
    "FLAIR": ("LPS", (1.0, 1.0, 5.0)),
    "T1": ("LIP", (1.0, 1.0, 4.0)),
    "T1c": ("PIR", (1.0, 1.0, 1.0)),
    "T2": ("LPS", (1.0, 1.0, 3.0)),
}
"""Directions of columns, rows and slices, and voxels in mm: axial, coronal, sagittal, axial."""


def head_on_four_grids(folder: Path) -> dict[str, sitk.Image]:
    """A real head with its skull, of a patient who moved before T1c; T2, which is lacking, is made of the others."""
    images = {
        name: sitk.ReadImage(str(next(folder.glob(f"*_{name}.nii.gz"))), sitk.sitkFloat32)
        for name in ("FLAIR", "T1", "T1c")
    }
    images["T2"] = (images["FLAIR"] + 200 - images["T1"]) * sitk.Cast(images["FLAIR"] > 10, sitk.sitkFloat32)
    centre = images["FLAIR"].TransformContinuousIndexToPhysicalPoint([n / 2 for n in images["FLAIR"].GetSize()])
    moved = sitk.Euler3DTransform(centre, 0.0, 0.05, 0.03, (2.0, -3.0, 1.0))
    found = {}
    for name, (axes, spacing_mm) in GRIDS.items():
        image = sitk.DICOMOrient(images[name], axes)
        size = [round(n * mm / to) for n, mm, to in zip(image.GetSize(), image.GetSpacing(), spacing_mm, strict=True)]
        move = moved if name == "T1c" else sitk.Transform()
        grid = size, move, sitk.sitkLinear, image.GetOrigin(), spacing_mm, image.GetDirection()
        found[name] = sitk.Cast(sitk.Resample(image, *grid) * 10, sitk.sitkInt16)
    return found


@pytest.mark.real
@pytest.mark.slow
def test_a_head_on_four_grids_has_the_answer_of_its_nifti_files_in_a_minute(tmp_path: Path) -> None:
    """By the network in the package: a minute of one core, whatever else runs beside."""
    images = head_on_four_grids(Path(os.environ["IDH_REAL_DATA"]) / "tcga_lgg" / "TCGA-DU-7010")
    (tmp_path / "nifti").mkdir()
    for number, (name, image) in enumerate(images.items(), start=1):
        save(slices_of(image, number, **TAGS[name]), tmp_path / "dicom" / str(number))
        sitk.WriteImage(image, str(tmp_path / "nifti" / f"head_{name}.nii.gz"))
    before = os.times()
    said = command_apart(f"input={tmp_path / 'dicom'}", "confirm=true", "output=out", folder=tmp_path)
    after = os.times()
    assert said.returncode == 0, said.stdout + said.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 60
    (answer,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["studies"]
    (expected,) = Predictor("pretrained").predict(tmp_path / "nifti")
    assert answer["probability"] == pytest.approx(expected.probability, abs=0.01)
    words = " ".join(answer["warnings"])
    assert all(f"{name} lay on another grid" in words for name in ("T1", "T1c", "T2"))
    page = (tmp_path / "out" / answer["page"]).read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,[^"]{9000,}" alt="([^"]*)"', page)
    assert [words.split(" ")[0] for words in pictures] == ["Sequences", "A", "T1", "T1c", "T2"]
    assert "was found in the head of FLAIR" in pictures[1]
