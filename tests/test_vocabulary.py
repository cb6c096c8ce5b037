"""One quantity has one name and one number, wherever it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from idh_lightning.attribution import SCORES
from idh_lightning.attribution.summary import LOWER_IS_BETTER
from idh_lightning.cli.tables import number
from idh_lightning.evaluation import Measurement
from idh_lightning.module import IDHClassifier
from idh_lightning.reports.explanations_page import _sequences
from idh_lightning.reports.tables import Estimate
from idh_lightning.reports.vocabulary import COVARIATES, LOCALISATION, METRICS, in_words
from idh_lightning.runs.summary import SUMMARY_METRICS, print_summary


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    label = np.tile([0, 0, 1], 40)
    logit = rng.normal(size=120) + label
    patients = pd.DataFrame({"label": label, "logit": logit, "probability": 1 / (1 + np.exp(-logit))})
    return Measurement(bootstrap=200).measured(patients.assign(predicted=(logit > 0.5).astype(int)))


def test_every_metric_of_metrics_json_that_is_shown_has_one_row_in_the_vocabulary(measured) -> None:
    assert measured.keys() - METRICS.keys() == {"auroc_delong", "prevalence"}, "these two are shown nowhere"
    assert set(SUMMARY_METRICS) <= METRICS.keys()
    assert set(LOCALISATION) == set(SCORES)
    names = [metric.name for metric in METRICS.values()]
    assert len(set(names)) == len(names)


def test_the_vocabulary_and_the_ranking_of_methods_agree_on_which_way_is_better() -> None:
    assert {key for key, metric in LOCALISATION.items() if metric.best == "low"} == LOWER_IS_BETTER


def test_the_roc_auc_of_the_terminal_has_the_interval_of_the_pages(measured, tmp_path: Path, capsys) -> None:
    print_summary({"test": measured}, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "ROC-AUC" in line]
    area = measured["auroc"]
    shown = Estimate(area["value"], area["low"], area["high"])
    assert f" {number(area['value'])} " in line
    assert f" {shown.interval} " in line
    assert shown.text == f"{number(area['value'])} ({shown.interval})"


def test_training_names_what_it_counts_by_study_as_such() -> None:
    model = IDHClassifier(network=None, objective=None)  # type: ignore[arg-type]
    for stage in ("train", "val", "test"):
        logged = set(model.metrics[f"{stage}_metrics"].keys(keep_base=False))
        assert logged == {f"{stage}/study_accuracy", f"{stage}/study_auroc"}


def test_the_studies_of_mutants_are_not_called_a_share() -> None:
    row = {"sequence": "T1", "value": 0.1, "low": -0.2, "high": 0.4, "n": 9, "size": 0.3}
    table = _sequences({"sequences": [{"group": "mutant", **row}]})
    assert table is not None
    assert table.rows[0][0] == "mutant"
    assert in_words("mutant", COVARIATES) == "share of mutants"


def test_a_number_has_two_digits_and_a_true_minus() -> None:
    assert number(0.956) == "0.96"
    assert number(-0.5) == "−0.50"
    assert number(0.5, signed=True) == "+0.50"
