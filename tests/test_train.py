"""The main job as a user runs it: in a process of its own, with overrides, from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from same_process import run_here

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.commands import evaluating as evaluate
from idh_lightning.commands import training as train_module
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import CheckpointError, CohortError, ConfigError, SplitError
from idh_lightning.inference.exported import export
from idh_lightning.runs import assembly

SMALL = [
    "cohort.patients=40",
    "cohort.spacing_mm=4",
    "data.grid=[25,33,25]",  # as the default, odd edges that differ
    "data.batches.workers=1",
    "model=efficientnet_b0",
    "model.weights=none",
    "split.validation=0.25",
    "split.test=0.25",
    "trainer.max_epochs=2",
    "evaluation.bootstrap=200",
]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "idh_lightning.train", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def here(folder: Path, *overrides: str, module: str = "train") -> subprocess.CompletedProcess[str]:
    return run_here(import_module(f"idh_lightning.{module}").main, *overrides, folder=folder)


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
    assert content["ood_detector"]["sequences"] == content["recipe"]["sequences"]
    assert len(content["calibration_covariance"]) == 2
    assert not Checkpoint.read(run_folder).network().training
    again = here(
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
    done = here(workplace, *SMALL, *without, "trainer.max_epochs=1", "hydra.run.dir=outputs/on_the_fly")
    assert done.returncode == 0, done.stdout + done.stderr
    provenance = json.loads((workplace / "outputs/on_the_fly/provenance.json").read_text())
    assert "bank" not in provenance
    assert len(pd.read_csv(workplace / "outputs/on_the_fly/predictions.csv")) > 0


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return compose(name, overrides=list(overrides))


@pytest.mark.slow
def test_tumour_features_are_a_baseline_of_a_run_with_masks(run_folder: Path) -> None:
    features = pd.read_csv(run_folder / "features.csv")
    cohort = pd.read_csv(run_folder / "cohort.csv")
    assert set(features["study_id"]) == set(cohort["study_id"])
    assert {"volume_ml", "FLAIR_mean", "T2_p90"} <= set(features)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    tested = metrics["splits"]["test"]["n"]
    assert metrics["baselines"]["features"]["test"]["auroc"]["n"] == tested
    assert metrics["comparisons"]["model_vs_features"]["n"] == tested
    assert "tumour size, shape, intensity" in (run_folder / "report.html").read_text()


@pytest.mark.slow
def test_reporting_again_changes_no_number_and_builds_no_network(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    for name in ("classifier", "classifier_of", "make_trainer", "data_module"):
        monkeypatch.setattr(assembly, name, None)
    monkeypatch.chdir(workplace)
    train_module.train(composed("train", *SMALL, "name=again", f"paths.run={folder}", "stages=[report]"))
    for name in ("metrics.json", "predictions.csv", "features.csv", "provenance.json"):
        assert (folder / name).read_bytes() == (run_folder / name).read_bytes(), name
    before, after = (
        torch.load(place / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        for place in (run_folder, folder)
    )
    assert after["post_processing"] == before["post_processing"]
    assert after["development"]["covariates"] == before["development"]["covariates"]
    assert not list((folder / "checkpoints").glob(".writing-*"))


@pytest.mark.slow
def test_methods_of_explanation_are_compared_in_the_folder_of_a_run(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    monkeypatch.chdir(workplace)
    few = [f"explanation.{which}_studies=0" for which in ("faithfulness", "sanity", "sequence")]
    stages = ["stages=[explain,report]", "explanation.methods=[grad_cam,layer_cam,evidence]"]
    train_module.train(composed("train", *SMALL, "name=again", f"paths.run={folder}", *stages, *few))
    for name in ("metrics.json", "predictions.csv", "provenance.json"):
        assert (folder / name).read_bytes() == (run_folder / name).read_bytes(), name
    scores = pd.read_csv(folder / "explanations.csv")
    baselines = {"baseline: brain mask", "baseline: centre of the brain", "baseline: mean tumour of training"}
    assert set(scores["method"]) == {"Grad-CAM of entry", "LayerCAM of blocks.2", "Evidence", *baselines}
    assert "LayerCAM of blocks.2" in (folder / "explanations.html").read_text()
    assert 'href="explanations.html"' in (folder / "report.html").read_text()
    called = pd.read_csv(folder / "predictions.csv").query("split == 'test'").set_index("study_id")
    right = scores.drop_duplicates("study_id").set_index("study_id")["right"]
    assert (right == (called["predicted"] == called["label"]).reindex(right.index)).all()


@pytest.mark.slow
def test_the_network_of_a_run_is_exported_and_gives_the_predictions_of_the_run(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "idh_lightning.inference.exported")
    export(run_folder, tmp_path / "model.pt2", form="torch_export")
    tested = pd.read_csv(run_folder / "predictions.csv").query("split == 'test'")
    assert f"({len(tested)} test studies)" in caplog.text


def external_table(run_folder: Path, file: Path, split: str, *, prefix: str) -> Path:
    """Write the studies of a split of a run as a table of their own under other names."""
    cohort = pd.read_csv(run_folder / "cohort.csv").query(f"split == '{split}' and not follow_up")
    table = pd.DataFrame({"study_id": prefix + cohort["study_id"], "patient_id": prefix + cohort["patient_id"]})
    table["idh"] = np.where(cohort["label"] == 1, "mutant", "wildtype")
    table["age_years"] = cohort["age_years"].to_numpy()
    for name in ("FLAIR", "T1", "T1c", "T2", "tumor_segmentation"):
        table[name] = cohort["flair"].str.replace("_FLAIR.nii", f"_{name}.nii").to_numpy()
    table.to_csv(file, index=False)
    return file


@pytest.mark.slow
def test_a_checkpoint_refuses_the_images_it_was_trained_on_under_any_name(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    table = external_table(run_folder, tmp_path / "table.csv", "validation", prefix="other-")
    asked = (f"checkpoint={run_folder}", "name=external", f"cohort.table={table}")
    with pytest.raises(CohortError, match=r"(?s)studies of \d+ patients were used.*cohort\.exclude=\[other-"):
        evaluate.evaluate(composed("evaluate", *asked, f"paths.run={tmp_path / 'run'}"))
    assert not (tmp_path / "run" / "predictions.csv").exists()
    for wrong, message in (("seen=ignore", "seen: found 'ignore'"), ("seen_by=[name]", "seen_by: found")):
        with pytest.raises(ConfigError, match=message):
            evaluate.evaluate(composed("evaluate", *asked, wrong, f"paths.run={tmp_path / 'run'}"))
    content = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({key: content[key] for key in ("format", "recipe", "state_dict")}, tmp_path / "early.ckpt")
    early = f"checkpoint={tmp_path / 'early.ckpt'}"
    with pytest.raises(CheckpointError, match="holds no threshold, calibration and patients"):
        evaluate.evaluate(composed("evaluate", *asked[1:], early, f"paths.run={tmp_path / 'run'}"))


@pytest.mark.slow
def test_on_the_internal_test_patients_external_validation_repeats_the_run(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    table = pd.concat(
        pd.read_csv(external_table(run_folder, tmp_path / f"{split}.csv", split, prefix="x-"))
        for split in ("train", "test")
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    folder = tmp_path / "external"
    metrics = evaluate.evaluate(
        composed(
            "evaluate",
            f"checkpoint={run_folder / 'checkpoints' / 'best.ckpt'}",
            "name=external",
            f"cohort.table={tmp_path / 'table.csv'}",
            "seen=exclude",
            "evaluation.bootstrap=200",
            f"paths.run={folder}",
        )
    )
    inside = pd.read_csv(run_folder / "predictions.csv").query("split == 'test'").set_index("study_id")
    outside = pd.read_csv(folder / "predictions.csv")
    again = inside.loc[outside["study_id"].str.removeprefix("x-")]
    np.testing.assert_allclose(outside["logit"], again["logit"], atol=1e-3)
    np.testing.assert_allclose(outside["probability"], again["probability"], atol=1e-3)
    own = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["operating_point"] == own["operating_point"], "what was learnt is used unchanged"
    assert metrics["baselines"]["age"]["coefficients"] == own["baselines"]["age"]["coefficients"]
    assert metrics["external"]["internal"]["auroc"] == own["test"]["auroc"]
    assert "were internal test patients" in metrics["external"]["why"]
    assert {"age_years", "brain_ml", "tumour_ml", "T1c_median", "mutant"} <= set(metrics["external"]["shift"])
    exclusions = pd.read_csv(folder / "exclusions.csv")
    assert len(exclusions) == metrics["external"]["left_out"] == len(table) - len(outside)
    assert exclusions["reason"].str.startswith("seen in training: ").all()
    page = (folder / "report.html").read_text()
    assert "patients of a cohort that it was not trained on, table" in page
    assert "Does it hold where it was not trained?" in page
    assert (folder / "figures" / "shift.png").is_file()
    for name in ("explanations.csv", "features.csv", "provenance.json", "cohort.csv"):
        assert (folder / name).is_file(), name


@pytest.mark.slow
def test_a_finished_run_is_trained_on_from_its_weights_with_a_schedule_of_its_own(
    run_folder: Path, workplace: Path
) -> None:
    written = Checkpoint.read(run_folder)
    settings = {name: value for name, value in written.recipe["preprocessing"].items() if name != "registration"}
    older = replace(written, file=workplace / "older.ckpt", recipe={**written.recipe, "preprocessing": settings})
    older.write()  # as before there was this setting
    said = here(workplace, *SMALL, f"checkpoint={older.file}", "trainer.max_epochs=1", "hydra.run.dir=outputs/on")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "with a schedule of its own" in said.stdout
    provenance = json.loads((workplace / "outputs" / "on" / "provenance.json").read_text())
    assert provenance["trained_on_from"] == str(older.file)
    assert provenance["epochs"] == 1
    before, after = Checkpoint.read(run_folder).development, Checkpoint.read(workplace / "outputs" / "on").development
    assert before is not None
    assert after is not None
    assert after.seen.earlier is not None
    assert after.seen.earlier.to_dict() == before.seen.to_dict()
    first = float(pd.read_csv(workplace / "outputs" / "on" / "metrics.csv")["val/loss"].dropna().iloc[0])
    before = pd.read_csv(run_folder / "metrics.csv")["val/loss"].dropna()
    assert abs(first - before.min()) < abs(first - before.iloc[0]) or first < before.iloc[0]


@pytest.mark.slow
def test_a_network_is_neither_tested_nor_trained_on_where_it_learnt_from_the_test_patients(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    for stages in ("[test,report]", "[fit]"):
        config = composed(
            "train", *SMALL, "name=x", f"checkpoint={run_folder}", f"stages={stages}", "split.seed=1",
            f"paths.run={tmp_path / 'run'}", "~callbacks.progress",
        )  # fmt: skip
        with pytest.raises(SplitError, match=r"learnt from \d+ of the \d+ test studies.*split=given split\.file="):
            train_module.train(config)


@pytest.mark.slow
def test_a_run_says_what_it_takes_on_disk_and_a_changed_working_folder_makes_nothing_anew(
    run_folder: Path, workplace: Path
) -> None:
    sizes = json.loads((run_folder / "provenance.json").read_text())["disk_mb"]
    assert set(sizes) == {"run", "checkpoints", "data", "store", "bank"}
    done = here(workplace, *SMALL, "stages=[fit]", "hydra.job.chdir=true", "hydra.run.dir=outputs/chdir")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shared by all runs and made again if removed" in done.stdout
    assert not (workplace / "outputs" / "chdir" / "outputs").exists()
    provenance = json.loads((workplace / "outputs" / "chdir" / "provenance.json").read_text())
    assert provenance["bank"]["computed"] == provenance["volumes"]["built"] == 0


@pytest.mark.slow
def test_a_run_is_explained_from_any_folder_with_its_own_cohort_and_volumes(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = [f"explanation.{which}_studies=0" for which in ("faithfulness", "sequence")]
    done = here(
        tmp_path, f"checkpoint={run_folder}", "output=maps", "methods=[grad_cam]", "explanation.studies=4",
        "explanation.sanity_studies=1", *few, module="explain",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"maps"}
    assert "Sanity checks take 2 studies: explanation.sanity_studies is 1" in done.stdout
    assert len(pd.read_csv(tmp_path / "maps" / "sanity.csv")) == 3


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (["+trainer.fast_dev_run=true"], r"trainer\.fast_dev_run: found True.*cohort\.patients=40"),
        (["+trainer.limit_val_batches=0"], r"trainer\.limit_val_batches: found 0.*cohort\.exclude"),
        (["+trainer.limit_test_batches=1"], r"trainer\.limit_test_batches: found 1"),
        (["+trainer.overfit_batches=1"], r"trainer\.overfit_batches: found 1.*split\.training_patients"),
        (["+trainer.val_check_interval=0.5"], r"trainer\.val_check_interval: .*limit_train_batches"),
        (["+trainer.enable_checkpointing=false"], r"trainer\.enable_checkpointing"),
        (["+trainer.barebones=true"], r"trainer\.barebones"),
        (["+trainer.logger=false"], r"trainer\.logger: .*logger=csv"),
        (["+trainer.callbacks=[]"], r"trainer\.callbacks: .*group `callbacks`"),
        (["trainer.inference_mode=true"], r"trainer\.inference_mode"),
        (["trainer.use_distributed_sampler=true"], r"trainer\.use_distributed_sampler"),
        (["trainer.reload_dataloaders_every_n_epochs=0"], r"trainer\.reload_dataloaders"),
        (["+trainer.sync_batchnorm=true"], r"trainer\.sync_batchnorm"),
        (["+trainer.enable_progress_bar=false"], r"trainer\.enable_progress_bar: .*~callbacks\.progress"),
        (["trainer.accumulate_grad_batches=3"], r"trainer\.accumulate_grad_batches: .*data\.accumulate"),
        (["+trainer.strategy=fsdp"], r"trainer\.strategy: found fsdp.*trainer=ddp"),
        (["trainer.max_epochs=-1"], r"trainer\.max_epochs: found -1"),
        (["+trainer.check_val_every_n_epoch=4"], r"check_val_every_n_epoch: found 4 with trainer\.max_epochs=3"),
        (["+trainer.max_steps=0"], r"trainer\.max_steps: found 0"),
        (["+trainer.limit_train_batches=0"], r"trainer\.limit_train_batches: found 0"),
        (["+trainer.limit_train_batches=0.0"], r"trainer\.limit_train_batches: found 0\.0"),
        (["+trainer.max_time=00:00:00:00"], r"trainer\.max_time: found 00:00:00:00"),
        (["stages=[fit,report]"], r"stages: .*report needs the predictions of 'test'"),
        (["stages=[fit,explain]"], r"stages: .*explain needs the predictions of 'test'"),
        (["~callbacks.best"], r"callbacks\.best: found none"),
        (["trainer.precision=bf16-true"], r"trainer\.precision: found bf16-true; expected auto, 32-true"),
        (["+trainer.profiler=foo"], r"trainer: Lightning refuses these settings: .*profiler"),
        (["trainer.devices=0", "trainer.accelerator=cpu"], r"trainer: Lightning refuses these settings: .*0"),
    ],
)
def test_a_switch_of_lightning_that_a_run_cannot_honour_is_refused_before_anything_starts(
    switches: list[str], message: str, tmp_path: Path
) -> None:
    config = composed("train", *switches, "name=x", f"paths.run={tmp_path / 'run'}", f"paths.data={tmp_path / 'data'}")
    with pytest.raises(ConfigError, match=message):
        train_module.train(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [
        "+trainer.limit_train_batches=1",
        "+trainer.max_steps=3",
        "+trainer.min_epochs=2",
        "trainer.num_sanity_val_steps=2",
        "+trainer.check_val_every_n_epoch=2",
        "+trainer.profiler=simple",
        "+trainer.detect_anomaly=true",
        "+trainer.gradient_clip_algorithm=value",
        "trainer.deterministic=true",
    ],
)
def test_the_other_switches_of_lightning_work(
    switch: str, run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    quick = ["callbacks.explanations.test=false", "callbacks.explanations.every_epochs=0", "~callbacks.progress"]
    run = tmp_path / "run"
    train_module.train(composed("train", *SMALL, *quick, switch, "name=x", "stages=[fit,test]", f"paths.run={run}"))
    assert (run / "predictions.csv").is_file()
    assert set(json.loads((run / "finished.json").read_text())) == {"fit", "test"}


@pytest.mark.slow
def test_a_training_that_ends_before_its_first_validation_says_so(
    run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    short = ["+trainer.max_steps=1", "~callbacks.progress", "name=x", "stages=[fit,test]"]
    with pytest.raises(ConfigError, match=r"ended after 1 steps, before its first validation.*trainer\.max_steps"):
        train_module.train(composed("train", *SMALL, *short, f"paths.run={tmp_path / 'run'}"))
    assert not (tmp_path / "run" / "finished.json").exists()


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
        (["modle.weights=none"], 2, "modle"),
        (["objective.gama=1"], 2, "gama"),
        (["model.trainable_from=blocks.9", *SMALL], 2, "model.trainable_from: found 'blocks.9'"),
        (["cohort=ucsf_pdgm", "cohort.folder=nowhere", "cohort.table=nowhere.csv"], 2, "nowhere"),
        (["stages=[fit,tset]"], 2, "stages: found"),
        (["stages=[test]", "checkpoint=none.ckpt", *SMALL], 2, "none.ckpt: there is no such file"),
    ],
)
def test_bad_settings_end_with_one_message_before_training(
    workplace: Path, overrides: list[str], status: int, message: str
) -> None:
    done = here(workplace, *overrides)
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Epoch" not in done.stdout


def test_a_misspelt_key_in_an_experiment_file_is_named_with_its_file(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  drop_rat: 0.1\n")
    done = here(workplace, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "found the key 'model.drop_rat'" in done.stderr
    assert "Did you mean 'drop_rate'" in done.stderr
    assert "mine" in done.stderr


def test_a_table_without_the_label_column_is_refused(workplace: Path, tmp_path: Path) -> None:
    table = broken_table(tmp_path, lambda table: table.drop(columns="idh"))
    done = here(workplace, "cohort=table", f"cohort.table={table}")
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
    done = here(workplace, "cohort=table", f"cohort.table={tmp_path / 'table.csv'}", *SMALL[2:])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "half.nii.gz" in done.stderr
    assert "S03" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Epoch" not in done.stdout
