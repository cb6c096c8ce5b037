"""The main job as a user runs it: in a process of its own, with overrides, from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from idh_lightning import build

SMALL = [
    "cohort.patients=40",
    "cohort.spacing_mm=4",
    "data.grid=32",
    "data.batches.workers=1",
    "model=efficientnet_b0",
    "model.weights=none",
    "split.validation=0.25",
    "split.test=0.25",
    "trainer.max_epochs=2",
    "evaluation.bootstrap=200",
]


def train(folder: Path, *overrides: str, module: str = "train") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"idh_lightning.{module}", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def run_folder(workplace: Path) -> Path:
    """The folder of a small run of the main job."""
    done = train(workplace, *SMALL, "hydra.run.dir=outputs/first")
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace / "outputs" / "first"


@pytest.mark.slow
def test_a_run_leaves_everything_that_was_promised(run_folder: Path) -> None:
    for name in (
        ".hydra/config.yaml",
        "cohort.csv",
        "exclusions.csv",
        "cohort_report.html",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "predictions.csv",
        "metrics.json",
        "explanations.csv",
        "report.html",
        "provenance.json",
        "metrics.csv",
        "model_card.md",
    ):
        assert (run_folder / name).stat().st_size > 0, name
    predictions = pd.read_csv(run_folder / "predictions.csv")
    cohort = pd.read_csv(run_folder / "cohort.csv")
    tested = set(cohort.loc[cohort["split"] == "test", "study_id"])
    assert set(predictions.loc[predictions["split"] == "test", "study_id"]) == tested
    assert set(predictions["split"]) == {"validation", "test"}
    explained = {path.name.removesuffix("_cam.nii.gz") for path in (run_folder / "explanations").glob("*_cam.nii.gz")}
    assert explained == tested == set(pd.read_csv(run_folder / "explanations.csv")["study_id"])
    assert {path.stem for path in (run_folder / "figures" / "cam").glob("*.png")} == tested
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for metric in ("auroc", "accuracy", "f1", "ppv", "sensitivity"):
        assert {"value", "low", "high", "n"} <= set(metrics["test"][metric])
    provenance = json.loads((run_folder / "provenance.json").read_text())
    assert provenance["weights"] == {"requested": "none", "source": "none", "note": ""}
    assert provenance["parameters"]["trainable"] < provenance["parameters"]["total"]
    assert {"prepare", "bank", "fit", "test", "report"} <= set(provenance["seconds"])
    assert provenance["bank"]["computed"] > 0


@pytest.mark.slow
def test_no_patient_is_in_two_splits_though_some_have_follow_ups(run_folder: Path) -> None:
    cohort = pd.read_csv(run_folder / "cohort.csv")
    assert cohort["patient_id"].duplicated().any()
    assert (cohort.groupby("patient_id")["split"].nunique() == 1).all()


@pytest.mark.slow
def test_maps_have_the_shape_and_affine_of_the_studys_own_flair(run_folder: Path, workplace: Path) -> None:
    for path in sorted((run_folder / "explanations").glob("*_cam.nii.gz"))[:3]:
        study_id = path.name.removesuffix("_cam.nii.gz")
        (flair,) = (workplace / "outputs" / "data").glob(f"**/{study_id}_FLAIR.nii.gz")
        cam, original = nibabel.load(path), nibabel.load(flair)
        assert cam.shape == original.shape
        np.testing.assert_allclose(cam.affine, original.affine, atol=1e-5)
        values = np.asarray(cam.dataobj)
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.slow
def test_the_checkpoint_alone_gives_the_predictions_of_the_run(run_folder: Path, workplace: Path) -> None:
    checkpoint = run_folder / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assert content["recipe"]["sequences"] == ["FLAIR", "T1", "T1c", "T2"]
    assert content["model_card"] == (run_folder / "model_card.md").read_text()
    assert content["training_range"]["sequences"] == content["recipe"]["sequences"]
    assert len(content["calibration_covariance"]) == 2
    assert torch.load(run_folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)[
        "optimizer_states"
    ]
    model = build.load_classifier(run_folder)
    assert not model.training
    again = train(
        workplace,
        *SMALL,
        "stages=[test]",
        f"checkpoint={checkpoint}",
        "callbacks.explanations.test=false",
        "hydra.run.dir=outputs/again",
    )
    assert again.returncode == 0, again.stdout + again.stderr
    columns = ["study_id", "split", "label", "logit"]
    first = pd.read_csv(run_folder / "predictions.csv")[columns]
    second = pd.read_csv(workplace / "outputs" / "again" / "predictions.csv")[columns]
    pd.testing.assert_frame_equal(first, second, rtol=1e-5)
    stored = json.loads((workplace / "outputs" / "again" / "provenance.json").read_text())["volumes"]
    assert not stored["built"], "the second run read the store, not the NIfTI files"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_predictions(run_folder: Path, workplace: Path) -> None:
    other = ["callbacks.explanations.test=false", "data.batches.workers=2", "paths.bank=outputs/bank_of_the_twin"]
    done = train(workplace, *SMALL, *other, "hydra.run.dir=outputs/twin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (workplace / "outputs/twin/predictions.csv").read_bytes() == (run_folder / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_training_without_a_bank_ends_as_well(run_folder: Path, workplace: Path) -> None:
    without = ["data=on_the_fly", "data.grid=32", "data.batches.workers=1", "callbacks.explanations.test=false"]
    done = train(workplace, *SMALL, *without, "trainer.max_epochs=1", "hydra.run.dir=outputs/on_the_fly")
    assert done.returncode == 0, done.stdout + done.stderr
    provenance = json.loads((workplace / "outputs/on_the_fly/provenance.json").read_text())
    assert "bank" not in provenance
    assert len(pd.read_csv(workplace / "outputs/on_the_fly/predictions.csv")) > 0


def broken_table(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Write a table of two studies whose files are absent, after a change."""
    table = pd.DataFrame(
        {
            "study_id": ["A", "B"],
            "patient_id": ["A", "B"],
            "idh": ["wildtype", "mutant"],
            **{name: [f"A_{name}.nii.gz", f"B_{name}.nii.gz"] for name in ("FLAIR", "T1", "T1c", "T2")},
        }
    )
    file = folder / "table.csv"
    change(table).to_csv(file, index=False)
    return file


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["modle.weights=none"], 1, "modle"),
        (["objective.gama=1"], 1, "gama"),
        (["model.trainable_from=blocks.9", *SMALL], 2, "model.trainable_from: found 'blocks.9'"),
        (["cohort=ucsf_pdgm", "cohort.folder=nowhere", "cohort.table=nowhere.csv"], 2, "nowhere"),
        (["stages=[fit,tset]"], 2, "stages: found"),
        (["stages=[test]", "checkpoint=none.ckpt", *SMALL], 2, "none.ckpt: there is no such file"),
    ],
)
def test_bad_settings_end_with_one_message_before_training(
    workplace: Path, overrides: list[str], status: int, message: str
) -> None:
    done = train(workplace, *overrides)
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Epoch" not in done.stdout


