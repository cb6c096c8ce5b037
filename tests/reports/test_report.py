"""Folds pooled and runs compared, as a user asks for it but for the process."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from scipy.special import expit

from idh_lightning.commands import reporting as report
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import ConfigError, EvaluationError
from idh_lightning.evaluation import Evaluation, PostProcessing
from idh_lightning.reports.model_card import write_model_card
from idh_lightning.reports.run_folder import read_run
from idh_lightning.reports.run_page import write_report

HOSTILE = "<script>alert(1)</script>"


def run_report(*runs: Path, folder: Path) -> dict:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        config = compose(
            "report", overrides=[f"paths.run={folder}", "evaluation.bootstrap=100", f"runs={[str(r) for r in runs]}"]
        )
    return report.report(config)


def write_run(
    folder: Path, *, test: range, seed: int, hostile: bool = False, twice: bool = False, sites: Sequence[str] = ()
) -> Path:
    """Write the tables of a run in which these of 200 patients were tested; with `twice` all have a follow-up.

    The studies of a patient then have logits of +0.5 and -3 (wildtype) or +3 and +0.5 (mutant). With `sites`, patients
    are of as many sites, each hundred of its own, and a run tests one.
    """
    rng = np.random.default_rng(0)
    number = np.arange(200)
    cohort = pd.DataFrame(
        {
            "study_id": [HOSTILE if hostile and i == 0 else f"S{i:03d}" for i in number],
            "patient_id": [f"{i:03d}" for i in number],
            "label": (number % 4 == 0).astype(int),
            "split": np.where(np.isin(number, test), "test", np.where(number % 3 == 0, "validation", "train")),
            "fold": seed,
            "age_years": rng.normal(60 - 15 * (number % 4 == 0), 10),
        }
    )
    if sites:
        cohort["site"] = [sites[i // 100] for i in number]
    if twice:
        again = cohort.assign(study_id=cohort["study_id"] + "_FU", follow_up=True)
        cohort = pd.concat([cohort.assign(follow_up=False), again], ignore_index=True)
    rng = np.random.default_rng(seed)
    predictions = cohort[cohort["split"] != "train"][["study_id", "patient_id", "split", "fold", "label"]]
    logit = (1 + seed) * (rng.normal(size=len(predictions)) + 2 * predictions["label"] - 1)
    if twice:
        later = predictions["study_id"].str.endswith("_FU")
        # Every tenth patient is of the other class than it seems.
        seems = predictions["label"] ^ (predictions["patient_id"].astype(int) % 10 == 9)
        logit = np.select([seems == 1, ~later], [np.where(later, 0.5, 3.0), 0.5], -3.0)
    predictions = predictions.assign(logit=logit, probability=expit(logit))
    features = cohort[["study_id"]].assign(volume_ml=rng.normal(60, 20, len(cohort)))
    results = Evaluation(bootstrap=100)(predictions, cohort, features)
    (folder / ".hydra").mkdir(parents=True)
    target = ", _target_: idh_lightning.cohort.LeaveSiteOut" if sites else ""
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 0\nfold: {seed}\nsplit: {{folds: 2{target}}}\n")
    (folder / ".hydra" / "overrides.yaml").write_text(f"- fold={seed}\n- split=kfold\n")
    cohort.to_csv(folder / "cohort.csv", index=False)
    features.to_csv(folder / "features.csv", index=False)
    results.predictions.to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps(results.metrics))
    (folder / "provenance.json").write_text(json.dumps({"cohort": "ucsf_pdgm", "seconds": {"fit": seed}}))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds and a job that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    write_run(folder / "0", test=range(100), seed=0, hostile=True)
    write_run(folder / "1", test=range(100, 200), seed=1)
    (folder / "2" / ".hydra").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: original(self, path, dpi=20))


@pytest.mark.slow
def test_sites_left_out_one_by_one_are_pooled_with_a_row_and_scores_for_each(tmp_path: Path) -> None:
    for fold in range(2):
        tested = range(100 * fold, 100 * fold + 100)
        write_run(tmp_path / "sweep" / str(fold), test=tested, seed=fold, sites=("A", "<B>"))
    groups = run_report(tmp_path / "sweep", folder=tmp_path / "out")["subgroups"]["site"]
    assert {name: group["n"] for name, group in groups["groups"].items()} == {"A": 100, "<B>": 100}
    gap = groups["gaps"]["auroc"]
    best, worst = (groups["groups"][name]["auroc"]["value"] for name in gap["groups"])
    assert gap["value"] == pytest.approx(best - worst)
    assert gap["low"] < gap["value"] < gap["high"]
    page = re.sub(r"\s+", " ", (tmp_path / "out" / "report.html").read_text())
    assert "largest gap, site" in page
    assert "fold=0, site A" in page
    assert "P(mutant) of each test patient by site; medians: &lt;B&gt;: " in page
    assert "each judged by a network that learnt from other sites alone" in page
    assert re.search(r"&lt;B&gt;, n = 100: ROC-AUC 0\.\d\d \(", page)
    assert (tmp_path / "out" / "figures" / "narrow" / "sites.png").is_file()


def test_a_folder_of_folds_is_pooled_into_one_report(sweep: Path, tmp_path: Path) -> None:
    metrics = run_report(sweep, folder=tmp_path)
    assert metrics["runs"]["relation"] == "folds"
    assert metrics["test"]["auroc"]["n"] == 200
    assert metrics["baselines"]["features"]["test"]["auroc"]["n"] == 200
    assert metrics["comparisons"]["model_vs_features"]["n"] == 200
    predictions = pd.read_csv(tmp_path / "predictions.csv", converters={"patient_id": str})
    assert set(predictions["patient_id"]) == {f"{i:03d}" for i in range(200)}
    for name, rows in predictions.groupby("run"):
        own = pd.read_csv(sweep / str(name) / "predictions.csv").set_index("study_id")
        both = rows.set_index("study_id").join(own, rsuffix="_own")
        np.testing.assert_allclose(both["probability"], both["probability_own"])
        assert (both["predicted"] == both["predicted_own"]).all()
    page = (tmp_path / "report.html").read_text()
    assert "On 200 patients, each judged in the one of 2 folds that left them out" in page
    assert "Every setting is in .hydra/config.yaml of the folder of each fold" in page
    assert "Does it depend on the fold?" in page
    assert "came to no predictions" in page, "the failed job is told"
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    # Of the recipes and of the provenance only what all folds share is shown.
    assert metrics["runs"]["config"] == {"seed": 0, "split": {"folds": 2}}
    assert metrics["runs"]["settings"] == {"0": ["fold=0"], "1": ["fold=1"]}
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["cohort"] == "ucsf_pdgm"
    assert provenance["seconds"] == {}


def test_the_report_calls_each_patient_as_their_fold_did(sweep: Path, tmp_path: Path) -> None:
    metrics = run_report(sweep, folder=tmp_path)
    people = read_run(tmp_path).patients("test")
    cells = metrics["confusion"]["test"]
    assert int(((people["predicted"] == 1) & (people["label"] == 1)).sum()) == cells["tp"]
    assert int(((people["predicted"] == 0) & (people["label"] == 0)).sum()) == cells["tn"]


def test_runs_on_the_same_patients_are_compared(sweep: Path, tmp_path: Path) -> None:
    twin = write_run(tmp_path / "twin", test=range(100), seed=5)
    metrics = run_report(sweep / "0", twin, folder=tmp_path / "compared")
    assert metrics["runs"]["relation"] == "same patients"
    (pair,) = metrics["runs"]["pairs"]
    assert pair["n"] == 100
    own = json.loads((twin / "metrics.json").read_text())["test"]["auroc"]["value"]
    assert pair["second"] == pytest.approx(own)
    page = (tmp_path / "compared" / "report.html").read_text()
    assert "On the same 100 test patients (25 mutant), the ROC-AUC of 2 runs goes from" in page
    assert "not computed" not in page
    assert "The two cannot be told apart (paired DeLong test, no p below 0.05" in page
    assert "Each run on the same 100 test patients, with 95% intervals" in page


@pytest.mark.slow
def test_a_patient_with_logits_of_a_half_and_minus_three_is_called_alike_everywhere(tmp_path: Path) -> None:
    """In metrics.json, the run's page and model card, pooled folds and the comparison of runs."""
    whole = write_run(tmp_path / "whole", test=range(100), seed=0, twice=True)
    twin = write_run(tmp_path / "twin", test=range(100), seed=1, twice=True)
    other = write_run(tmp_path / "other", test=range(100, 200), seed=1, twice=True)
    metrics = json.loads((whole / "metrics.json").read_text())
    studies = pd.read_csv(whole / "predictions.csv", converters={"patient_id": str}).query("split == 'test'")
    learnt = PostProcessing.from_metrics(metrics)
    logits = studies.groupby("patient_id")["logit"].mean()
    expected = learnt.apply(logits).set_index(logits.index)
    (seemingly,) = set(logits[logits < 0])
    assert seemingly == -1.25
    means = studies.groupby("patient_id")[["probability", "predicted"]].mean()
    assert (means["predicted"] == 0.5).any(), "the studies of a patient alone are called differently"
    truth = studies.groupby("patient_id")["label"].first()
    right = float((expected["predicted"] == truth).mean())

    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    people = read_run(whole).patients("test")
    np.testing.assert_allclose(people["probability"], expected["probability"])
    assert (people["predicted"] == expected["predicted"]).all()
    page = write_report(whole).read_text()
    told = dict(re.findall(r">(\d{3})</th>(?:(?!</tr>).)*?>(\d\.\d\d)</td>", page, re.S))
    assert told == {patient: f"{p:.2f}" for patient, p in expected["probability"].items()}
    assert f"| accuracy | {right:.2f} |" in write_model_card(whole)

    compared = run_report(whole, twin, folder=tmp_path / "compared")["runs"]
    assert compared["test"]["whole"]["accuracy"]["value"] == pytest.approx(right)
    assert compared["test"]["whole"]["brier"]["value"] == pytest.approx(metrics["test"]["brier"]["value"])
    assert compared["spread"]["runs"]["whole"]["accuracy"] == pytest.approx(right)
    assert compared["spread"]["runs"]["whole"]["auroc"] == pytest.approx(metrics["test"]["auroc"]["value"])

    run_report(whole, other, folder=tmp_path / "pooled")
    pooled = read_run(tmp_path / "pooled").patients("test").loc[expected.index]
    np.testing.assert_allclose(pooled["probability"], expected["probability"])
    assert (pooled["predicted"] == expected["predicted"]).all()


