"""A new study: found by its names, answered the same however it is stored, and never answered where it is damaged."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from same_process import run_here
from tiny_checkpoint import settings_of, tiny_cohort, write_checkpoint
from tiny_studies import ras_affine, rotation, write_study

import idh_lightning
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import composed
from idh_lightning.cohort import (
    IDH,
    SEQUENCES,
    TARGETS,
    Cohort,
    NewStudy,
    Study,
    Target,
    new_studies,
    study_of_files,
    target_of,
)
from idh_lightning.cohort.unlabelled import sequence_of
from idh_lightning.commands.predicting import predict
from idh_lightning.errors import CheckpointError, CohortError, Stopped
from idh_lightning.evaluation import Calibrator
from idh_lightning.inference import Predictor, line_covariance
from idh_lightning.inference.interval import MemberLogits, combined, views_of
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.predict import main
from idh_lightning.runs import assembly, preparation
from idh_lightning.runs.preparation import take_target_over


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return tiny_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cohort: list[Study]) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("runs") / "first", cohort)


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run)


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """The folder of a new study."""
    write_study(tmp_path / "new", "patient", seed=100, mask=False)
    return tmp_path / "new" / "patient"


def test_the_library_face_takes_three_lines(run: Path, patient: Path) -> None:
    (answer,) = idh_lightning.Predictor(run).predict(patient)
    assert answer.status == "answered", (answer.reasons, answer.warnings)
    assert answer.study_id == "patient"
    assert 0 <= answer.low < answer.probability < answer.high <= 1
    assert answer.decision == ("mutant" if answer.probability >= 0.4 else "wildtype")


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, idh_lightning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_probability_is_that_of_the_network_itself(predictor: Predictor, patient: Path) -> None:
    (answer,) = predictor.predict(patient)
    study = new_studies(patient)[0].study
    image = (
        predictor.ensemble.preprocessing(study, predictor.ensemble.sequences)
        .image.astype(np.float16)
        .astype(np.float32)
    )
    with torch.no_grad():
        logits = predictor.ensemble.members[0].network(torch.from_numpy(image)[None])[0]
    assert answer.probability == pytest.approx(float(torch.sigmoid(logits[1] - logits[0])), abs=1e-6)


@pytest.mark.parametrize("output", ["flat", "bids", ""])
def test_a_registration_that_is_refused_has_a_picture_and_no_number(
    output: str, predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    """Of another head, whose header turns it by 90 degrees."""
    other = write_study(tmp_path, "other", seed=7, sequences=["T1c"], mask=False)
    image = nib.load(other.files["T1c"])
    turn = np.eye(4)
    turn[:3, :3] = rotation(90, 0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), patient / "patient_T1c.nii.gz")
    results = ResultFolder(tmp_path / "out", bids=output == "bids") if output else None
    (answer,) = predictor.answers(new_studies(patient), results)
    assert (answer.status, answer.probability) == ("failed", None)
    assert "the quality of this is" in answer.reasons[0]
    assert len(answer.reasons) == (2 if output else 1)
    if output:
        name = answer.reasons[1].removeprefix("How its sequences were registered is shown in ").removesuffix(".")
        assert name.endswith("_T1c_registered.png")
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"


# What studies are found


@pytest.mark.parametrize(
    "names",
    [
        ("p_FLAIR.nii.gz", "p_T1.nii.gz", "p_T1c.nii.gz", "p_T2.nii.gz"),
        ("p_flair.nii", "p_t1.nii", "p_t1ce.nii", "p_t2.nii"),
        ("p-t2f.nii.gz", "p-t1n.nii.gz", "p-t1c.nii.gz", "p-t2w.nii.gz"),
        ("p_FLAIR.nii.gz", "p_T1.nii.gz", "p_T1GD.nii.gz", "p_T2.nii.gz"),
        ("FLAIR.nii.gz", "T1.nii.gz", "T1GD.nii.gz", "T2.nii.gz"),
        ("p_FLAIR_bias.nii.gz", "p_T1_bias.nii.gz", "p_T1gad_bias.nii.gz", "p_T2_bias.nii.gz"),
        ("p_FLAIR.NII.GZ", "p_T1.NII.GZ", "p_T1gad.NII.GZ", "p_T2.NII.GZ"),
        ("sub-p_FLAIR.nii.gz", "sub-p_T1w.nii.gz", "sub-p_ce-gd_T1w.nii.gz", "sub-p_T2w.nii.gz"),
    ],
)
def test_the_names_of_every_layout_give_the_same_answer(
    names: tuple[str, ...], predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    (expected,) = predictor.predict(patient)
    folder = tmp_path / "other" / "p"
    folder.mkdir(parents=True)
    for sequence, name in zip(SEQUENCES, names, strict=True):
        nib.save(nib.load(patient / f"patient_{sequence}.nii.gz"), folder / name)
    (answer,) = predictor.predict(tmp_path / "other")
    assert answer.probability == pytest.approx(expected.probability, abs=1e-9)
    assert answer.study_id in ("p", "sub-p")


def test_two_files_for_one_sequence_are_an_error_that_names_both(predictor: Predictor, patient: Path) -> None:
    shutil.copy(patient / "patient_T1c.nii.gz", patient / "patient_t1ce.nii.gz")
    (answer,) = predictor.predict(patient)
    assert answer.status == "failed"
    assert "patient_T1c.nii.gz" in answer.reasons[0]
    assert "patient_t1ce.nii.gz" in answer.reasons[0]


def test_the_plain_image_comes_before_the_one_whose_bias_was_corrected(tmp_path: Path) -> None:
    for end in ("FLAIR", "FLAIR_bias", "T1", "T1_bias", "T1gad_bias", "T2"):
        (tmp_path / f"UCSF-PDGM-0004_{end}.nii.gz").touch()
    (new,) = new_studies(tmp_path)
    assert new.study is not None
    assert [path.name[15:-7] for path in new.study.files.values()] == ["FLAIR", "T1", "T1gad_bias", "T2"]


def test_studies_side_by_side_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for sequence in SEQUENCES:
            (tmp_path / f"{name}_{sequence}.nii.gz").touch()
    assert [new.study_id for new in new_studies(tmp_path)] == ["a", "b"]
    (tmp_path / "c_T1.nii.gz").touch()
    (only,) = new_studies(tmp_path)
    assert "3 files could be T1" in only.problem


def test_studies_with_one_name_are_told_apart_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("a/same", "b/same"):
        (tmp_path / folder).mkdir(parents=True)
        for sequence in SEQUENCES:
            (tmp_path / folder / f"{sequence}.nii.gz").touch()
    assert [new.study_id for new in new_studies(tmp_path)] == ["same", "same_2"]
    assert f"number 2 is called same_2: {tmp_path / 'b' / 'same'}" in caplog.text
    (tmp_path / "b" / "same").rename(tmp_path / "same_2")
    shutil.copytree(tmp_path / "same_2", tmp_path / "c" / "same")
    assert [new.study_id for new in new_studies(tmp_path)] == ["same", "same_3", "same_2"]


def test_a_patient_whom_the_network_has_learnt_from_is_told_so(predictor: Predictor, cohort: list[Study]) -> None:
    for study, learnt in ((cohort[0], True), (cohort[-1], False)):  # of training, of test
        (answer,) = predictor.predict(study.files)
        assert ("trained, chosen or calibrated on this patient" in " ".join(answer.warnings)) == learnt
        assert "seen in development" not in answer.unlike


def test_a_name_of_a_public_collection_tells_a_patient_but_not_from_a_synthetic_one(tmp_path: Path) -> None:
    heads = [write_study(tmp_path / "cohort", f"UCSF-PDGM-{n:04d}", seed=n) for n in range(24)]
    run = write_checkpoint(tmp_path / "run", heads)
    write_study(tmp_path / "new", "UCSF-PDGM-0003", seed=100, mask=False)
    (real,) = Predictor(run).predict(tmp_path / "new")
    checkpoint = Checkpoint.read(run)
    replace(checkpoint, recipe={**checkpoint.recipe, "cohort": "phantom"}).write()
    (synthetic,) = Predictor(run).predict(tmp_path / "new")
    assert ["on this patient" in " ".join(one.warnings) for one in (real, synthetic)] == [True, False]


def test_a_prediction_that_is_stopped_leaves_the_answers_that_it_has(
    run: Path, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(patient, patient.parent / "second")
    answer = Predictor._answer

    def stopped(self: Predictor, new: NewStudy, *given: Any) -> dict[str, Any]:
        if new.study_id == "patient_2":
            raise Stopped(signal.SIGINT)
        return answer(self, new, *given)

    monkeypatch.setattr(Predictor, "_answer", stopped)
    settings = [f"checkpoint={run}", f"input={patient.parent}", f"output={tmp_path / 'out'}"]
    with pytest.raises(Stopped):
        predict(composed("predict", settings))
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["study_id"].tolist() == ["patient"]
    assert "1 study stands in" in " ".join(capsys.readouterr().err.split())


def test_answers_of_an_earlier_prediction_are_not_replaced_without_a_word(
    run: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"checkpoint={run}", f"input={patient}", f"output={tmp_path / 'out'}", "views=0"]
    predict(composed("predict", settings))
    assert "replaced" not in capsys.readouterr().out
    predict(composed("predict", settings))
    assert f"{tmp_path / 'out' / 'predictions.csv'}: replaced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        *(
            (name, "T1c")
            for name in ("GD_T1", "p_post_T1", "T1_post", "T1_Gd", "T1-CE", "p_T1wCE", "T1km", "sub-p_ce-gd_T1w")
        ),
        *((name, "FLAIR") for name in ("T2_FLAIR", "p_FLAIR_T2", "t2flair", "p-t2f", "tumour01_FLAIR")),
        *((name, "T1") for name in ("T1w", "p_t1n", "subject1_T1", "sub-p_T1w")),
        *((name, "T2") for name in ("T2w", "post_T2", "p-t2w")),
        *((name, None) for name in ("tumor_mask_FLAIR", "dwi_T2", "p_seg_T1", "T2star", "T1map")),
    ],
)
def test_what_a_file_name_says_of_contrast_and_of_other_images_is_read(name: str, sequence: str | None) -> None:
    found = sequence_of(f"{name}.nii.gz")
    assert (found and found[0]) == sequence


def test_a_folder_for_each_sequence_is_one_study_and_files_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for sequence in SEQUENCES:
        place = tmp_path / "all" / "patient" / sequence
        place.mkdir(parents=True)
        (place / f"{sequence}.nii.gz").touch()
        (tmp_path / "all" / f"other_{sequence}.nii.gz").touch()
    (tmp_path / "all" / "other_brain.nii.gz").touch()
    (tmp_path / "all" / "other_tumor_segmentation.nii.gz").touch()  # no sequence was meant
    assert [(new.study_id, len(new.study.files)) for new in new_studies(tmp_path / "all")] == [
        ("other", 4),
        ("patient", 4),
    ]
    assert f"Not used, since the names state no sequence: {tmp_path}/all/other_brain.nii.gz. If" in caplog.text


def test_links_to_folders_are_followed_and_a_circle_of_them_ends(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere" / "patient", tmp_path / "root"
    elsewhere.mkdir(parents=True)
    root.mkdir()
    for sequence in SEQUENCES:
        (elsewhere / f"p_{sequence}.nii.gz").touch()
    (root / "patient").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(root)
    assert [new.study_id for new in new_studies(root)] == ["p"]


def test_a_folder_without_known_names_says_once_which_are_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scan1.nii.gz").touch()
    with pytest.raises(CohortError, match=r"no image whose name states its sequence.*flair="):
        new_studies(tmp_path)
    assert not caplog.text
    (tmp_path / "study.zip").touch()
    with pytest.raises(CohortError, match=r"Archives are not read: unpack study\.zip\."):
        new_studies(tmp_path)
    with pytest.raises(CohortError, match="no such folder"):
        new_studies(tmp_path / "nowhere")


def test_files_named_one_by_one_may_have_any_name(predictor: Predictor, patient: Path, tmp_path: Path) -> None:
    files = {}
    for number, sequence in enumerate(SEQUENCES):
        files[sequence] = shutil.copy(patient / f"patient_{sequence}.nii.gz", tmp_path / f"{number}.nii.gz")
    assert study_of_files(files).problem == ""
    (answer,) = predictor.predict(files)
    assert answer.probability == pytest.approx(predictor.predict(patient)[0].probability, abs=1e-9)


def test_a_study_without_one_sequence_gets_a_line_to_paste_that_names_its_file(
    predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    kept = {sequence: patient / f"patient_{sequence}.nii.gz" for sequence in SEQUENCES if sequence != "T1"}
    (answer,) = predictor.predict(kept)
    assert answer.status == "failed"
    assert answer.reasons[0].startswith("T1 is missing; expected FLAIR, T1, T1c, T2, which the network was trained on.")
    line = answer.reasons[0].partition("python -m idh_lightning.predict ")[2].partition(";")[0]
    config = composed("predict", shlex.split(line))
    assert [config.flair, config.t1] == [str(kept["FLAIR"]), "/data/T1.nii.gz"]
    assert "predict data.missing" not in answer.reasons[0], "predict takes no such setting"


def test_a_table_of_new_studies_says_which_columns_to_rename(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"Case no": "p", "T1": "t1.nii.gz", "T1ce": "a.nii.gz", "T1gd": "b.nii.gz", "Dark Fluid": "f.nii.gz"}
    path, frame = tmp_path / "table.csv", pd.DataFrame([row])
    (tmp_path / "t1.nii.gz").touch()
    (tmp_path / "a.nii.gz").touch()
    frame.to_csv(path, index=False)
    with pytest.raises(CohortError, match=r"'T1ce', 'T1gd' could all be T1c; expected one. Rename it to T1c.$"):
        new_studies(path)
    frame = frame.rename(columns={"T1ce": "T1c"})
    frame.to_csv(path, index=False)
    with pytest.raises(CohortError, match="no column study_id among 'Case no', 'T1'"):
        new_studies(path)
    frame.rename(columns={"Case no": "study_id"}).to_csv(path, index=False)
    assert list(new_studies(path)[0].study.files) == ["T1", "T1c"]
    assert "column 'Dark Fluid' holds images and is not used; expected a column for FLAIR, T2, or none" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "../../escape",
        "con\0sole",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("/etc/passwd", "a\nb", "x" * 300, "", "..", "~root")),
    ],
)
def test_a_table_cannot_make_files_elsewhere(name: str, predictor: Predictor, patient: Path, tmp_path: Path) -> None:
    paths = {sequence: str(patient / f"patient_{sequence}.nii.gz") for sequence in SEQUENCES}
    pd.DataFrame([{"study_id": name, **paths}]).to_csv(tmp_path / "table.csv", index=False)
    before = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "out"}
    list(predictor.answers(new_studies(tmp_path / "table.csv"), tmp_path / "out"))
    made = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "out"} - before
    assert made == {tmp_path / "out"}


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/dev/zero", "\0", "**/*", "a" * 5000, "~nobody/x.nii.gz", "*"]
)
def test_odd_paths_in_a_table_fail_with_a_reason(
    path: str, predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    paths = {sequence: str(patient / f"patient_{sequence}.nii.gz") for sequence in SEQUENCES}
    pd.DataFrame([{"study_id": "odd", **paths, "T2": path}]).to_csv(tmp_path / "table.csv", index=False)
    (answer,) = predictor.predict(tmp_path / "table.csv")
    assert answer.status == "failed"
    assert "T2" in answer.reasons[0] or "path" in answer.reasons[0]


# The same study, stored otherwise


@pytest.mark.parametrize("axes", ["LPS", "LAS", "PIR", "SRA", "IAL"])
def test_another_orientation_of_the_files_gives_the_same_answer(
    axes: str, predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    (expected,) = predictor.predict(patient)
    folder = tmp_path / "turned" / "patient"
    folder.mkdir(parents=True)
    for sequence in SEQUENCES:
        image = nib.load(patient / f"patient_{sequence}.nii.gz")
        change = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
        )
        turned = image.as_reoriented(change)
        turned.set_qform(turned.affine, 1)
        turned.set_sform(turned.affine, 1)
        nib.save(turned, folder / f"patient_{sequence}.nii.gz")
    (answer,) = predictor.predict(folder)
    assert answer.probability == pytest.approx(expected.probability, abs=0.01)
    assert answer.prediction_set == expected.prediction_set


def test_maps_lie_on_the_patients_own_flair(predictor: Predictor, patient: Path, tmp_path: Path) -> None:
    (answer,) = predictor.answers(new_studies(patient), tmp_path / "out")
    cam, flair = nib.load(answer.map_file), nib.load(patient / "patient_FLAIR.nii.gz")
    assert cam.shape == flair.shape
    np.testing.assert_allclose(cam.affine, flair.affine, atol=1e-6)
    page = answer.page.read_text()
    assert f"{answer.probability:.2f}" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "out" / "patient.png").stat().st_size > 0


# Studies unlike the training ones


def test_a_study_unlike_the_training_ones_gets_no_conformal_statement_and_the_first_line_says_so(
    run: Path, tmp_path: Path
) -> None:
    thick = ras_affine(spacing=(4.0, 4.0, 9.5), size=(40, 48, 16))
    write_study(tmp_path / "new", "patient", seed=100, mask=False, affine=thick, size=(40, 48, 16))
    done = command(f"checkpoint={run}", f"input={tmp_path / 'new'}", "output=out", "withhold=false", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["studies"]
    assert told["status"] == "flagged"
    assert 0 <= told["probability"] <= 1
    assert told["prediction_set"] is None
    assert "greatest voxel edge" in told["unlike"]
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["prediction_set"].isna().all()
    page = (tmp_path / "out" / told["page"]).read_text()
    words = text_of(page)
    assert words.index("unlike the studies that the network was trained on (") < words.index("P(mutant)")
    assert "can be excluded" not in words
    assert "cannot be excluded" not in words + done.stdout.replace("cannot be excluded ", "")
    assert "unlike the training studies" in done.stdout


def test_a_head_whose_brain_was_extracted_is_answered_like_the_others_with_a_note(
    predictor: Predictor, tmp_path: Path, brains_at_once: None
) -> None:
    write_study(tmp_path / "new", "patient", seed=100, mask=False, skull=True)
    (answer,) = predictor.answers(new_studies(tmp_path / "new" / "patient"), tmp_path / "out")
    assert answer.status == "answered", (answer.reasons, answer.warnings)
    assert answer.unlike == ()
    assert answer.prediction_set is not None
    (note,) = answer.warnings
    assert "a brain of" in note
    assert "was extracted from it" in note
    (volume,) = re.findall(r'alt="A brain of (\d+) mL was found in the head of FLAIR"', answer.page.read_text())
    assert f"a brain of {volume} mL" in note


def test_a_study_like_the_training_ones_keeps_its_conformal_statement(
    predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    (answer,) = predictor.answers(new_studies(patient), tmp_path / "out")
    assert answer.unlike == ()
    assert answer.prediction_set is not None
    assert "Classes that cannot be excluded at 90% coverage" in text_of(answer.page.read_text())
    assert "brain that was extracted" not in answer.page.read_text()


@pytest.mark.slow
def test_the_page_says_that_it_is_not_for_clinical_use_and_when_the_patients_were_synthetic(
    run: Path, patient: Path, tmp_path: Path
) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for cohort, synthetic in (("phantom", True), ("ucsf_pdgm", False)):
        content["recipe"]["cohort"] = cohort
        torch.save(content, tmp_path / f"{cohort}.ckpt")
        (answer,) = Predictor(tmp_path / f"{cohort}.ckpt").answers(new_studies(patient), tmp_path / cohort)
        page = answer.page.read_text()
        assert '<span class="stamp">Not for clinical use</span>' in page
        assert ('<span class="stamp">Trained on synthetic patients</span>' in page) == synthetic


def text_of(page: str) -> str:
    """Return what stands on a page, without its style and its viewer."""
    body = re.sub(r'srcdoc="[^"]*"', "", page[page.index("<body>") :])
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_folders_whose_images_cannot_be_told_apart_by_name_are_said_not_to_be_read(
    patient: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(patient, tmp_path / "in" / "known")
    (tmp_path / "in" / "other").mkdir()
    shutil.copy(next(patient.rglob("*.nii.gz")), tmp_path / "in" / "other" / "FLAIR a.nii.gz")
    assert len(new_studies(tmp_path / "in")) == 1
    assert "Not read, since the names state no sequence" in caplog.text
    assert "other/FLAIR a.nii.gz. Expected names that end like _FLAIR" in caplog.text


# Ensembles and intervals


def test_members_of_an_ensemble_are_averaged_and_their_disagreement_widens_the_interval(
    run: Path, patient: Path
) -> None:
    second = Path(shutil.copytree(run, run.parent / "second"))
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"]["network.network.classifier.bias"] += torch.tensor([20.0, -20.0])
    torch.save(content, second / "checkpoints" / "best.ckpt")
    both = Predictor([run, second])
    single = [Predictor(one).predict(patient)[0] for one in (run, second)]
    assert abs(single[0].probability - single[1].probability) > 0.05
    for ensemble in (both, Predictor(run.parent)):
        (answer,) = ensemble.predict(patient)
        assert answer.members == pytest.approx([one.probability for one in single])
        assert answer.probability == pytest.approx(np.mean(answer.members))
        assert answer.low <= min(answer.members)
        assert answer.high >= max(answer.members)


def of_target(run: Path, folder: Path, target: Target) -> Path:
    """A copy of the checkpoint of a run that says of itself to predict another target."""
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recipe"]["target"] = content["post_processing"]["target"] = target.to_dict()
    torch.save(content, folder / f"{target.name}.ckpt")
    return folder / f"{target.name}.ckpt"


def test_a_network_with_another_target_answers_in_its_words(run: Path, patient: Path, tmp_path: Path) -> None:
    mgmt = of_target(run, tmp_path, TARGETS["mgmt"])
    (plain,) = Predictor(run).predict(patient)
    (answer,) = predict(composed("predict", [f"checkpoint={mgmt}", f"input={patient}", f"output={tmp_path / 'out'}"]))
    assert answer.probability == pytest.approx(plain.probability, abs=1e-6)
    assert (plain.target.name, answer.target) == ("idh", TARGETS["mgmt"])
    assert answer.decision == {"mutant": "methylated", "wildtype": "unmethylated"}[plain.decision or ""]
    page = (tmp_path / "out" / "patient.html").read_text()
    page = re.sub(r"data:[^\"]*|<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert "MGMT promoter methylation from MRI" in page
    assert "P(methylated)" in page
    assert re.findall(r"(?i)mutant|wildtype|\bidh\b", page) == []
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["target"]["name"] == "mgmt"


def test_members_with_different_targets_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its target differ"):
        Predictor([run, of_target(run, tmp_path, TARGETS["mgmt"])])


def test_a_cohort_is_read_with_the_target_of_the_checkpoint_and_refused_with_another(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (TARGETS["mgmt"], target_of("ATRX", ["kept", "lost"])):
        checkpoint = Checkpoint.read(of_target(run, tmp_path, target))
        config = OmegaConf.create({"cohort": {"target": "idh", "classes": None}})
        take_target_over(config, checkpoint)
        assert target_of(config.cohort.target, config.cohort.classes) == target == checkpoint.target
        with pytest.raises(CheckpointError, match=rf"{target.name}.ckpt: predicts .*expected the same target\. Leave"):
            checkpoint.require_cohort(Cohort(name="x", sequences=checkpoint.sequences, studies=()))
        monkeypatch.setattr(preparation, "task_overrides", lambda: ["cohort.target=idh"])
        with pytest.raises(CheckpointError, match=r"while the cohort has IDH status \(idh\) as its label"):
            take_target_over(OmegaConf.create({"cohort": {"target": "idh", "classes": None}}), checkpoint)
        monkeypatch.undo()
    Checkpoint.read(run).require_cohort(Cohort(name="x", sequences=SEQUENCES, studies=()))


def test_the_voxels_that_have_learnt_to_vote_on_idh_have_no_say_in_another_target(tmp_path: Path) -> None:
    for name, scale in (("idh", 1.0), ("mgmt", 0.0)):
        named = Cohort(name="x", sequences=SEQUENCES, studies=(), target=TARGETS[name])
        prepared = SimpleNamespace(cohort=named, by_split={"train": []})
        model = assembly.classifier(settings_of(tmp_path), prepared)  # type: ignore[arg-type]
        assert model.network.vote is not None
        assert model.network.vote.scale.item() == pytest.approx(scale)
        assert model.recipe["target"]["name"] == name


def test_a_checkpoint_of_before_there_were_targets_predicts_idh(run: Path, patient: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recipe"].pop("target")
    content["post_processing"].pop("target")
    torch.save(content, tmp_path / "old.ckpt")
    assert Checkpoint.read(tmp_path / "old.ckpt").target is IDH
    assert Predictor(tmp_path / "old.ckpt").predict(patient)[0].decision in IDH.classes


def test_members_of_other_sequences_are_refused(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["recipe"]["preprocessing"]["grid"] = 40
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="its preprocessing differ"):
        Predictor([run, tmp_path / "other.ckpt"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("post_processing"), "holds no threshold"),
        (lambda content: content["recipe"]["explain"].update(_target_="os.system"), "would call 'os.system'"),
        (lambda content: content["recipe"]["model"].update(_target_="builtins.eval"), "would call 'builtins.eval'"),
        (lambda content: content["ood_detector"].pop("order"), "cannot be used"),
    ],
)
def test_unusable_checkpoints_are_refused_with_the_reason(
    change: object, message: str, run: Path, patient: Path, tmp_path: Path
) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    change(content)  # type: ignore[operator]
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError, match=message):
        Predictor(tmp_path / "changed.ckpt")


def test_a_file_of_another_tool_is_refused_without_the_advice_to_run_what_is_in_it(tmp_path: Path) -> None:
    torch.save({"model": Path("x"), "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="it holds other objects than tensors and plain values") as refused:
        Predictor(tmp_path / "other.ckpt")
    assert "weights_only" not in str(refused.value)


def test_a_checkpoint_whose_weights_were_damaged_on_the_way_is_refused(run: Path, tmp_path: Path) -> None:
    content = bytearray((run / "checkpoints" / "best.ckpt").read_bytes())
    middle = len(content) // 2  # in the weights, of which torch checks nothing
    content[middle : middle + 3] = bytes(255 - byte for byte in content[middle : middle + 3])
    (tmp_path / "damaged.ckpt").write_bytes(content)
    torch.load(tmp_path / "damaged.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match="does not fit its check sum"):
        Predictor(tmp_path / "damaged.ckpt")


def test_a_checkpoint_without_a_range_answers_but_says_so(run: Path, patient: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    del content["ood_detector"]
    torch.save(content, tmp_path / "old.ckpt")
    (answer,) = Predictor(tmp_path / "old.ckpt").predict(patient)
    assert answer.status == "flagged"
    assert "Not compared with the training studies" in answer.warnings[0]


def member(plain: float, *, views: tuple[float, ...] = (), spread: float = 0.0) -> MemberLogits:
    return MemberLogits(plain=plain, views=views, calibrator=Calibrator(), covariance=np.eye(2) * spread)


def test_the_interval_is_a_point_where_nothing_is_unsure_and_grows_with_each_source() -> None:
    probability, low, high = combined([member(0.5)])
    assert low == pytest.approx(probability) == pytest.approx(high)
    for unsure in ([member(0.5, views=(0.2, 0.9))], [member(0.5, spread=0.1)], [member(0.3), member(0.7)]):
        probability, low, high = combined(unsure)
        assert low < probability - 0.01
        assert high > probability + 0.01


def test_the_covariance_of_the_line_is_that_of_logistic_regression() -> None:
    import statsmodels.api as sm

    random = np.random.default_rng(0)
    logits = random.normal(1.0, 2.0, 4000)
    labels = random.random(4000) < 1 / (1 + np.exp(-(0.7 * logits - 0.5)))
    fit = sm.GLM(labels, np.stack([logits, np.ones(4000)], 1), family=sm.families.Binomial()).fit()
    found = line_covariance(logits, labels, Calibrator(slope=float(fit.params[0]), intercept=float(fit.params[1])))
    np.testing.assert_allclose(found, fit.cov_params(), rtol=0.01)


def test_views_are_the_same_each_time_and_hold_the_study_in_place() -> None:
    volume = torch.zeros(1, 16, 16, 16)
    volume[:, 4:12, 5:11, 5:11] = 1.0
    views = views_of(volume, 4)
    assert views.shape == (4, 1, 16, 16, 16)
    assert torch.equal(views, views_of(volume, 4))
    assert all(float((view * volume).sum() / view.sum()) > 0.7 for view in views)


# The command


def command(*overrides: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_here(main, *overrides, folder=folder)


def command_apart(*overrides: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "idh_lightning.predict", *overrides],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )


@pytest.mark.slow
def test_the_command_writes_a_row_for_every_study_and_its_status_says_that_one_failed(
    run: Path, patient: Path, tmp_path: Path
) -> None:
    broken = patient.parent / "broken"
    shutil.copytree(patient, broken)
    (broken / "patient_T2.nii.gz").write_bytes((broken / "patient_T2.nii.gz").read_bytes()[:2000])
    done = command_apart(f"checkpoint={run}", f"input={patient.parent}", "output=out", folder=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", index_col="study_id")
    assert sorted(table["status"]) == ["answered", "failed"]
    failed = table[table["status"] == "failed"].iloc[0]
    assert "patient_T2.nii.gz" in failed["reason"]
    assert np.isnan(failed["probability"])
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert told["threshold"] == pytest.approx(0.4)
    (answered,) = (study for study in told["studies"] if study["status"] == "answered")
    assert (tmp_path / "out" / answered["map"]).is_file()
    assert (tmp_path / "out" / answered["page"]).is_file()
    assert answered["files"] == {one: str(patient / f"patient_{one}.nii.gz") for one in SEQUENCES}, (
        "what was used is said"
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=none.ckpt", "input=."], "none.ckpt: there is no such file"),
        (["checkpoint=."], "expected one of the two"),
    ],
)
def test_bad_settings_end_with_one_message(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = command(*overrides, folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
