"""Several runs of one command: folds, searches, learning curves, several processes, and what W&B is told of them."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from same_process import run_here
from wandb.proto import wandb_internal_pb2

from idh_lightning.callbacks import tracking
from idh_lightning.callbacks.tracking import Tracker, without_places
from idh_lightning.cli.entry import composed
from idh_lightning.cohort import Cohort, HoldOut, KFold, Study
from idh_lightning.commands.reporting import run_folders
from idh_lightning.commands.sweep import SweepReport
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import ConfigError, EvaluationError, SplitError
from idh_lightning.reports.course_figures import curve, parallel_coordinates
from idh_lightning.runs import assembly
from idh_lightning.runs.resuming import expanded
from idh_lightning.runs.state import keep_recipe
from idh_lightning.runs.sweeps import (
    complete_folds,
    importances,
    read_runs,
    remaining_trials,
    report_sweep,
    say_how_to_compare,
)
from idh_lightning.train import command as train_command

SMALL = [
    "model=efficientnet_b0",
    "model.weights=none",
    "cohort.patients=40",
    "cohort.spacing_mm=4",
    "data.grid=32",
    "split.validation=0.25",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.explanations.every_epochs=0",
    "evaluation.bootstrap=100",
]
STUDY = re.compile(rb"UCSF-PDGM-\d")


def train(folder: Path, *arguments: str) -> str:
    with patch.dict(os.environ, {"WANDB_SILENT": "true"}):
        done = run_here(train_command, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_apart(folder: Path, *arguments: str) -> None:
    """Train in a process of its own, which may start others."""
    done = subprocess.run(
        [sys.executable, "-m", "idh_lightning.train", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two folds, tracked by W&B offline."""
    folder = tmp_path_factory.mktemp("sweep")
    train(
        folder, "-m", *SMALL, "sweep=folds", "split.folds=2", "logger=wandb", "logger.wandb.mode=offline",
        "callbacks.explanations.test=false",
    )  # fmt: skip
    (made,) = (folder / "outputs" / "sweeps").iterdir()
    return made


@pytest.mark.slow
def test_folds_share_one_bank_and_end_with_one_pooled_report(sweep: Path) -> None:
    pooled = pd.read_csv(sweep / "pooled" / "predictions.csv")
    cohort = pd.read_csv(sweep / "0" / "cohort.csv")
    assert sorted(pooled["study_id"]) == sorted(cohort["study_id"]), "every study is tested once"
    metrics = json.loads((sweep / "pooled" / "metrics.json").read_text())
    assert metrics["test"]["auroc"]["n"] == cohort["patient_id"].nunique()
    assert (sweep / "pooled" / "report.html").is_file()
    (bank,) = [place for place in (sweep.parents[1] / "bank").iterdir() if place.is_dir()]
    records = [json.loads((sweep / name / "provenance.json").read_text()) for name in "01"]
    assert sum(record["bank"]["computed"] for record in records) == len(
        [file for file in bank.glob("*.npy") if not file.stem.endswith("_tumour")]
    )
    assert {record["batch_norm_calibrated_on"] for record in records} == {"32 synthetic volumes"}
    assert list(pd.read_csv(sweep / "sweep.csv")["fold"]) == [0, 1]


