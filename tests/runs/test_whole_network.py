"""The small network of the tests has every part of the default one, and the commands that take a run work on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from tiny_checkpoint import settings_of, tiny_cohort, write_run

from idh_lightning.cohort import SEQUENCES, Study
from idh_lightning.commands import evaluating as evaluate
from idh_lightning.commands import training as train_module
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.models import StemTailNetwork


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    folder = tmp_path_factory.mktemp("cohort")
    heads = tiny_cohort(folder, 24)
    rows = [
        {"study_id": study.study_id, "patient_id": study.patient_id, "idh": ("wildtype", "mutant")[index // 2 % 2]}
        | {name: str(study.files[name]) for name in SEQUENCES}
        | {"tumor_segmentation": str(study.mask)}
        for index, study in enumerate(heads)
    ]
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return heads


@pytest.fixture(scope="module")
def run(cohort: list[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", cohort)


def table_of(cohort: list[Study]) -> str:
    return f"cohort.table={cohort[0].files['FLAIR'].parents[1] / 'table.csv'}"


def test_the_small_network_has_every_part_of_the_default_one(run: Path) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        default = compose("train", overrides=["name=default", "paths.run=outputs/default"])
    small = settings_of(run)
    for section in ("objective", "explain", "optimizer", "scheduler", "evaluation", "augment"):
        assert small[section] == default[section], section
    differing = {key for key in default.model if small.model[key] != default.model[key]}
    assert differing <= {"backbone", "weights", "drop_rate"}
    settings = {key: value for key, value in default.model.items() if key not in ("_target_", "missing")}
    with torch.device("meta"):
        whole = StemTailNetwork(**{**settings, "weights": "later"})
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)

    def parts(names: Iterable[str]) -> set[str]:
        return {".".join(name.split(".")[:2]) for name in names}

    assert parts(name.removeprefix("network.") for name in content["state_dict"]) >= parts(whole.state_dict())
    edges = [-(-edge // 32) for edge in small.data.grid]
    assert len({edge % 2 for edge in edges}) == len({-(-edge // 32) % 2 for edge in default.data.grid}) == 2


@pytest.mark.slow
def test_another_cohort_is_evaluated_with_a_network_with_every_part(
    run: Path, cohort: list[Study], tmp_path: Path
) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        places = (f"paths.run={tmp_path / 'out'}", f"paths.store={run / 'store'}")
        asked = (f"checkpoint={run}", "name=external", table_of(cohort), "seen=exclude", "evaluation.bootstrap=100")
        config = compose("evaluate", overrides=[*asked, *places, "trainer.accelerator=cpu"])
    evaluate.evaluate(config)
    answers = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("study_id")
    found, weights = answers["logit"], (12 / (12 + 300), 12 / (12 + 100), 1)  # 12 training patients
    branches = answers[["logit_deep", "logit_reader", "logit_vote"]]
    np.testing.assert_allclose(found, branches @ weights / sum(weights), atol=1e-5)
    stored = pd.read_csv(run / "predictions.csv").query("split == 'test'").set_index("study_id")["logit"]
    assert list(found.index) == list(stored.index)
    np.testing.assert_allclose(found, stored, atol=0.02)  # a stem in bfloat16 rounds by how many are taken at once
    assert (tmp_path / "out" / "explanations" / f"{found.index[0]}_cam.nii.gz").is_file()


@pytest.mark.slow
def test_a_run_with_a_network_with_every_part_goes_on_after_its_training(
    run: Path, cohort: list[Study], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copy(other / "checkpoints" / "best.ckpt", other / "checkpoints" / "last.ckpt")
    (other / "finished.json").write_text(json.dumps({"fit": "2025-01-01"}))
    stored = pd.read_csv(other / "predictions.csv").set_index("study_id")["logit"]
    asked = ("cohort=table", table_of(cohort), "checkpoint=last", "evaluation.bootstrap=100", "trainer.accelerator=cpu")
    train_module.train(settings_of(other, *asked, "split.validation=0.25", "split.test=0.25"))
    found = pd.read_csv(other / "predictions.csv").set_index("study_id")["logit"]
    both = found.index.intersection(stored.index)
    assert len(both)
    np.testing.assert_allclose(found[both], stored[both], atol=0.02)
    assert (other / "report.html").is_file()
    assert set(torch.load(other / "checkpoints" / "best.ckpt", weights_only=True)) >= {"post_processing", "model_card"}
