"""One quantity has one name and one number, wherever it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from idh_lightning.attribution.scores import LOWER_IS_BETTER, SCORES
from idh_lightning.cli.tables import number
from idh_lightning.cohort import IDH
from idh_lightning.evaluation.calibration import CalibrationMethod
from idh_lightning.evaluation.decisions import Rule
from idh_lightning.evaluation.measurement import Measurement
from idh_lightning.inference.predictor import WITHHOLDING, name_of_check
from idh_lightning.inference.study_page import alarm_line
from idh_lightning.module import IDHClassifier
from idh_lightning.ood.detector import _GEOMETRY
from idh_lightning.reports.explanations_page import _sequences
from idh_lightning.reports.tables import Estimate
from idh_lightning.reports.vocabulary import (
    CALIBRATION_METHODS,
    COVARIATES,
    LOCALISATION,
    METRICS,
    NOT_COMPARED,
    THRESHOLD_RULES,
    in_words,
    unlike_in_words,
)
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


def test_the_terminal_says_of_a_result_no_better_than_chance_that_it_is_none(tmp_path: Path, capsys) -> None:
    for low, told in ((0.42, True), (0.5, True), (0.51, False)):
        print_summary({"test": {"auroc": {"value": 0.6, "low": low, "high": 0.7, "n": 40}}}, tmp_path)
        assert ("No better than chance: the interval of the ROC-AUC contains 0.5." in capsys.readouterr().out) == told
    print_summary({"test": {"auroc": {"value": 0.5, "low": None, "high": None, "n": 40}}}, tmp_path)
    assert "No better" not in capsys.readouterr().out, "without an interval nothing is known"


def test_training_names_what_it_counts_by_study_as_such() -> None:
    model = IDHClassifier(network=None, objective=None)  # type: ignore[arg-type]
    for stage in ("train", "val", "test"):
        logged = set(model.metrics[f"{stage}_metrics"].keys(keep_base=False))
        assert logged == {f"{stage}/study_accuracy", f"{stage}/study_auroc"}


def test_the_studies_of_mutants_are_not_called_a_share() -> None:
    row = {"sequence": "T1", "value": 0.1, "low": -0.2, "high": 0.4, "n": 9, "size": 0.3}
    table = _sequences({"sequences": [{"group": "mutant", **row}]}, IDH)
    assert table is not None
    assert table.rows[0][0] == "mutant"
    assert in_words("mutant", COVARIATES) == in_words("mutant", COVARIATES, IDH) == "share of mutant patients"


def test_a_number_has_two_digits_and_a_true_minus() -> None:
    assert number(0.956) == "0.96"
    assert number(-0.5) == "−0.50"
    assert number(0.5, signed=True) == "+0.50"


def test_every_way_to_be_unlike_the_training_studies_has_words_of_its_own() -> None:
    checks = [
        "same_image",
        "sequence_identity",
        "orientation",
        "missing_sequence",
        "no_tumour",
        *_GEOMETRY,
        *WITHHOLDING,
    ]
    for check in checks:
        name = name_of_check(check)
        assert unlike_in_words(name) != name.replace("_", " ") or name == "orientation", name
    assert alarm_line(["intensity of T1", "roughness of T2", "brain"]) == (
        "This study is unlike the studies that the network was trained on (intensities of T1; noise or sharpness of "
        "T2; volume of the brain)."
    )
    assert alarm_line([NOT_COMPARED]) == "This study was not compared with the studies that the network was trained on."
    assert alarm_line([]) == ""


def test_people_of_whom_methods_are_named_are_written_with_a_capital_and_in_words() -> None:
    assert CALIBRATION_METHODS.keys() == set(get_args(CalibrationMethod))
    assert THRESHOLD_RULES.keys() == set(get_args(Rule))
    assert "Platt" in CALIBRATION_METHODS["platt"]
    assert "Youden" in THRESHOLD_RULES["youden"]