def test_a_misspelt_key_in_an_experiment_file_is_named_with_its_file(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  drop_rat: 0.1\n")
    done = train(workplace, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "found the key 'model.drop_rat'" in done.stderr
    assert "Did you mean 'drop_rate'" in done.stderr
    assert "mine" in done.stderr


def test_a_table_without_the_label_column_is_refused(workplace: Path, tmp_path: Path) -> None:
    table = broken_table(tmp_path, lambda table: table.drop(columns="idh"))
    done = train(workplace, "cohort=table", f"cohort.table={table}")
    assert done.returncode == 2
    assert "table.csv" in done.stderr
    assert "idh" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_truncated_image_is_named_before_training(workplace: Path, run_folder: Path, tmp_path: Path) -> None:
    source = next((workplace / "outputs" / "data").glob("**/UCSF-PDGM-metadata_v5.csv")).parent
    images = sorted(source.glob("*_nifti/*_FLAIR.nii.gz"))[:12]
    rows = []
    for index, flair in enumerate(images):
        row = {"study_id": f"S{index:02d}", "patient_id": f"S{index:02d}", "idh": ["wildtype", "mutant"][index % 2]}
        for name in ("FLAIR", "T1", "T1c", "T2"):
            row[name] = str(flair).replace("_FLAIR", f"_{name}")
        rows.append(row)
    half = tmp_path / "half.nii.gz"
    whole = Path(rows[3]["T1"]).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    rows[3]["T1"] = str(half)
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    done = train(workplace, "cohort=table", f"cohort.table={tmp_path / 'table.csv'}", *SMALL[2:])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "half.nii.gz" in done.stderr
    assert "S03" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Epoch" not in done.stdout