def test_runs_that_are_neither_folds_nor_twins_are_refused(sweep: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", test=range(50, 150), seed=5)
    with pytest.raises(EvaluationError, match="50 of 100 and 100 test patients are the same"):
        run_report(sweep / "0", other, folder=tmp_path / "refused")
    with pytest.raises(EvaluationError, match="found 1; expected two or more"):
        run_report(sweep / "0", folder=tmp_path / "refused")
    with pytest.raises(ConfigError, match="nowhere holds no predictions"):
        run_report(tmp_path / "nowhere", folder=tmp_path / "refused")
    bare = Path(shutil.copytree(sweep / "1", tmp_path / "bare"))
    (bare / "metrics.json").unlink()
    with pytest.raises(EvaluationError, match="has no report; expected"):
        run_report(sweep / "0", bare, folder=tmp_path / "refused")


@pytest.mark.slow
def test_a_patient_with_studies_in_several_groups_is_said_to_count_in_each(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", test=range(100), seed=0, twice=True)
    groups = json.loads((run / "metrics.json").read_text())["subgroups"]["follow_up"]["groups"]
    assert [found["n"] for found in groups.values()] == [100, 100]
    page = write_report(run).read_text()
    for group in ("no", "yes"):
        assert f"follow-up study: {group} (a patient with studies in several groups counts in each)" in page
    once = write_report(write_run(tmp_path / "once", test=range(100), seed=0)).read_text()
    assert "counts in each" not in once


def test_methods_are_named_in_words_on_the_page_and_the_model_card(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", test=range(100), seed=0)
    card, page = write_model_card(run), write_report(run).read_text()
    assert "(rule: the greatest Youden index, sensitivity + specificity − 1)" in card
    assert "Calibration: Platt scaling, slope" in card
    assert "validation patients (Platt scaling: slope" in page
    assert not re.search(r"\b(platt|youden)\b", re.sub(r"<(style|script).*?</\1>", "", page + card, flags=re.DOTALL))
