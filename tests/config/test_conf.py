"""Every choice of every group in conf/ composes, and what it describes can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from idh_lightning.cli.entry import composed
from idh_lightning.config.checks import CONF_DIR, check_config
from idh_lightning.models.segmentation import GRID, load_segmenter
from idh_lightning.runs.rehearsal import check

CHOICES = sorted(f"{file.parent.name}={file.stem}" for file in CONF_DIR.glob("*/*.yaml"))
PARTS = ("sweep=wandb", "data=volumes")
"""No choices: what `wandb sweep` reads, in its own format, and what the files of `data` share."""


def make_all(*overrides: str) -> None:
    config = composed("train", list(overrides))
    check_config(OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]
    check(config)


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice not in PARTS])
def test_every_choice_composes_and_what_it_describes_can_be_made(choice: str, tmp_path: Path) -> None:
    if choice == "sweep=optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    table = tmp_path / "table.csv"
    table.write_text("study_id,patient_id,split\n")
    told = {"folder": tmp_path, "table": table, "file": table}
    chosen = OmegaConf.load(CONF_DIR / f"{choice.replace('=', '/')}.yaml")
    group = choice.split("=")[0]
    needed = [f"{group}.{key}={told[key]}" for key in told if OmegaConf.is_missing(chosen, key)]
    small = [] if group in ("model", "experiment") else ["model=efficientnet_b0"]  # in half a second less
    make_all(choice, *needed, *small, "name=x", f"paths.run={tmp_path / 'run'}", "model.weights=none")


def test_what_the_default_describes_can_be_made(tmp_path: Path) -> None:
    make_all("name=x", f"paths.run={tmp_path / 'run'}")


def test_every_group_has_choices() -> None:
    assert {choice.split("=")[0] for choice in CHOICES} == {path.name for path in CONF_DIR.iterdir() if path.is_dir()}


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (CONF_DIR / "experiment").glob("*.yaml")))
def test_everything_that_an_experiment_sets_is_what_a_run_gets(experiment: str) -> None:
    asked = OmegaConf.load(CONF_DIR / "experiment" / f"{experiment}.yaml")
    got = composed("train", [f"experiment={experiment}", "paths.run=x"])
    for key in asked:
        if key not in ("defaults", "hydra"):
            assert OmegaConf.merge({key: got[key]}, {key: asked[key]})[key] == got[key], key


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ([], False),
        (["data.crop=none"], True),
        (["data.crop=tumour"], True),
        (["data.preprocessing.crop=none"], True),
        (["data.crop=tumour", "stages=[report]"], False),
        (["data.grid=33"], True),
        (["data.grid=64"], False),
        (["data.grid=[97,129,97]"], False),
        (["data.grid=[129,65,65]"], False),
        (["data.grid=[64,128,128]"], False),
        (["data.grid=129", "data.preprocessing.edge_mm=400"], True),
    ],
)
def test_voxels_that_the_locator_does_not_know_are_told(
    overrides: list[str], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "predictions.csv").touch()
    settings = ["name=x", f"paths.run={tmp_path}", "model=efficientnet_b0", "model.weights=none"]
    make_all(*settings, *overrides)
    assert ("model.locator=null explain=grad_cam" in caplog.text) == warned


@pytest.mark.parametrize(
    "remedy",
    [
        "stages=[locate,fit,test,report]",
        "model.locator=null explain=grad_cam",
        "data.preprocessing.crop=brain data.preprocessing.edge_mm=null data.grid=[49,65,49]",
    ],
)
def test_what_is_offered_for_such_voxels_is_taken(
    remedy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["name=x", f"paths.run={tmp_path}", "model=efficientnet_b0", "model.weights=none", "data.crop=none"]
    make_all(*settings, *remedy.split())
    assert "the locator has learnt" not in caplog.text


def test_the_network_that_is_shipped_has_learnt_on_the_default_grid() -> None:
    assert load_segmenter().learnt_on == GRID == tuple(composed("train", ["name=x"]).data.grid)