def records_of(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: W&B 0.31 writes LevelDB's log format and has no reader of it in Python."""
    data, position, part = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def settings_told(records: list[Any]) -> dict[str, Any]:
    """Settings in the records of a run, without what W&B says of itself."""
    updates = [update for record in records for update in (*record.run.config.update, *record.config.update)]
    return {update.key: json.loads(update.value_json) for update in updates if not update.key.startswith("_")}


@pytest.mark.slow
def test_wandb_is_told_everything_but_who(sweep: Path) -> None:
    files = sorted(sweep.glob("*/wandb/offline-run-*/*.wandb"))
    jobs = set()
    for file in files:
        records = list(records_of(file))
        (run,) = (record.run for record in records if record.HasField("run"))
        assert run.run_group == sweep.name
        assert run.display_name == f"phantom fold={run.job_type.removeprefix('fold ')}"
        told = settings_told(records)
        assert told["split.folds"] == 2
        assert told["optimizer.lr"] > 0
        assert not any(isinstance(value, dict) for value in told.values()), "columns of parallel coordinates are flat"
        jobs.add(run.job_type)
        logged = [
            {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        for kept in ("val/loss", "val/study_auroc", "train/loss_epoch"):
            assert [json.loads(row["epoch"]) for row in logged if kept in row] == [0, 1]
        for figure in ("roc", "precision_recall", "confusion_matrix"):
            assert any(f"figures/{figure}/path" in row for row in logged)
        everything = [place for place in (file.parent).rglob("*") if place.is_file()]
        assert any(place.suffix == ".png" for place in everything)
        table = json.loads(next(place for place in everything if place.name.endswith(".table.json")).read_text())
        assert len(table["data"]) == len(pd.read_csv(file.parents[2] / "predictions.csv"))
        assert not [place for place in everything if STUDY.search(place.read_bytes())]
        assert not [place for place in everything if STUDY.search(place.name.encode())]
    assert jobs == {"fold 0", "fold 1"}


@pytest.mark.slow
def test_a_sweep_goes_on_without_repeating_its_finished_runs(sweep: Path) -> None:
    before = (sweep / "0" / "predictions.csv").stat().st_mtime_ns
    (sweep / "1" / "report.html").unlink()
    (sweep / "pooled" / "metrics.json").unlink()
    said = train(sweep.parents[2], "--resume", str(sweep))
    assert "Epoch" not in said
    assert (sweep / "pooled" / "metrics.json").is_file()
    assert (sweep / "1" / "report.html").is_file()
    assert (sweep / "0" / "predictions.csv").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_test_every_study_once_and_agree_with_one(sweep: Path) -> None:
    folder = sweep.parents[2]
    both = [*SMALL, "split.test=0.25", "callbacks.explanations.test=true"]
    apart = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=outputs/two")
    train_apart(folder, *both, *apart)
    best = "checkpoint=outputs/two/checkpoints/best.ckpt"
    train(folder, *both, "stages=[test,report]", best, "hydra.run.dir=outputs/one")
    two, one = (folder / "outputs" / name for name in ("two", "one"))
    first, second = pd.read_csv(two / "predictions.csv"), pd.read_csv(one / "predictions.csv")
    assert not first["study_id"].duplicated().any()
    assert list(first["study_id"]) == list(second["study_id"])
    np.testing.assert_allclose(first["logit"], second["logit"], atol=1e-5)
    areas = [json.loads((run / "metrics.json").read_text())["test"]["auroc"]["value"] for run in (two, one)]
    assert abs(areas[0] - areas[1]) <= 1e-6
    explained = pd.read_csv(two / "explanations.csv")["study_id"]
    assert list(explained) == list(pd.read_csv(one / "explanations.csv")["study_id"])
    steps = pd.read_csv(two / "metrics.csv")["train/loss_step"].notna().sum()
    assert steps > 0


@pytest.mark.slow
def test_a_learning_curve_is_drawn_from_real_runs(tmp_path: Path) -> None:
    train(tmp_path, "-m", *SMALL, "experiment=learning_curve", "split.training_patients=8,16")
    (made,) = (tmp_path / "outputs" / "sweeps").iterdir()
    table = pd.read_csv(made / "sweep.csv")
    assert list(table["split.training_patients"]) == [8, 16]
    assert (made / "learning_curve.png").is_file()
    first, second = (pd.read_csv(made / name / "predictions.csv") for name in "01")
    assert list(first["study_id"]) == list(second["study_id"]), "the same patients choose and test"
    for name, patients in (("0", 8), ("1", 16)):
        training = pd.read_csv(made / name / "cohort.csv").query("split == 'train'")
        assert training["patient_id"].nunique() == patients


def fake_run(folder: Path, settings: dict[str, str], auroc: float, fold: int | None = None) -> None:
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save([f"{key}={value}" for key, value in settings.items()], folder / ".hydra" / "overrides.yaml")
    split = {} if fold is None else {"folds": 2}
    OmegaConf.save({"fold": fold or 0, "split": split}, folder / ".hydra" / "config.yaml")
    entry = {"value": auroc, "low": auroc - 0.1, "high": min(1.0, auroc + 0.1), "n": 20}
    metrics = {"validation": {"auroc": entry}, "test": {"auroc": entry, "accuracy": entry}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        {"study_id": f"S{fold}{index}", "patient_id": f"S{fold}{index}", "split": "test", "fold": fold or 0,
         "label": index % 2, "logit": index % 2 - 0.5, "probability": 0.2 + 0.5 * (index % 2), "predicted": index % 2}
        for index in range(6)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    (folder / "report.html").touch()


def test_a_search_ends_with_a_table_and_pictures_in_the_order_of_the_runs(tmp_path: Path) -> None:
    for number, (rate, gamma) in enumerate([(1e-5, 0), (1e-4, 0), (1e-3, 2), *[(1e-4, 1)] * 8]):
        settings = {"optimizer.lr": str(rate), "objective.gamma": str(gamma), "seed": "0"}
        fake_run(tmp_path / str(number), settings, 0.5 + 1e-2 * number)
    table = report_sweep(tmp_path)
    assert list(table["run"]) == [str(number) for number in range(11)]
    assert "seed" not in table
    assert {"sweep.csv", "parallel_coordinates.png", "importance.png"} <= {file.name for file in tmp_path.iterdir()}


def test_a_trial_that_was_cut_off_and_begun_again_counts_once(tmp_path: Path) -> None:
    for name, rate in (("0", "1e-5"), ("1", "1e-4"), ("from2_0", "1e-4"), ("from2_1", "1e-4")):
        fake_run(tmp_path / name, {"optimizer.lr": rate}, 0.7)
    (tmp_path / "1" / "report.html").unlink()  # killed before it; the last was drawn again in its own right
    assert list(report_sweep(tmp_path)["run"]) == ["0", "from2_0", "from2_1"]
    found, left_out = run_folders([tmp_path])
    assert list(found) == ["0", "from2_0", "from2_1"]
    assert left_out == [str(tmp_path / "1")]


def test_a_varied_number_of_training_patients_gives_a_learning_curve(tmp_path: Path) -> None:
    for number, patients in enumerate((50, 100, 200)):
        fake_run(tmp_path / str(number), {"split.training_patients": str(patients)}, 0.6 + 0.1 * number)
    report_sweep(tmp_path)
    assert (tmp_path / "learning_curve.png").is_file()
    assert not (tmp_path / "importance.png").exists()


@pytest.mark.parametrize(("values", "drawn"), [("128", {"curve"}), ("abc", {"parallel_coordinates", "importance"})])
def test_one_varied_setting_gives_a_curve_if_it_is_a_number(tmp_path: Path, values: str, drawn: set[str]) -> None:
    for number, value in enumerate(values):
        fake_run(tmp_path / str(number), {"data.batches.views": value}, 0.6 + 0.1 * number)
    report_sweep(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.png")} == drawn


def test_only_complete_cross_validations_are_pooled_each_for_itself(tmp_path: Path) -> None:
    for number, (rate, fold) in enumerate([("1e-4", 0), ("1e-4", 1), ("1e-5", 0), ("1e-4", 2), ("1e-4", 3)]):
        fake_run(tmp_path / str(number), {"fold": str(fold), "optimizer.lr": rate}, 0.7, fold=fold)
    groups = [[run.folder.name for run in group] for group in complete_folds(read_runs(tmp_path))]
    assert groups == [["0", "1"], ["3", "4"]], "folds 2 and 3 of two are the second repeat"


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no runs"):
        report_sweep(tmp_path)


def test_of_a_sweep_that_was_refused_before_its_first_run_nothing_is_said_or_reported(tmp_path: Path) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepReport().on_multirun_start(config)
    SweepReport().on_multirun_end(config)
    assert [file.name for file in tmp_path.iterdir()] == ["multirun.yaml"]


def test_the_setting_that_decides_is_the_most_important() -> None:
    generator = np.random.default_rng(0)
    decides, noise = generator.uniform(size=60), generator.choice(["a", "b"], size=60)
    shares = importances({"decides": list(decides), "noise": list(noise)}, [*(2 * decides[:59]), np.nan])
    assert shares["decides"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_a_curve_shows_every_run_and_parallel_coordinates_one_line_each() -> None:
    interval = [0.5, 0.7, np.nan], [0.7, 0.9, np.nan]
    figure = curve([10, 100, 100], [0.6, 0.8, np.nan], *interval, name="patients", split="test")
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [10, 100]
    curve([10], [np.nan], [np.nan], [np.nan], name="patients", split="test")  # of runs that came to no number
    lines = parallel_coordinates({"lr": ["1e-5", "1e-3"], "name": ["a", "b"]}, [0.5, 0.6]).axes[0].get_lines()
    assert sum(len(line.get_xdata()) == 3 for line in lines) == 2


def test_an_optuna_sweep_goes_on_with_what_was_cut_off(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    study = optuna.create_study(study_name="idh", storage=storage, direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("optimizer.lr", 0, 1), n_trials=3)
    cut_off = study.ask().suggest_float("optimizer.lr", 0, 1)
    assert remaining_trials(tmp_path, 5) == 2
    again = optuna.load_study(study_name="idh", storage=storage).ask()
    assert again.suggest_float("optimizer.lr", 0, 1) == cut_off
    with pytest.raises(ConfigError, match="all 3 trials are finished"):
        remaining_trials(tmp_path, 3)


def test_an_optuna_sweep_that_goes_on_draws_other_trials_and_not_the_finished_ones_again(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"

    def drawn(seed: int, trials: int) -> list[float]:
        study = optuna.create_study(
            study_name="idh", storage=storage, load_if_exists=True, sampler=optuna.samplers.TPESampler(seed=seed)
        )
        study.optimize(lambda trial: trial.suggest_float("optimizer.lr", 0, 1), n_trials=trials)
        return [trial.params["optimizer.lr"] for trial in study.trials][-trials:]

    first = drawn(0, 2)
    for number in range(2):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
    hydra = {
        "overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": ["sweep=optuna"]},
        "sweeper": {"_target_": "hydra_plugins.optuna.Sweeper", "n_trials": 4, "sampler": {"seed": "${seed}"}},
    }
    OmegaConf.save({"hydra": hydra}, tmp_path / "multirun.yaml")
    (seed,) = (
        one.partition("=")[2]
        for one in expanded(["--resume", str(tmp_path)])
        if one.startswith("hydra.sweeper.sampler.seed=")
    )
    assert not set(drawn(int(seed), 2)) & set(first)


def test_a_sweep_folder_gives_its_own_command_again(tmp_path: Path) -> None:
    hydra = {
        "overrides": {
            "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=x"],
            "task": ["sweep=folds", "checkpoint=last"],
        },
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
    }
    OmegaConf.save({"hydra": hydra}, tmp_path / "multirun.yaml")
    expected = [
        "--multirun", "sweep=folds", f"hydra.sweep.dir='{tmp_path}'", "checkpoint=last",
        "hydra.output_subdir=.hydra/later", "trainer.devices=1",
    ]  # fmt: skip
    assert expanded(["--resume", str(tmp_path), "trainer.devices=1"]) == expected
    with pytest.raises(ConfigError, match=r"found seed, which would make the recipes of its runs false"):
        expanded(["--resume", str(tmp_path), "seed=1", "hydra.sweeper.n_trials=9"])


def test_a_run_that_a_sweep_comes_to_later_gets_its_recipe(tmp_path: Path) -> None:
    (tmp_path / ".hydra" / "later").mkdir(parents=True)
    for name in ("config", "overrides"):
        (tmp_path / ".hydra" / "later" / f"{name}.yaml").write_text("later")
    (tmp_path / ".hydra" / "overrides.yaml").write_text("first")
    keep_recipe(tmp_path)
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == "later"
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "first"


def test_the_end_of_a_sweep_says_whether_its_runs_can_be_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        fake_run(tmp_path / "same" / str(number), {"seed": str(number)}, 0.7)
        fake_run(tmp_path / "other" / str(number), {"split.seed": str(number)}, 0.7)
    file = tmp_path / "other" / "1" / "predictions.csv"
    table = pd.read_csv(file)
    table.replace({"SNone0": "S9", "SNone1": "S8"}).to_csv(file, index=False)
    with caplog.at_level("INFO"):
        say_how_to_compare(tmp_path / "same", read_runs(tmp_path / "same"))
        assert f"python -m idh_lightning.report runs={tmp_path / 'same'}" in caplog.text
        say_how_to_compare(tmp_path / "other", read_runs(tmp_path / "other"))
    assert "different test patients (varied: split.seed)" in caplog.text
    assert "Keep split.seed and vary seed" in caplog.text


def test_training_seeds_do_not_change_who_is_tested() -> None:
    for split in ("holdout", "kfold"):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose("train", overrides=["seed=5", f"split={split}"])
        assert config.split.seed == 0


@pytest.mark.parametrize("choice", ["sweep=folds", "sweep=grid", "experiment=learning_curve", "trainer=ddp"])
def test_the_files_for_scale_compose(choice: str) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=[choice])
    assert config.seed == 0
    if choice == "sweep=folds":
        assert config.data.calibrate_on == "synthetic"
        assert config.split.folds == 5


def test_a_sweep_over_sites_has_one_fold_for_each_and_results_by_the_column_that_it_splits_by() -> None:
    overrides = ["sweep=folds", "split=leave_site_out", "split.folds=3", "split.site=Hospital"]
    OmegaConf.register_new_resolver("product", lambda *factors: math.prod(factors), replace=True)
    config = composed("train", overrides, hydra_too=True)
    assert config.split._target_.endswith(".LeaveSiteOut")
    assert config.hydra.sweeper.params.fold == "range(3)"
    assert config.evaluation.subgroups.site == "Hospital"
    assert composed("train", ["sweep=folds"]).evaluation.subgroups.site == "site"


@pytest.mark.parametrize("overrides", [["sweep=folds"], ["experiment=learning_curve"], ["sweep=grid"]])
def test_the_folder_of_a_sweep_is_known_before_its_first_run(overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=overrides, return_hydra_config=True)
    assert not HydraConfig.initialized()
    assert config.hydra.sweep.dir.startswith("outputs/sweeps/")


def test_what_a_wandb_agent_would_start_composes() -> None:
    plan = yaml.safe_load((CONF_DIR / "sweep" / "wandb.yaml").read_text(encoding="utf-8"))
    ranges = plan["parameters"].items()
    chosen = [f"{name}={space.get('min', space.get('values', [None])[0])}" for name, space in ranges]
    fixed = [word for word in plan["command"] if "=" in word]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=[*fixed, *chosen])
    assert "wandb" in config.logger
    assert config.optimizer.lr == 1e-5
    assert plan["metric"] == {"name": "val/study_auroc", "goal": "maximize"}, (
        "losses of different gamma are not comparable"
    )
    assert plan["program"] == "idh_lightning.train"


def test_a_search_by_optuna_composes_with_its_plugin() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=["sweep=optuna"], return_hydra_config=True)
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(sweeper, dict)
    assert sweeper["storage"].endswith("sweep.db")
    assert "Optuna" in sweeper["_target_"]


def cohort(patients: int) -> Cohort:
    studies = [
        Study(study_id=f"S{index:03d}", patient_id=f"P{index:03d}", label=int(index % 4 == 0), files={})
        for index in range(patients)
    ]
    return Cohort(name="made", studies=tuple(studies), exclusions=(), faults=(), sequences=("FLAIR",))


@pytest.mark.parametrize("split", [HoldOut(seed=3), KFold(seed=3, fold=1)])
def test_fewer_training_patients_leave_the_other_parts_as_they_are(split: HoldOut | KFold) -> None:
    from dataclasses import replace

    whole = split(cohort(120))
    some = [replace(split, training_patients=count)(cohort(120)) for count in (20, 40)]
    for table, count in zip(some, (20, 40), strict=True):
        training = table[table["split"] == "train"]
        assert training["patient_id"].nunique() == count
        assert training["label"].mean() == pytest.approx(0.25, abs=0.03)
        rest = whole[whole["split"] != "train"].reset_index(drop=True)
        pd.testing.assert_frame_equal(table[table["split"] != "train"].reset_index(drop=True), rest)
    assert set(some[0]["study_id"]) < set(some[1]["study_id"]) < set(whole["study_id"])
    with pytest.raises(SplitError, match=r"split.training_patients: found 1000"):
        replace(split, training_patients=1000)(cohort(120))


def test_no_folder_and_no_excluded_patient_is_in_what_wandb_is_told() -> None:
    told = without_places(
        {"paths": {"run": "/home/me/x"}, "cohort": {"folder": "/data/hospital", "exclude": ["P1", "P2"], "patients": 3}}
    )
    assert told == {"cohort": {"folder": "(a path)", "exclude": "2 studies or patients", "patients": 3}}
    here = {
        "cohort": {"table": "smith.csv", "aliases": "names"},
        "model": {"weights": "smith.pth", "locator": "x.safetensors"},
    }
    here |= {
        "split": {"file": "smith"},
        "monitor": {"metric": "val/loss"},
        "optimizer": {"_target_": "torch.optim.AdamW"},
    }
    assert without_places(here) == {
        "cohort": {"table": "(a path)", "aliases": "(a path)"},
        "model": {"weights": "(a path)", "locator": "(a path)"}, "split": {"file": "(a path)"},
        "monitor": {"metric": "val/loss"}, "optimizer": {"_target_": "torch.optim.AdamW"},
    }  # fmt: skip


def test_images_that_bear_names_need_leave_for_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identifiers=true"):
        Tracker(run_folder=tmp_path, save_dir=str(tmp_path), images=True)


@pytest.mark.parametrize(
    ("environment", "setting", "meant"),
    [
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "auto", "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "k"}, "auto", "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "auto", "offline"),
        ({"WANDB_MODE": "dryrun"}, "auto", "offline"),
        ({"WANDB_API_KEY": "k"}, "auto", "online"),
        ({}, "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "offline", "offline"),
        ({"WANDB_API_KEY": "k"}, "disabled", "disabled"),
    ],
)
def test_wandb_is_as_its_environment_says_unless_the_configuration_says_more(
    environment: dict[str, str], setting: Any, meant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking.tracking_mode(setting) == meant
    if meant == "disabled":
        assert tracking.wandb_logger(run_folder=tmp_path / "run", save_dir=str(tmp_path / "run"), mode=setting) is None
        assert not (tmp_path / "run").exists(), "nothing is written"


@pytest.mark.parametrize("said", ["ofline", "disable", "none", "off", "false"])
def test_a_misspelt_mode_of_wandb_uploads_nothing(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with pytest.raises(ConfigError, match=f"WANDB_MODE: found '{said}'; expected one of online, offline, disabled"):
        tracking.tracking_mode("auto")
    assert tracking.tracking_mode("offline") == "offline"


def test_wandb_online_without_a_key_and_a_broken_wandb_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match="WANDB_MODE=online and no API key"):
        tracking.tracking_mode("auto")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb cannot be imported"):
        tracking.tracking_mode("offline")


def test_a_server_that_takes_no_connection_or_never_answers_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_CHECK_S", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "127.0.0.1" in tracking._unreachable(address)
        free.listen(1)
        assert "127.0.0.1" in tracking._unreachable(address)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # which answers 501
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert tracking._unreachable(f"http://127.0.0.1:{server.server_port}") == ""


def finished_run(folder: Path) -> dict[str, Any]:
    """Write what the end of a run leaves for W&B: two studies, one of them with a panel; return its metrics."""
    (folder / "figures" / "cam").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    Image.new("RGB", (4, 3)).save(folder / "figures" / "cam" / "S1.png")
    rows = {"study_id": ["S1", "S2"], "patient_id": ["P1", "P2"], "split": "test", "probability": [0.9, 0.2]}
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    area = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 2}
    return {"target": {"name": "idh"}, "test": {"auroc": area, "ece": {"value": None, "low": None, "high": None}}}


@pytest.mark.parametrize("allowed", [True, False])
def test_wandb_is_told_what_its_panels_need_and_images_names_and_weights_only_by_leave(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = finished_run(tmp_path / "run")
    tracker = tracking.wandb_logger(
        run_folder=tmp_path / "run", save_dir=str(tmp_path), mode="offline", name="phantom seed=1", group="search",
        job_type="optimizer.lr=0.1", images=allowed, identifiers=allowed, model=allowed,
    )  # fmt: skip
    assert tracker is not None
    tracker.log_recipe({"optimizer": {"lr": 0.1}, "seed": 1, "paths": {"run": "/home/me"}})
    tracker.log_results(metrics)
    tracking.finish_tracking()
    wandb.teardown()  # only then the file is whole
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(records_of(file))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.run_group, run.job_type) == ("phantom seed=1", "search", "optimizer.lr=0.1")
    assert settings_told(records) == {"optimizer.lr": 0.1, "seed": 1}
    updates = [update for record in records for update in record.summary.update]
    summary = {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}
    assert summary["test/auroc/value"] == 0.75
    assert not any("ece" in key for key in summary), "what was not computed is no zero"
    table = json.loads(next(tmp_path.rglob("*.table.json")).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    artefacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
    kept = [entry.path for entry in artefacts["run_table"].manifest.contents]
    if not allowed:
        assert "panel" not in table["columns"]
        assert not {"S1", "S2", "P1", "P2"} & {value for row in rows for value in row.values()}
        assert set(artefacts) == {"run_table"}
        assert not [path for path in kept if path.endswith(".png")]
        return
    assert [(row["study_id"], row["panel"]) for row in rows] == [("S1", "Image"), ("S2", None)]
    assert [Path(path).name for path in kept if path.endswith(".png")] == ["S1.png"]
    assert set(artefacts["model"].aliases) == {"best", "latest"}
    assert json.loads(artefacts["model"].metadata) == {"test/auroc": 0.75, "test/ece": None, "target": "idh"}


def test_a_run_of_a_sweep_is_called_by_what_is_varied_and_by_no_place_and_no_patient(tmp_path: Path) -> None:
    task = ["model=efficientnet_b0", "seed=0,1", "cohort.table=/a/x.csv,/b/y.csv", "cohort.exclude=[P1],[P2]"]
    task += ["split.file=x.csv,y.csv", "paths.data=smith,jones"]
    OmegaConf.save({"hydra": {"overrides": {"task": task}}}, tmp_path / "multirun.yaml")
    here = ["model=efficientnet_b0", "seed=1", "cohort.table='/b/y.csv'", "cohort.exclude=[P2]", "optimizer.lr=0.1"]
    here += ["split.file=y.csv", "paths.data=jones"]
    assert assembly.varied_here(tmp_path, here) == {
        "seed": "seed=1",
        "cohort.table": "cohort.table=(a path)",
        "cohort.exclude": "cohort.exclude=1 studies or patients",
        "optimizer.lr": "optimizer.lr=0.1",  # of hydra.sweeper.params
        "split.file": "split.file=(a path)",
    }


def test_wandb_is_not_given_a_setting_that_it_only_warns_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = tracking.wandb_logger(run_folder=tmp_path, save_dir=str(tmp_path))
    assert tracker is not None
    assert tracker.experiment.id
    tracking.finish_tracking()
    assert "anonymous" not in "".join(capfd.readouterr())
