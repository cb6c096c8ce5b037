from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from idh_lightning.benchmark.growth import Point, growth_figure
from idh_lightning.benchmark.pipelines import Measured, _check, _example, _record
from idh_lightning.errors import ConfigError
from idh_lightning.models.fast.precision import precision_on_cpu


def test_a_whole_training_counts_the_filling_of_the_bank() -> None:
    config = OmegaConf.create({"benchmark": {"views": 4, "epochs": 15, "training_studies": 140}})
    plain = Measured(pipeline="plain", seconds_per_study=6.0, peak_mb=1)
    bank = Measured(pipeline="bank", seconds_per_study=0.2, peak_mb=1, once_per_view_s=0.5)
    example = _example(config, [plain, bank])
    assert example is not None
    assert example["times_as_fast"] == pytest.approx(15 * 6.0 / (4 * 0.5 + 15 * 0.2))
    assert example["hours_of_the_yardstick"] == pytest.approx(15 * 140 * 6 / 3600)
    assert _example(config, [plain]) is None


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"benchmark\.pipelines: found .*'warp'"):
        _check(["plain", "warp"])
    with pytest.raises(ConfigError, match=r"benchmark\.tasks: found .*'sing'"):
        _check(["plain"], ["sing"])


def test_a_pipeline_that_could_not_be_measured_stays_in_the_record_with_its_reason() -> None:
    config = OmegaConf.create(
        {
            "benchmark": {"views": 4, "epochs": 15, "training_studies": 140},
            "data": {"grid": 8, "batches": {"batch_size": 2}},
            "trainer": {"accelerator": "cpu"},
        }
    )
    plain = Measured(pipeline="plain", seconds_per_study=6.0, peak_mb=1)
    record = _record(config, [plain, Measured(pipeline="monai", note="not installed")], {"predict": 2.0})
    assert [row["times_as_fast"] for row in record["rows"]] == [1.0, None]
    assert record["rows"][1]["note"] == "not installed"
    assert record["seconds_per_study_of_tasks"] == {"predict": 2.0}


def test_speed_is_told_beside_a_yardstick_with_our_memory_settings_and_beside_one_as_torch_comes() -> None:
    config = OmegaConf.create(
        {
            "benchmark": {"views": 4, "epochs": 15, "training_studies": 140},
            "data": {"grid": 8, "batches": {"batch_size": 2}},
            "trainer": {"accelerator": "cpu"},
        }
    )
    seconds = {"plain": 2.0, "stock": 4.0, "bank": 0.1}
    rows = _record(config, [Measured(pipeline=key, seconds_per_study=each) for key, each in seconds.items()], {})[
        "rows"
    ]
    assert [row["times_as_fast"] for row in rows] == pytest.approx([1.0, 0.5, 20.0])
    assert [row["times_as_fast_as_stock"] for row in rows] == pytest.approx([2.0, 1.0, 40.0])


def test_growth_is_drawn_with_a_column_per_setting() -> None:
    points = [
        Point(axis=axis, value=value, pipeline=pipeline, seconds_per_study=value, peak_mb=100 * value)
        for axis in ("data.grid", "cohort.patients")
        for value in (1.0, 2.0)
        for pipeline in ("on_the_fly", "bank")
    ]
    panels = growth_figure(points).axes
    assert [panel.get_xlabel() for panel in panels if panel.get_xlabel()] == ["data.grid", "cohort.patients"]
    assert all(len(panel.lines) == 2 for panel in panels)


def benchmark(folder: Path, *arguments: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "idh_lightning.benchmark", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_benchmark_measures_every_pipeline_and_writes_them_down(tmp_path: Path) -> None:
    done = benchmark(
        tmp_path,
        *("cohort.spacing_mm=4", "data.grid=32", "data.batches.workers=0"),
        *("model=efficientnet_b0", "model.weights=none", "hydra.run.dir=out"),
        *("benchmark.pipelines=[plain,stock,on_the_fly,bank]", "benchmark.studies=2", "benchmark.repeats=1"),
        "benchmark.tasks=[locate,explain,predict]",
    )
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [row["pipeline"] for row in record["rows"]] == ["plain", "stock", "on_the_fly", "bank"]
    assert all(row["seconds_per_study"] > 0 and row["peak_mb"] > 100 for row in record["rows"])
    assert record["rows"][3]["once_per_view_s"] > 0
    assert set(record["seconds_per_study_of_tasks"]) == {"locate", "explain", "predict"}
    assert "times as fast" in done.stdout
    assert Image.open(tmp_path / "out" / "benchmark.png").size[0] > 500


@pytest.mark.slow
def test_each_setting_is_measured_in_a_process_of_its_own_and_takes_about_what_was_estimated(
    tmp_path: Path,
) -> None:
    benchmark(
        tmp_path,
        *("memory", "model=efficientnet_b0"),
        *("data.grid=65", "hydra.run.dir=out"),
    )
    rows = {row["setting"]: row for row in json.loads((tmp_path / "out" / "memory.json").read_text())["rows"]}
    assert list(rows)[:2] == ["everything learns", "two last stages"]  # B0 has no blocks.6.2
    assert rows["two last stages"]["activations_mb"] < 0.5 * rows["everything learns"]["activations_mb"]
    assert rows["two last stages"]["peak_mb"] < rows["everything learns"]["peak_mb"]
    for row in rows.values():
        assert row["estimated_mb"] < row["peak_mb"] < row["estimated_mb"] + 400  # libraries take something too
        assert row["precision"] == precision_on_cpu()


@pytest.mark.slow
def test_start_up_is_measured_from_the_command_line_to_the_answer(tmp_path: Path) -> None:
    benchmark(
        tmp_path,
        *("startup", "benchmark.repeats=1"),
        *("cohort.patients=12", "cohort.spacing_mm=4", "hydra.run.dir=out"),
        timeout=600,
    )
    seconds = json.loads((tmp_path / "out" / "startup.json").read_text())["seconds"]
    assert list(seconds) == ["--help", "a misspelt key", "a table that is not there", "a new patient"]
    assert all(len(each) == 1 and each[0] > 0 for each in seconds.values())
    assert (tmp_path / "out" / "predictions" / "predictions.csv").is_file(), "the real command has run"
