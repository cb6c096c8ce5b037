"""The whole evaluation, driven with networks of known answer."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import confint_proportions_2indep

from idh_lightning.errors import ConfigError, EvaluationError
from idh_lightning.evaluation import (
    Evaluation,
    Fold,
    PostProcessing,
    compare_all,
    compare_with_internal,
    patient_predictions,
    per_patient,
    relation,
    spread,
)
from idh_lightning.evaluation.calibration import Calibrator
from idh_lightning.evaluation.cross_validation import compare_runs, pool
from idh_lightning.evaluation.discrimination import auroc_delong
from idh_lightning.evaluation.measurement import Measurement, age_bands, group_names
from idh_lightning.evaluation.postprocessing import Baseline, fit_baseline
from idh_lightning.evaluation.predictions import join, read_table

GRADE, DIAGNOSIS = "WHO CNS Grade", "Final pathologic diagnosis (WHO 2021)"


def make_cohort(seed=0, n=260):
    rng = np.random.default_rng(seed)
    split = np.repeat(["train", "validation", "test"], [n - 120, 60, 60])
    label = rng.permuted(np.tile([1, 0, 0, 0], n // 4))
    label[-60:] = np.tile([1, 0, 0, 0], 15)
    label[-120:-60] = np.tile([1, 0, 0, 0], 15)
    number = np.arange(n)
    return pd.DataFrame(
        {
            "study_id": [f"S{i:04d}" for i in number],
            "patient_id": [f"P{i:04d}" for i in number],
            "label": label,
            "split": split,
            "fold": 0,
            "age_years": np.where(label == 1, rng.normal(42, 14, n), rng.normal(60, 14, n)).round(),
            "sex": rng.choice(["F", "M"], n),
            "follow_up": False,
            GRADE: np.where((label == 1) & (rng.random(n) < 0.6), 2, 4),
            DIAGNOSIS: np.where(label == 1, "Astrocytoma, IDH-mutant", "Glioblastoma, IDH-wildtype"),
        }
    )


def predict(cohort, logit="good", seed=1):
    rng = np.random.default_rng(seed)
    rows = cohort.loc[cohort["split"] != "train", ["study_id", "patient_id", "split", "fold", "label"]]
    logits = {
        "good": rng.normal(size=len(rows)) + 2 * rows["label"] - 1,
        "oracle": rows["label"] * 2.0 - 1,
        "constant": np.full(len(rows), 0.3),
        "inverted": 1.0 - 2 * rows["label"],
    }[logit]
    return rows.assign(logit=logits, probability=1 / (1 + np.exp(-logits)))


@pytest.fixture(scope="module")
def cohort():
    return make_cohort()


@pytest.fixture(scope="module")
def predictions(cohort):
    return predict(cohort)


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation(bootstrap=200)


@pytest.fixture(scope="module")
def results(evaluation, predictions, cohort):
    return evaluation(predictions, cohort)


def test_an_oracle_a_constant_and_an_inverted_network_give_what_they_must(evaluation, cohort):
    areas = {
        kind: evaluation(predict(cohort, kind), cohort).metrics["test"]["auroc"]["value"]
        for kind in ("oracle", "constant", "inverted")
    }
    assert areas == {"oracle": 1.0, "constant": 0.5, "inverted": 0.0}


@pytest.mark.parametrize("kind", ["good", "oracle", "constant", "inverted"])
def test_metrics_are_plain_json_without_nan_whatever_the_network(evaluation, cohort, kind):
    found = evaluation(predict(cohort, kind), cohort).metrics
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_statistic_has_a_value_or_says_why_not(evaluation, cohort):
    def walk(node):
        if isinstance(node, dict):
            if "value" in node and "n" in node and "column" not in node:
                missing = [key for key in ("value", "low", "high") if node[key] is None]
                assert bool(missing) == ("why" in node), node
            for child in node.values():
                walk(child)

    for kind in ("good", "oracle", "constant", "inverted"):
        walk(evaluation(predict(cohort, kind), cohort).metrics)


def assert_intervals_hold_their_estimates(node, path=()):
    if isinstance(node, list):
        for number, child in enumerate(node):
            assert_intervals_hold_their_estimates(child, (*path, number))
    if not isinstance(node, dict):
        return
    if {"value", "low", "high"} <= node.keys() and node["low"] is not None:
        assert node["low"] <= node["value"] <= node["high"], (path, node)
    if "observed" in node:
        assert (np.array(node["low"]) <= node["observed"]).all(), (path, node)
        assert (np.array(node["observed"]) <= node["high"]).all(), (path, node)
    if "band" in node:
        curve = np.array(node[node["band"]["strategy"]])
        assert (np.array(node["band"]["low"]) <= curve).all(), path
        assert (curve <= np.array(node["band"]["high"])).all(), path
    for key, child in node.items():
        assert_intervals_hold_their_estimates(child, (*path, key))


def random_run(number):
    """Return cohort and predictions with 10 to 500 test patients, often of an extreme kind."""
    rng = np.random.default_rng(number)
    kind = ("good", "ties", "oracle", "inverted", "constant", "all called mutant", "all called wildtype", "weak")
    sizes = {"train": 30, "validation": int(rng.integers(10, 60)), "test": round(10 * 50 ** rng.random())}
    split = np.repeat(list(sizes), list(sizes.values()))
    share = rng.uniform(0.1, 0.9)
    label = (rng.random(len(split)) < share).astype(int)
    for part in sizes:
        label[np.flatnonzero(split == part)[:2]] = (0, 1)
    names = np.char.add("P", np.arange(len(split)).astype(str))
    cohort = pd.DataFrame({"study_id": names, "patient_id": names, "label": label, "split": split, "fold": 0})
    cohort["age_years"] = (60 - 15 * label + rng.normal(0, 10, len(split))).round()
    cohort["sex"] = rng.choice(["F", "M"], len(split))
    cohort["follow_up"] = False
    cohort[GRADE] = rng.choice([2, 4], len(split))
    again = cohort[cohort["split"] == "test"].head(int(rng.integers(0, 4)))
    again = again.assign(study_id=again["study_id"] + "_FU", follow_up=True)
    cohort = pd.concat([cohort, again], ignore_index=True)
    sign = 2 * cohort["label"].to_numpy() - 1
    good = rng.normal(size=len(cohort)) * rng.uniform(0.2, 3) + sign
    test = np.where(cohort["split"] == "test", 50, 0)
    kind = kind[number % len(kind)]
    logits = {
        "good": good,
        "ties": good.round(),
        "oracle": sign * (1 + rng.random(len(cohort))),
        "inverted": -sign * (1 + rng.random(len(cohort))),
        "constant": np.zeros(len(cohort)),
        "all called mutant": good + test,
        "all called wildtype": good - test,
        "weak": rng.normal(size=len(cohort)),
    }[kind]
    rows = cohort[["study_id", "patient_id", "split", "fold", "label"]]
    return cohort, rows.assign(logit=logits)[cohort["split"] != "train"]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 200, 25))
def test_every_interval_of_200_random_cohorts_holds_its_estimate(start):
    evaluation = Evaluation(minimum_group=2, subgroups={"grade": GRADE})
    before = None
    for number in range(start, start + 25):
        cohort, predictions = random_run(number)
        found = evaluation(predictions, cohort).metrics
        assert_intervals_hold_their_estimates(found, (number,))
        assert {found["test"][name]["low"] is None for name in ("ece", "accuracy", "prevalence")} == {False}
        internal = {"confidence": 0.95, "test": before or found["test"]}
        differences = compare_with_internal(internal, found["test"], confidence=0.95)
        assert_intervals_hold_their_estimates(differences, (number, "external"))
        before = found["test"]


def test_test_patients_change_nothing_that_is_learnt(evaluation, predictions, cohort, results):
    rng = np.random.default_rng(5)
    test_scores, test_labels = predictions.copy(), predictions.copy()
    scored = test_scores["split"] == "test"
    test_scores.loc[scored, "logit"] = rng.normal(size=scored.sum()) * 9
    assert evaluation(test_scores, cohort).learnt == results.learnt

    other_cohort = cohort.copy()
    for table in (test_labels, other_cohort):
        table.loc[table["split"] == "test", "label"] = 1 - table.loc[table["split"] == "test", "label"]
    changed = evaluation(test_labels, other_cohort)
    assert changed.learnt == results.learnt
    assert changed.metrics["operating_point"] == results.metrics["operating_point"]
    assert changed.metrics["validation"] == results.metrics["validation"]
    assert changed.metrics["test"]["auroc"]["value"] == pytest.approx(1 - results.metrics["test"]["auroc"]["value"])

    other_cohort.loc[other_cohort["split"] == "test", ["age_years", GRADE]] = [99.0, 3]
    assert evaluation(test_labels, other_cohort).learnt == results.learnt


def test_validation_patients_do_change_what_is_learnt(evaluation, predictions, cohort, results):
    shifted = predictions.assign(logit=predictions["logit"] + 2 * (predictions["split"] == "validation"))
    learnt = evaluation(shifted, cohort).learnt
    patients = shifted[shifted["split"] == "validation"].groupby("patient_id")[["logit", "label"]].mean()
    seen = cohort[cohort["split"] != "test"].groupby("patient_id")["label"].first()
    expected = Calibrator.fit(patients["logit"], patients["label"], prevalence=seen.mean())
    assert learnt.calibrator.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)
    assert learnt.calibrator.intercept < results.learnt.calibrator.intercept - 1


def test_learning_needs_no_test_patients(evaluation, predictions, cohort, results):
    seen = evaluation.learn(predictions[predictions["split"] == "validation"], cohort[cohort["split"] != "test"])
    assert seen == results.learnt


def test_metrics_do_not_depend_on_the_order_of_rows(evaluation, predictions, cohort, results):
    shuffled = evaluation(predictions.sample(frac=1, random_state=1), cohort.sample(frac=1, random_state=2))
    assert shuffled.metrics == results.metrics


def test_the_same_seed_gives_the_same_metrics_and_another_the_same_values(evaluation, predictions, cohort, results):
    assert evaluation(predictions, cohort).metrics == results.metrics
    other = Evaluation(bootstrap=200, seed=1)(predictions, cohort).metrics["test"]
    assert other["f1"]["value"] == results.metrics["test"]["f1"]["value"]
    assert other["f1"]["low"] != results.metrics["test"]["f1"]["low"]


def test_the_predictions_keep_their_rows_and_their_raw_probability(predictions, results):
    table = results.predictions
    assert table["study_id"].tolist() == predictions["study_id"].tolist()
    np.testing.assert_allclose(table["raw_probability"], predictions["probability"])
    np.testing.assert_allclose(table["probability"], results.learnt.calibrator(predictions["logit"]))
    assert (table["predicted"] == (table["probability"] >= results.metrics["operating_point"]["threshold"])).all()
    assert set(table["prediction_set"]) <= {"wildtype", "mutant", "both", "none"}


def test_evaluating_the_evaluated_table_again_changes_nothing(evaluation, cohort, results):
    again = evaluation(results.predictions, cohort)
    pd.testing.assert_frame_equal(again.predictions, results.predictions)
    assert again.metrics == results.metrics


def test_calibration_ranks_patients_as_before_and_improves_the_log_loss_of_validation(predictions, results):
    test = results.predictions[results.predictions["split"] == "test"]
    area = results.metrics["test"]["auroc"]["value"]
    assert roc_auc_score(test["label"], test["probability"]) == pytest.approx(area)
    raw = results.metrics["calibration"]["raw"]["validation"]["log_loss"]["value"]
    assert results.metrics["validation"]["log_loss"]["value"] < raw


def test_what_is_learnt_survives_the_checkpoint_and_json(results):
    state = results.learnt.to_dict()
    assert PostProcessing.from_dict(json.loads(json.dumps(state))) == results.learnt


def test_with_a_checkpoint_another_cohort_needs_test_patients_only(evaluation, predictions, cohort, results):
    external = evaluation(
        predictions[predictions["split"] == "test"], cohort[cohort["split"] == "test"], learnt=results.learnt
    )
    assert "validation" not in external.metrics
    assert external.learnt == results.learnt
    for key in ("test", "operating_point", "comparisons", "subgroups", "decision_curves"):
        assert external.metrics[key] == results.metrics[key]


def test_the_keys_of_metrics_are_those_of_their_reference(results):
    reference = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text(encoding="utf-8")
    for key, entry in results.metrics.items():
        assert f"`{key}`" in reference
        if key == "test":
            assert all(f"`{name}`" in reference for name in entry)


def test_default_yaml_names_every_setting_with_the_default_of_the_class():
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load((Path(__file__).parents[2] / "conf/evaluation/default.yaml").read_text())
    assert settings.pop("_target_") == "idh_lightning.evaluation.Evaluation"
    assert settings.pop("seed") == "${seed}"
    assert settings["subgroups"]["site"] == "${oc.select:split.site,site}"
    settings["subgroups"]["site"] = "site"
    assert Evaluation(**settings) == Evaluation(age_bands=[40, 60], prevalences=[0.1, 0.2, 0.3, 0.5, 0.8])
    assert settings.keys() | {"seed", "target"} == set(Evaluation.__dataclass_fields__), "the target is the cohort's"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("calibration", "isotonic"),
        ("coverage", 1.0),
        ("confidence", 95),
        ("bins", 0),
        ("bootstrap", 10),
        ("minimum_group", 1),
        ("age_bands", []),
        ("prevalences", [0.0]),
        ("operating_point", "best"),
        ("operating_target", 0.9),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_trained(setting, value):
    with pytest.raises(ConfigError, match=rf"evaluation\.{setting}: found .*; expected"):
        Evaluation(**{setting: value})


# Patients


def with_follow_ups(cohort, count=8, split="test"):
    again = cohort[cohort["split"] == split].head(count)
    return pd.concat([cohort, again.assign(study_id=again["study_id"] + "_FU1", follow_up=True)], ignore_index=True)


def test_a_patient_with_several_studies_counts_once_with_the_mean_logit(evaluation):
    cohort = with_follow_ups(make_cohort())
    predictions = predict(cohort)
    found = evaluation(predictions, cohort).metrics
    assert found["splits"]["test"] == {"n": 60, "n_mutant": 15, "studies": 68}
    test = predictions[predictions["split"] == "test"].groupby("patient_id")[["label", "logit"]].mean()
    assert found["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(test["label"], test["logit"]))
    assert found["test"]["auroc"]["n"] == 60
    every = found["sensitivity_analyses"]["every_study"]
    rows = predictions[predictions["split"] == "test"]
    assert every["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(rows["label"], rows["logit"]))
    assert every["metrics"]["auroc"]["n"] == 60
    assert every["studies"] == 68


def test_a_patients_logits_are_averaged_then_calibrated_then_held_against_the_threshold(results):
    follow_up = pd.DataFrame({"patient_id": "P", "study_id": ["A", "A_FU"], "label": 1, "logit": [0.5, -3.0]})
    stored = pd.concat([follow_up, results.learnt.decide(follow_up)], axis=1)  # as predictions.csv holds it
    (patient,) = patient_predictions(stored, results.learnt).to_dict("records")
    expected = results.learnt.apply([-1.25]).iloc[0]
    assert patient["probability"] == pytest.approx(expected["probability"])
    assert patient["predicted"] == expected["predicted"]
    assert patient["prediction_set"] == expected["prediction_set"]
    assert patient["probability"] != pytest.approx(stored["probability"].mean(), abs=0.01)


def test_without_follow_ups_is_the_evaluation_of_the_first_studies(evaluation, cohort):
    more = with_follow_ups(cohort)
    predictions = predict(more)
    first = predictions[~predictions["study_id"].str.endswith("_FU1")]
    found = evaluation(predictions, more).metrics["sensitivity_analyses"]["without_follow_ups"]
    assert found["studies_left_out"] == 8
    assert found["metrics"] == evaluation(first, cohort).metrics["test"]


def test_a_patient_has_the_age_of_the_study_before_any_follow_up():
    table = pd.DataFrame(
        {
            "study_id": ["A_FU", "Z"],
            "patient_id": "P",
            "label": 1,
            "split": "test",
            "follow_up": [True, False],
            "age_years": [60, 50],
        }
    )
    joined = join(table.assign(logit=[1.0, 3.0]), table, required=())
    (patient,) = per_patient(joined).to_dict("records")
    assert patient["age_years"] == 50
    assert patient["logit"] == 2
    assert patient["studies"] == 2


# Faults of the tables


def edited(table, row, **changes):
    table = table.copy()
    for column, value in changes.items():
        table[column] = table[column].astype(object)
        table.loc[table.index[row], column] = value
    return table


@pytest.mark.parametrize(
    ("change_predictions", "change_cohort", "message"),
    [
        (lambda p: p.drop(columns="logit"), None, "predictions: no column logit; found study_id"),
        (None, lambda c: c.drop(columns=["split", "label"]), "cohort: no column split, label"),
        (lambda p: edited(p, 3, logit=float("nan")), None, "study S0143: the logit is nan; expected a finite"),
        (lambda p: edited(p, 3, logit=float("inf")), None, "study S0143: the logit is inf; expected a finite"),
        (lambda p: edited(p, 0, label=2), None, "study S0140: label is 2; expected 0"),
        (lambda p: edited(p, 0, split="val"), None, "study S0140: split is 'val'; expected train, validation, test"),
        (lambda p: pd.concat([p, p.head(1)]), None, "study S0140: listed 2 times; expected once"),
        (lambda p: edited(p, 0, patient_id="P0200"), None, "patient P0200: split is test and validation; expected one"),
        (None, lambda c: edited(c, 0, patient_id="P0140"), "cohort, patient P0140: split is train and validation"),
        (lambda p: edited(p, 0, label=1 - p["label"].iloc[0]), None, "study S0140: label is .*; expected .* as in the"),
        (None, lambda c: c[c["study_id"] != "S0140"], "study S0140: not in the cohort"),
        (lambda p: p.iloc[1:], None, "split validation, study S0140: absent; expected a prediction"),
        (lambda p: p[p["split"] == "test"], lambda c: c[c["split"] == "test"], "split validation: no patients"),
        (
            lambda p: p[(p["split"] != "test") | (p["label"] == 0)],
            lambda c: c[(c["split"] != "test") | (c["label"] == 0)],
            "split test: all patients have label 0; expected both classes",
        ),
    ],
)
def test_a_fault_in_the_tables_is_named(evaluation, predictions, cohort, change_predictions, change_cohort, message):
    with pytest.raises(EvaluationError, match=message):
        evaluation(
            change_predictions(predictions) if change_predictions else predictions,
            change_cohort(cohort) if change_cohort else cohort,
        )


def test_all_faults_are_listed_at_once(evaluation, predictions, cohort):
    broken = edited(edited(predictions, 0, logit=float("nan")), 5, logit=float("inf"))
    with pytest.raises(EvaluationError) as caught:
        evaluation(broken, cohort)
    assert len(str(caught.value).splitlines()) == 2


def test_a_patient_with_two_labels_is_refused(evaluation, cohort):
    more = with_follow_ups(cohort, count=1)
    more.loc[more.index[-1], "label"] = 1 - more["label"].iloc[-1]
    with pytest.raises(EvaluationError, match=r"label is 0 and 1; expected one\. A patient has one label"):
        evaluation(predict(more), more)


# Baselines and comparisons


def test_the_prevalence_knows_nothing_and_age_is_fitted_on_training_patients(results, cohort):
    baselines = results.metrics["baselines"]
    assert baselines["prevalence"]["test"]["auroc"]["value"] == 0.5
    train = cohort[cohort["split"] == "train"]
    assert baselines["prevalence"]["intercept"] == pytest.approx(
        np.log(train["label"].mean() / (1 - train["label"].mean()))
    )
    test = cohort[cohort["split"] == "test"]
    assert baselines["age"]["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(test["label"], -test["age_years"]))
    assert baselines["age"]["coefficients"][0] < 0
    assert baselines["age"]["n"] == len(train)
    assert baselines["model_age"]["fitted_on"] == "validation"


def test_a_baseline_is_the_logistic_regression_of_statsmodels_up_to_its_ridge():
    import statsmodels.api as sm

    cohort = make_cohort(n=4000)
    found = fit_baseline(cohort, ["age_years"])
    train = cohort[cohort["split"] == "train"]
    reference = sm.Logit(train["label"], sm.add_constant(train["age_years"])).fit(disp=False).params
    assert found.coefficients[0] == pytest.approx(reference["age_years"], rel=0.01)
    assert found.intercept == pytest.approx(reference["const"], rel=0.01)
    assert Baseline.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("method", ["platt", "temperature", "none"])
def test_a_branch_of_the_network_is_calibrated_as_the_network_is(method):
    """With eight validation patients a free line would say how a fold fell out, not how good the branch is."""
    cohort = make_cohort()
    few = cohort[cohort["split"] == "validation"].groupby("label").head(4).index
    cohort = cohort.drop(cohort.index[(cohort["split"] == "validation") & ~cohort.index.isin(few)])
    made = predict(cohort)
    learnt = Evaluation(bootstrap=200, calibration=method).learn(
        made.assign(logit_deep=made["logit"], logit_vote=-made["logit"]), cohort
    )
    line, same, inverted = learnt.calibrator, learnt.baselines["deep"], learnt.baselines["vote"]
    assert (same.coefficients[0], same.intercept) == (line.slope, line.intercept)
    assert same.operating_point == learnt.operating_point
    assert 0 < inverted.coefficients[0] <= line.slope  # never turned round
    assert (inverted.coefficients[0] < line.slope) == (method != "none")


def test_the_model_is_compared_with_each_baseline_on_the_patients_both_know(evaluation, predictions, cohort):
    gaps = cohort.copy()
    unknown = gaps.index[gaps["split"] == "test"][:7]
    gaps.loc[unknown, "age_years"] = np.nan
    found = evaluation(predictions, gaps).metrics
    assert found["comparisons"]["model_vs_prevalence"]["n"] == 60
    assert found["comparisons"]["model_vs_age"]["n"] == found["comparisons"]["model_age_vs_age"]["n"] == 53
    assert found["decision_curves"]["n"] == 53
    assert found["baselines"]["age"]["test"]["auroc"]["n"] == 53
    known = gaps[(gaps["split"] == "test") & gaps["age_years"].notna()].merge(predictions[["study_id", "logit"]])
    assert found["comparisons"]["model_vs_age"]["first"] == pytest.approx(roc_auc_score(known["label"], known["logit"]))


def test_without_ages_the_baselines_say_so(evaluation, predictions, cohort):
    found = evaluation(predictions, cohort.drop(columns=["age_years", "sex"])).metrics
    assert "age_years" in found["baselines"]["age"]["why"]
    assert "no baseline age" in found["comparisons"]["model_vs_age"]["why"]
    assert "no column age_years" in found["subgroups"]["age"]["why"]
    assert "age" not in found["decision_curves"]


def test_tumour_features_become_a_baseline_where_they_are_given(evaluation, predictions, cohort, results):
    assert "no table" in results.metrics["baselines"]["features"]["why"]
    rng = np.random.default_rng(0)
    features = cohort[["study_id"]].assign(
        volume_ml=cohort["label"] * 30 + rng.normal(60, 5, len(cohort)), sphericity=rng.random(len(cohort))
    )
    found = evaluation(predictions, cohort, features).metrics
    assert found["baselines"]["features"]["columns"] == ["feature sphericity", "feature volume_ml"]
    assert found["baselines"]["features"]["test"]["auroc"]["value"] > 0.99
    assert found["comparisons"]["model_vs_features"]["n"] == 60
    assert found["test"] == results.metrics["test"]


# Subgroups


def test_subgroups_count_their_patients_and_small_ones_say_too_few(results, cohort):
    groups = results.metrics["subgroups"]["grade"]["groups"]
    assert list(groups) == ["2", "4"]
    assert sum(group["n"] for group in groups.values()) == 60
    assert groups["2"]["n_mutant"] == groups["2"]["n"], "every grade 2 patient of this cohort is mutant"
    assert groups["2"]["auroc"]["value"] is None
    assert groups["2"]["auroc"]["why"] == "too few: 0 wildtype patients, 5 needed"
    assert groups["2"]["sensitivity"]["value"] is not None
    assert "no column site" in results.metrics["subgroups"]["site"]["why"]


def test_a_group_of_everyone_has_the_results_of_everyone(results):
    patients = results.predictions[results.predictions["split"] == "test"]
    found = Measurement(bootstrap=200).group_scores(patients)
    for name in found:
        assert found[name] == pytest.approx(results.metrics["test"][name])


def test_a_score_that_is_only_the_grade_gives_one_half_within_grades():
    rng = np.random.default_rng(0)
    grade = rng.choice([2, 3, 4], 300)
    label = (rng.random(300) < np.array([0.9, 0.6, 0.1])[grade - 2]).astype(int)
    patients = pd.DataFrame({"label": label, "logit": -grade.astype(float)})
    assert roc_auc_score(label, -grade) > 0.8
    settings = Measurement(bootstrap=200)
    assert settings.within_groups_auroc(patients, pd.Series(grade))["value"] == 0.5
    patients["logit"] += 0.1 * label
    assert settings.within_groups_auroc(patients, pd.Series(grade))["value"] == 1
    alone = settings.within_groups_auroc(patients, pd.Series(label))
    assert alone["value"] is None
    assert "too few" in alone["why"]


def test_the_area_within_groups_counts_pairs_of_the_same_group_only():
    rng = np.random.default_rng(1)
    label, group, logit = rng.integers(0, 2, 60), rng.choice(["a", "b"], 60), rng.normal(size=60)
    won = [
        float(logit[i] > logit[j])
        for i in range(60)
        for j in range(60)
        if label[i] == 1 and label[j] == 0 and group[i] == group[j]
    ]
    patients = pd.DataFrame({"label": label, "logit": logit})
    found = Measurement(bootstrap=200).within_groups_auroc(patients, pd.Series(group))
    assert found["value"] == pytest.approx(np.mean(won))
    assert found["low"] < found["value"] < found["high"]


def a_group(rng, mutants=12, wildtypes=30, sensitivity=0.8, shift=1.5):
    label = np.repeat([1, 0], [mutants, wildtypes])
    right = rng.random(len(label)) < np.where(label == 1, sensitivity, 0.8)
    logit = rng.normal(size=len(label)) + shift * label
    return pd.DataFrame({"label": label, "logit": logit, "predicted": np.where(right, label, 1 - label)})


def gaps_of(members):
    settings = Measurement(bootstrap=200)
    return settings.group_gaps(members, {name: settings.group_scores(group) for name, group in members.items()})


@pytest.mark.parametrize("groups", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gaps_between_groups_of_equal_truth_are_told_from_0_in_5_of_100_cohorts(groups):
    rng, cohorts = np.random.default_rng(groups), 200
    covered = dict.fromkeys(("auroc", "sensitivity", "specificity"), 0)
    for _ in range(cohorts):
        for metric, gap in gaps_of({str(g): a_group(rng) for g in range(groups)}).items():
            assert gap["value"] >= 0
            assert gap["pairs"] == groups * (groups - 1) / 2
            covered[metric] += gap["low"] <= 0
    assert all(0.92 <= count / cohorts <= 1 for count in covered.values()), covered


def test_a_gap_that_is_there_is_found_and_named_and_only_there():
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        women, men = a_group(rng, 60, 60, sensitivity=0.9), a_group(rng, 60, 60, sensitivity=0.5)
        found.append(gaps_of({"M": men, "F": women, "unknown": men.assign(predicted=0)}))
    assert all(gaps["sensitivity"]["groups"] == ["F", "M"] for gaps in found)
    assert sum(gaps["sensitivity"]["low"] > 0 for gaps in found) >= 18
    assert sum(gaps["auroc"]["low"] > 0 or gaps["specificity"]["low"] > 0 for gaps in found) <= 6


def test_a_gap_of_two_proportions_has_the_interval_of_newcombe_and_small_groups_have_none():
    rng = np.random.default_rng(3)
    members = {"A": a_group(rng, 20, 30), "B": a_group(rng, 9, 40), "C": a_group(rng, 3, 4)}
    gaps = gaps_of(members)
    gap = gaps["sensitivity"]
    hits = [int(members[name].query("label == 1")["predicted"].sum()) for name in gap["groups"]]
    sizes = [{"A": 20, "B": 9}[name] for name in gap["groups"]]
    expected = confint_proportions_2indep(hits[0], sizes[0], hits[1], sizes[1], method="newcomb", compare="diff")
    assert (gap["low"], gap["high"]) == pytest.approx(expected, abs=1e-9)
    assert gap["n"] == 29
    alone = gaps_of({"A": members["A"], "C": members["C"]})
    assert {entry["why"] for entry in alone.values()} == {"too few: enough patients in 1 of the groups, 2 needed"}


def test_the_gaps_of_an_evaluation_are_those_of_its_groups(results):
    section = results.metrics["subgroups"]["sex"]
    gap = section["gaps"]["specificity"]
    best, worst = (section["groups"][name]["specificity"]["value"] for name in gap["groups"])
    assert gap["value"] == pytest.approx(best - worst)
    assert gap["low"] < gap["value"] < gap["high"]


def test_groups_have_plain_names_and_gaps_are_unknown():
    assert group_names(pd.Series([4.0, None, 2.0])).tolist() == ["4", "unknown", "2"]
    assert group_names(pd.Series([True, False])).tolist() == ["True", "False"]
    bands = age_bands(pd.Series([39.9, 40, 60, np.nan, 59]), [60, 40])
    assert bands.tolist() == ["under 40", "40 to 60", "60 and over", "unknown", "40 to 60"]


def test_leaving_out_a_diagnosis_leaves_out_its_patients_and_no_one_else(predictions, cohort, evaluation):
    marked = cohort.copy()
    some = marked.index[(marked["split"] == "test") & (marked["label"] == 0)][:9]
    marked.loc[some, DIAGNOSIS] = "Astrocytoma, IDH-wildtype"
    found = evaluation(predictions, marked).metrics
    entry = found["sensitivity_analyses"]["without_astrocytoma_wildtype"]
    assert (entry["studies_left_out"], entry["n"], entry["n_mutant"]) == (9, 51, 15)
    kept = predictions[(predictions["split"] == "test") & ~predictions["study_id"].isin(marked.loc[some, "study_id"])]
    assert entry["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(kept["label"], kept["logit"]))


# Several runs


def tested(results):
    """Return the test patients of a run with what it says of them."""
    return patient_predictions(results.predictions[results.predictions["split"] == "test"], results.learnt)


def test_seeds_that_agree_have_no_spread_and_runs_that_differ_have_one(results, evaluation, cohort):
    same = spread({"a": tested(results), "b": tested(results)})
    assert same["summary"]["auroc"]["sd"] == 0
    assert same["patients"] == {"n": 60, "probability_sd": 0.0, "called_differently": 0.0}
    other = evaluation(predict(cohort, seed=9), cohort)
    found = spread({"a": tested(results), "b": tested(other)})
    for name in ("auroc", "average_precision", "brier", "accuracy", "balanced_accuracy", "f1"):
        values = [run.metrics["test"][name]["value"] for run in (results, other)]
        assert [found["runs"][run][name] for run in "ab"] == pytest.approx(values)
        assert found["summary"][name]["mean"] == pytest.approx(np.mean(values))
        assert found["summary"][name]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert found["patients"]["probability_sd"] > 0
    assert 0 < found["patients"]["called_differently"] < 1


def test_folds_are_pooled_into_one_table_of_everyone(results):
    test = results.predictions[results.predictions["split"] == "test"]
    folds = {"0": test.iloc[:30], "1": test.iloc[30:]}
    assert len(pool(folds)) == 60
    halves = {"0": tested(results).iloc[:30], "1": tested(results).iloc[30:]}
    assert spread(halves)["patients"]["why"] == "the runs hold different patients"
    with pytest.raises(EvaluationError, match="60 patients are in the test split of more than one"):
        pool({"0": test, "1": test})


def test_two_runs_are_compared_on_the_patients_they_share(results, evaluation, cohort):
    other = tested(evaluation(predict(cohort, "inverted"), cohort))
    found = compare_runs(other, tested(results))
    assert found["first"] == 0
    assert found["second"] == pytest.approx(results.metrics["test"]["auroc"]["value"])
    assert found["p_value"] < 0.05
    with pytest.raises(EvaluationError, match="share 0 patients"):
        compare_runs(other.assign(patient_id="x" + other["patient_id"]), tested(results))
    with pytest.raises(EvaluationError, match="disagree about a label"):
        compare_runs(other.assign(label=1 - other["label"]), tested(results))


def test_runs_that_do_not_fit_are_refused(results):
    with pytest.raises(EvaluationError, match="none given"):
        spread({})
    patients = tested(results)
    with pytest.raises(EvaluationError, match="run a: all patients have label 1"):
        spread({"a": patients[patients["label"] == 1]})
    twofold = results.predictions.assign(patient_id="P")
    with pytest.raises(EvaluationError, match="a patient has two labels"):
        patient_predictions(twofold, results.learnt)


def fold_of(results, cohort, studies):
    """Return a run in which only some studies were tested, with what the whole run learnt."""
    return Fold(
        predictions=results.predictions[results.predictions["study_id"].isin(studies)],
        cohort=cohort[cohort["study_id"].isin(studies)],
        features=None,
        learnt=PostProcessing.from_metrics(json.loads(json.dumps(results.metrics))),
    )


def test_pooling_the_parts_of_a_run_gives_the_run(evaluation, cohort, results):
    test = cohort.loc[cohort["split"] == "test", "study_id"]
    pooled = evaluation.pooled({"a": fold_of(results, cohort, test[:32]), "b": fold_of(results, cohort, test[32:])})
    for name, entry in results.metrics["test"].items():
        for bound in ("value", "low", "high"):
            assert pooled.metrics["test"][name][bound] == pytest.approx(entry[bound], abs=1e-6), (name, bound)
    assert pooled.metrics["confusion"]["test"] == results.metrics["confusion"]["test"]
    for section, key in (("comparisons", "model_vs_age"), ("comparisons", "model_age_vs_age")):
        there, here = results.metrics[section][key], pooled.metrics[section][key]
        assert here["p_value"] == pytest.approx(there["p_value"], abs=1e-6)
    assert pooled.metrics["conformal"]["test"] == results.metrics["conformal"]["test"]
    assert pooled.metrics["decision_curves"]["age"] == pytest.approx(results.metrics["decision_curves"]["age"])
    columns = ["study_id", "logit", "probability", "predicted", "prediction_set"]
    both = pooled.predictions[columns].merge(results.predictions[columns], on="study_id")
    np.testing.assert_allclose(both["logit_x"], both["logit_y"])
    np.testing.assert_allclose(both["probability_x"], both["probability_y"])
    assert (both["predicted_x"] == both["predicted_y"]).all()
    assert set(pooled.predictions["run"]) == {"a", "b"}


def test_each_patient_is_judged_by_the_fold_that_left_them_out(evaluation, cohort, results):
    # A second network with logits ten times as large and shifted: what it calls must not change.
    other = evaluation(results.predictions.assign(logit=10 * results.predictions["logit"] + 5), cohort)
    test = cohort.loc[cohort["split"] == "test", "study_id"]
    pooled = evaluation.pooled({"a": fold_of(results, cohort, test[:32]), "b": fold_of(other, cohort, test[32:])})
    assert pooled.metrics["confusion"]["test"] == results.metrics["confusion"]["test"]
    assert pooled.metrics["test"]["auroc"]["value"] == pytest.approx(
        results.metrics["test"]["auroc"]["value"], abs=2e-3
    )
    thresholds = pooled.metrics["operating_point"]["runs"]
    assert thresholds["b"]["threshold"] == other.learnt.operating_point.threshold


def test_what_is_learnt_can_be_read_back_from_metrics_json(results):
    assert PostProcessing.from_metrics(json.loads(json.dumps(results.metrics))) == results.learnt


def test_the_patients_say_whether_runs_are_folds_or_seeds(results):
    test = tested(results)
    assert relation({"a": test.iloc[:30], "b": test.iloc[30:]}) == "folds"
    assert relation({"a": test, "b": test, "c": test}) == "same patients"
    with pytest.raises(EvaluationError, match="runs a and b: 20 of 40 and 40 test patients are the same"):
        relation({"a": test.iloc[:40], "b": test.iloc[20:], "c": test.iloc[20:]})
    with pytest.raises(EvaluationError, match="found 1; expected two or more"):
        relation({"a": test})


def test_pairs_of_runs_are_corrected_for_their_number(results, evaluation, cohort):
    runs = {str(seed): tested(evaluation(predict(cohort, seed=seed), cohort)) for seed in (1, 2)}
    runs["inverted"] = tested(evaluation(predict(cohort, "inverted"), cohort))
    pairs = compare_all(runs)
    assert [pair["names"] for pair in pairs] == [["1", "2"], ["1", "inverted"], ["2", "inverted"]]
    p = sorted(pair["p_value"] for pair in pairs)
    assert sorted(pair["p_holm"] for pair in pairs)[0] == pytest.approx(min(3 * p[0], 1))
    assert all(pair["p_holm"] >= pair["p_value"] for pair in pairs)


# The real table


@pytest.mark.real
@pytest.mark.skipif("IDH_REAL_DATA" not in os.environ, reason="IDH_REAL_DATA is not set")
def test_age_alone_reaches_the_known_area_in_the_real_cohort():
    table = pd.read_csv(Path(os.environ["IDH_REAL_DATA"]) / "ucsf_pdgm/UCSF-PDGM-metadata_v5.csv")
    # The table writes patients with 3 digits and their follow-ups with 4: UCSF-PDGM-429, UCSF-PDGM-0429_FU003d.
    patient = table["ID"].str.extract(r"UCSF-PDGM-(\d+)")[0].astype(int)
    studies = pd.DataFrame(
        {
            "study_id": table["ID"],
            "patient_id": patient,
            "follow_up": table["ID"].str.contains("_FU"),
            "label": (table["IDH"] != "wildtype").astype(int),
            "age_years": table["Age at MRI"],
        }
    ).sort_values(["patient_id", "follow_up"])
    patients = studies.drop_duplicates("patient_id")
    assert len(patients) == 495
    both = pd.concat([patients.assign(split=split) for split in ("train", "validation")])
    baseline = fit_baseline(both, ["age_years"])
    found = auroc_delong(patients["label"].to_numpy(), baseline.logits(patients))
    assert found["n"] == 495
    assert (round(found["value"], 3), round(found["low"], 3), round(found["high"], 3)) == (0.905, 0.871, 0.939)


def test_sites_stay_the_text_that_they_are_in_the_table_of_a_cohort(tmp_path: Path) -> None:
    sites = ["01", "1", "NA", "", "10", "n/a"]
    table = pd.DataFrame(
        {
            "study_id": [f"00{number}" for number in range(6)], "patient_id": [f"0{number}" for number in range(6)],
            "label": [0, 1, 0, 1, 0, 1], "split": "test", "fold": 0, "age_years": [1.5, None, 3, 4, 5, 6], "sex": "F",
            "follow_up": [True, False] * 3, "site": sites,
        }
    )  # fmt: skip
    table.to_csv(tmp_path / "cohort.csv", index=False)
    found = read_table(tmp_path / "cohort.csv")
    assert list(group_names(found["site"])) == ["01", "1", "NA", "unknown", "10", "n/a"]
    pd.testing.assert_frame_equal(
        found.drop(columns="site"), table.drop(columns="site"), check_dtype=False, check_column_type=False
    )
    assert found["follow_up"].dtype == bool
    assert found["age_years"].dtype == float
