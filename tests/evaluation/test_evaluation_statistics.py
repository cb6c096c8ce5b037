"""Every statistic against an independent reference, a published value or a law."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit, logit, xlogy
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from idh_lightning.errors import ConfigError
from idh_lightning.evaluation.calibration import Calibrator, calibration, equal_mass_bins, reliability_curve
from idh_lightning.evaluation.decisions import (
    ConformalSets,
    OperatingPoint,
    decision_curves,
    net_benefit,
    observed_sets,
)
from idh_lightning.evaluation.discrimination import (
    auroc,
    auroc_delong,
    average_precision,
    compare_auroc,
    concordance,
    delong,
    discrimination,
    predictive_values,
)
from idh_lightning.evaluation.intervals import Bootstrap, statistic, wilson

# DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837: ovarian cancer, the 43 patients with all three tests:
# albumin, total protein, K-G score, and whether surgery helped.
OVARIAN = np.fromstring(
    """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
    3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
    2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
    3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
    3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
    """,
    sep=" ",
).reshape(43, 4)


def cohort(seed, n=76, mutants=16, shift=1.5, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[np.ones(mutants, int), np.zeros(n - mutants, int)])
    scores = rng.normal(size=n) + shift * labels
    return labels, np.round(scores, 1) if ties else scores


def resamples_of(labels, **settings):
    return Bootstrap.draw(labels, **{"resamples": 200, **settings})


def statistics(labels, scores, predicted):
    return discrimination(labels, scores, predicted, resamples=resamples_of(labels))


# Discrimination


def test_delong_gives_the_published_areas_errors_and_tests():
    labels = 1 - OVARIAN[:, 3].astype(int)
    albumin, protein, score = -OVARIAN[:, 0], -OVARIAN[:, 1], OVARIAN[:, 2]
    areas, covariance = delong(labels, np.stack([albumin, score, protein]))
    np.testing.assert_allclose(areas, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1028, 0.1000], atol=5e-5)
    found = auroc_delong(labels, albumin)
    assert (found["low"], found["high"]) == (pytest.approx(0.5549, abs=5e-5), pytest.approx(0.9182, abs=5e-5))
    first, second = compare_auroc(labels, albumin, score), compare_auroc(labels, protein, score)
    assert first["difference"]["value"] == pytest.approx(0.0108, abs=5e-5)
    assert first["difference"]["low"] == pytest.approx(-0.1761, abs=5e-5)
    assert first["difference"]["high"] == pytest.approx(0.1976, abs=5e-5)
    assert first["p_value"] == pytest.approx(0.9102, abs=5e-5)
    assert second["difference"]["value"] == pytest.approx(-0.0780, abs=5e-5)
    assert second["p_value"] == pytest.approx(0.4561, abs=5e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_fast_delong_agrees_with_a_double_loop_over_pairs(ties):
    labels, first = cohort(1, ties=ties)
    _, second = cohort(2, ties=ties)
    areas, covariance = delong(labels, np.stack([first, second]))
    mutants, wildtypes = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    above, below = np.zeros((2, len(mutants))), np.zeros((2, len(wildtypes)))
    for k, scores in enumerate((first, second)):
        for i, mutant in enumerate(mutants):
            for j, wildtype in enumerate(wildtypes):
                won = 1.0 if scores[mutant] > scores[wildtype] else 0.5 if scores[mutant] == scores[wildtype] else 0.0
                above[k, i] += won / len(wildtypes)
                below[k, j] += won / len(mutants)
    np.testing.assert_allclose(areas, above.mean(axis=1), atol=1e-12)
    expected = np.cov(above) / len(mutants) + np.cov(below) / len(wildtypes)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_the_paired_test_is_antisymmetric_and_a_score_does_not_differ_from_its_own_order():
    labels, first = cohort(3)
    _, second = cohort(4)
    there, back = compare_auroc(labels, first, second), compare_auroc(labels, second, first)
    assert there["difference"]["value"] == pytest.approx(-back["difference"]["value"])
    assert there["p_value"] == pytest.approx(back["p_value"])
    same = compare_auroc(labels, first, np.exp(first))
    assert same["difference"]["value"] == 0
    assert same["p_value"] == 1


def test_an_oracle_against_an_inverted_oracle_has_no_p_value_but_a_reason():
    labels, _ = cohort(5)
    found = compare_auroc(labels, labels.astype(float), 1.0 - labels)
    assert found["difference"]["value"] == 1
    assert found["p_value"] is None
    assert "variance" in found["why"]


@pytest.mark.parametrize("seed", range(5))
def test_every_point_estimate_is_that_of_scikit_learn(seed):
    labels, scores = cohort(seed, ties=seed % 2 == 1)
    predicted = (scores > 0.8).astype(int)
    found = {name: entry["value"] for name, entry in statistics(labels, scores, predicted).items()}
    tn, _, fn, _ = metrics.confusion_matrix(labels, predicted).ravel()
    expected = {
        "auroc": metrics.roc_auc_score(labels, scores),
        "auroc_delong": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "prevalence": labels.mean(),
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "sensitivity": metrics.recall_score(labels, predicted),
        "specificity": metrics.recall_score(labels, predicted, pos_label=0),
        "ppv": metrics.precision_score(labels, predicted),
        "npv": tn / (tn + fn),
        "f1": metrics.f1_score(labels, predicted),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "f1_weighted": metrics.f1_score(labels, predicted, average="weighted"),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_the_published_confusion_matrix_gives_the_published_metrics():
    labels = np.r_[np.zeros(60, int), np.ones(16, int)]
    predicted = np.r_[np.zeros(57, int), np.ones(3, int), np.zeros(6, int), np.ones(10, int)]
    found = statistics(labels, predicted.astype(float), predicted)
    assert found["accuracy"]["value"] == pytest.approx(0.882, abs=5e-4)
    assert found["sensitivity"]["value"] == 0.625
    assert found["sensitivity"]["low"] == pytest.approx(0.386, abs=5e-4)
    assert found["sensitivity"]["high"] == pytest.approx(0.815, abs=5e-4)
    assert found["f1"]["value"] == pytest.approx(0.69, abs=5e-3)
    assert found["f1_weighted"]["value"] == pytest.approx(0.88, abs=5e-3)
    assert (found["sensitivity"]["n"], found["specificity"]["n"], found["accuracy"]["n"]) == (16, 60, 76)


def test_every_interval_holds_its_value():
    labels, scores = cohort(7)
    for name, entry in statistics(labels, scores, (scores > 0.8).astype(int)).items():
        assert entry["low"] <= entry["value"] <= entry["high"], name


def test_an_oracle_a_constant_and_an_inverted_predictor_give_what_they_must():
    labels, _ = cohort(8)
    oracle = statistics(labels, labels.astype(float), labels)
    assert {oracle[name]["value"] for name in ("auroc", "average_precision", "accuracy", "f1", "mcc")} == {1.0}
    assert 0.8 < oracle["auroc"]["low"] < 1, "16 and 60 patients in order do not prove a perfect network"
    inverted = statistics(labels, 1.0 - labels, 1 - labels)
    assert inverted["auroc"]["value"] == inverted["accuracy"]["value"] == 0
    assert inverted["mcc"]["value"] == -1
    assert inverted["auroc"]["high"] == pytest.approx(1 - oracle["auroc"]["low"])
    constant = statistics(labels, np.zeros(len(labels)), np.zeros(len(labels), int))
    assert constant["auroc"]["value"] == constant["balanced_accuracy"]["value"] == 0.5
    assert constant["average_precision"]["value"] == pytest.approx(labels.mean())
    assert constant["ppv"]["value"] is None
    assert "called positive" in constant["ppv"]["why"]
    assert constant["auroc"]["low"] is constant["auroc_delong"]["low"] is None, "one half by construction, not by luck"
    assert constant["average_precision"]["low"] is None
    assert "no finite interval" in constant["average_precision"]["why"]


def test_predictive_values_at_the_prevalence_of_the_sample_are_those_of_the_sample():
    labels, scores = cohort(9)
    found = statistics(labels, scores, (scores > 0.8).astype(int))
    here, rare = predictive_values(found["sensitivity"], found["specificity"], [labels.mean(), 0.01])
    assert here["ppv"]["value"] == pytest.approx(found["ppv"]["value"])
    assert here["npv"]["value"] == pytest.approx(found["npv"]["value"])
    assert here["ppv"]["low"] < here["ppv"]["value"] < here["ppv"]["high"]
    assert rare["ppv"]["value"] < here["ppv"]["value"]


def test_predictive_values_of_calling_no_one_mutant_are_absent():
    nobody, everybody = wilson(0, 10, 0.95), wilson(30, 30, 0.95)
    (row,) = predictive_values(nobody, everybody, [0.2])
    assert row["ppv"]["value"] is None
    assert row["npv"]["value"] == pytest.approx(0.8)


# Bootstrap


def test_a_resample_keeps_the_size_of_each_stratum_and_starts_with_the_sample_itself():
    labels, _ = cohort(10)
    weights = resamples_of(labels).weights
    assert weights.shape == (1 + 76 + 200, 76)
    assert (weights[0] == 1).all()
    assert (weights[1:77].sum(axis=1) == 75).all()
    assert (weights[77:, labels == 1].sum(axis=1) == 16).all()
    assert (weights[77:, labels == 0].sum(axis=1) == 60).all()


def test_a_weighted_statistic_is_the_statistic_of_the_repeated_rows():
    labels, scores = cohort(11, ties=True)
    weights = resamples_of(labels).weights[77:97]
    right, pairs = concordance(labels, scores, weights)
    precision = average_precision(labels, scores, weights)
    for row, area, average in zip(weights.astype(int), right / pairs, precision, strict=True):
        drawn = np.repeat(np.arange(76), row)
        assert area == pytest.approx(metrics.roc_auc_score(labels[drawn], scores[drawn]))
        assert average == pytest.approx(metrics.average_precision_score(labels[drawn], scores[drawn]))


def test_the_bca_interval_agrees_with_scipy():
    labels, scores = cohort(12)
    drawn = Bootstrap.draw(labels, resamples=20_000)
    right, pairs = concordance(labels, scores, drawn.weights)
    found = drawn.interval(right / pairs)

    def area(mutants, wildtypes, axis=-1):
        return (mutants[..., :, None] > wildtypes[..., None, :]).mean(axis=(-2, -1))

    expected = scipy_bootstrap(
        (scores[labels == 1], scores[labels == 0]), area, n_resamples=20_000, batch=2_000, method="BCa", rng=0
    ).confidence_interval
    assert found["low"] == pytest.approx(expected.low, abs=0.006)
    assert found["high"] == pytest.approx(expected.high, abs=0.006)


def test_studies_of_a_patient_are_drawn_together_so_that_copies_add_no_certainty():
    labels, scores = cohort(13)
    once = Bootstrap.draw(labels, resamples=500)
    thrice = Bootstrap.draw(np.repeat(labels, 3), resamples=500, patients=np.repeat(np.arange(76), 3))
    right, pairs = concordance(labels, scores, once.weights)
    more_right, more_pairs = concordance(np.repeat(labels, 3), np.repeat(scores, 3), thrice.weights)
    single, copied = once.interval(right / pairs), thrice.interval(more_right / more_pairs)
    assert copied["n"] == 76
    for bound in ("value", "low", "high"):
        assert copied[bound] == pytest.approx(single[bound], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("mutants", "wildtypes", "area"), [(10, 32, 0.9), (16, 60, 0.86)])
def test_bootstrap_intervals_cover_the_truth_in_95_of_100_small_cohorts(mutants, wildtypes, area):
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(mutants, int), np.zeros(wildtypes, int)]
    shift = norm.ppf(area) * math.sqrt(2)
    covered = 0
    for number in range(1000):
        if number % 20 == 0:  # the resamples are drawn anew now and then, so that their own chance averages out
            drawn = Bootstrap.draw(labels, resamples=2000, seed=number)
        scores = rng.normal(size=len(labels)) + shift * labels
        found = auroc(labels, scores, resamples=drawn)
        covered += found["low"] <= area <= found["high"]
    assert 930 <= covered <= 970


def test_delong_intervals_cover_the_truth_in_95_of_100_large_cohorts():
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(103, int), np.zeros(392, int)]
    shift = norm.ppf(0.9) * math.sqrt(2)
    intervals = [auroc_delong(labels, rng.normal(size=495) + shift * labels) for _ in range(1000)]
    assert 930 <= sum(found["low"] <= 0.9 <= found["high"] for found in intervals) <= 970


# Calibration


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_the_calibrator_is_the_logistic_regression_on_smoothed_targets(method):
    labels, scores = cohort(20, n=120, mutants=40)
    logits = 3 * scores + 1
    found = Calibrator.fit(logits, labels, method=method)
    target = np.where(labels == 1, 41 / 42, 1 / 82)
    # Each patient as a mutant and as a wildtype, weighted by the target.
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000, fit_intercept=method == "platt").fit(
        np.r_[logits, logits][:, None], np.repeat([1, 0], 120), sample_weight=np.r_[target, 1 - target]
    )
    assert found.slope == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert found.intercept == pytest.approx(float(np.ravel(reference.intercept_)[0]), abs=1e-4)


def test_calibration_undoes_a_known_distortion():
    rng = np.random.default_rng(0)
    true = rng.normal(size=20_000) - 1
    labels = (rng.random(20_000) < expit(true)).astype(int)
    found = Calibrator.fit(4 * true + 2, labels)
    assert found.slope == pytest.approx(0.25, rel=0.05)
    assert found.intercept == pytest.approx(-0.5, abs=0.05)


def test_a_calibrator_never_reorders_patients_even_where_the_network_is_worse_than_chance():
    labels, scores = cohort(21)
    found = Calibrator.fit(-scores, labels)
    assert 0 < found.slope <= 1e-3 + 1e-12
    assert (np.diff(found(np.sort(-scores))) > 0).all()
    assert found(-scores).mean() == pytest.approx(labels.mean(), abs=0.02)


def test_perfect_separation_gives_a_finite_slope_and_a_constant_gives_the_prevalence():
    labels, _ = cohort(22)
    assert math.isfinite(Calibrator.fit(labels * 2.0 - 1, labels).slope)
    constant = Calibrator.fit(np.full(76, 3.0), labels)
    assert constant(3.0) == pytest.approx(labels.mean(), abs=0.02)
    assert Calibrator.fit(np.full(76, 3.0), labels, method="temperature") == Calibrator()
    assert Calibrator.fit(labels * 2.0, labels, method="none") == Calibrator()


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_with_a_prevalence_the_line_is_the_likeliest_under_its_priors(method):
    labels, scores = cohort(24, n=30, mutants=20)
    logits = 2 * scores + 1
    found = Calibrator.fit(logits, labels, method=method, prevalence=0.6)
    target = np.where(labels == 1, 21 / 22, 1 / 12)

    def surprise(slope, intercept):
        likelihood = xlogy(target, expit(slope * logits + intercept)) + xlogy(
            1 - target, 1 - expit(slope * logits + intercept)
        )
        priors = norm(0, 1).logpdf(math.log(slope * logits.std() / 1.5)), norm(logit(0.6), 1).logpdf(intercept)
        return -likelihood.sum() - priors[0] - (priors[1] if method == "platt" else 0)

    least = surprise(found.slope, found.intercept)
    for slope, intercept in itertools.product((-1e-3, 0, 1e-3), (-1e-3, 0, 1e-3) if method == "platt" else (0,)):
        assert surprise(found.slope + slope, found.intercept + intercept) >= least
    assert (found.intercept == 0) == (method == "temperature")


def test_a_handful_of_patients_calibrates_better_with_priors_and_a_hundred_alike():
    rng = np.random.default_rng(0)

    def drawn(n, gain):
        labels = np.r_[np.ones(round(0.75 * n)), np.zeros(n - round(0.75 * n))]
        return gain * 1.5 * (rng.normal(size=n) + 1.5 * (labels - 0.5)), labels

    def loss(calibrator, gain):
        logits, labels = drawn(4000, gain)
        eta = calibrator.slope * logits + calibrator.intercept
        return float(np.mean(np.logaddexp(0, eta) - labels * eta))

    for n, at_least, at_most in ((8, 0.02, 1.0), (200, -0.01, 0.01)):
        gains = []
        for gain in np.exp(rng.normal(0, 0.7, 200)):
            shown = drawn(n, gain)
            with_priors, without = (Calibrator.fit(*shown, prevalence=share) for share in (0.75, None))
            gains.append(loss(without, gain) - loss(with_priors, gain))
        assert at_least < np.mean(gains) < at_most


def test_eight_patients_whom_a_network_cannot_tell_apart_do_not_silence_it():
    logits, labels = np.array([2.0, 1.0, 0.5, 1.5, -0.5, 0.8, 1.9, 1.2]), np.array([1, 1, 1, 1, 1, 1, 0, 0])
    assert Calibrator.fit(logits, labels).slope < 0.01
    assert 0.3 < Calibrator.fit(logits, labels, prevalence=0.75).slope < 1


def test_a_calibrator_survives_the_checkpoint():
    found = Calibrator(slope=0.7, intercept=-0.2)
    assert Calibrator.from_dict(found.to_dict()) == found


def test_calibration_statistics_agree_with_scikit_learn_and_a_plain_loop():
    labels, scores = cohort(23, n=150, mutants=50)
    probabilities = expit(scores - 1.2)
    found = calibration(labels, probabilities, bins=5, resamples=resamples_of(labels))
    assert found["brier"]["value"] == pytest.approx(metrics.brier_score_loss(labels, probabilities))
    assert found["log_loss"]["value"] == pytest.approx(metrics.log_loss(labels, probabilities))
    order = np.argsort(probabilities)
    error = sum(30 / 150 * abs(labels[part].mean() - probabilities[part].mean()) for part in np.array_split(order, 5))
    assert found["ece"]["value"] == pytest.approx(error)
    line = LogisticRegression(C=1e12, tol=1e-10).fit(logit(probabilities)[:, None], labels)
    assert found["calibration_slope"]["value"] == pytest.approx(line.coef_[0, 0], rel=1e-4)
    shifted = expit(logit(probabilities) + found["calibration_intercept"]["value"])
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-8)


def test_true_probabilities_have_slope_one_intercept_zero_and_little_error():
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(0.02, 0.98, 20_000)
    labels = (rng.random(20_000) < probabilities).astype(int)
    found = calibration(
        labels,
        probabilities,
        bins=10,
        resamples=Bootstrap(weights=np.ones((2, 20_000)), strata=np.zeros(1, int), confidence=0.95),
    )
    assert found["calibration_slope"]["low"] < 1 < found["calibration_slope"]["high"]
    assert found["calibration_intercept"]["low"] < 0 < found["calibration_intercept"]["high"]
    assert found["ece"]["value"] < 0.02


def test_separated_classes_have_no_calibration_slope_and_say_so():
    labels, _ = cohort(24)
    found = calibration(labels, np.where(labels == 1, 0.9, 0.1), bins=5, resamples=resamples_of(labels))
    assert found["calibration_slope"]["value"] is None
    assert "overlap" in found["calibration_slope"]["why"]


def test_certain_and_wrong_probabilities_give_a_large_but_finite_log_loss():
    labels, _ = cohort(25)
    found = calibration(labels, 1.0 - labels, bins=5, resamples=resamples_of(labels))
    assert 30 < found["log_loss"]["value"] < 40
    assert found["brier"]["value"] == 1


def test_equal_probabilities_share_a_bin_and_bins_have_equal_mass_otherwise():
    assert set(equal_mass_bins(np.full(50, 0.3), 5)) == {4}
    assert (np.bincount(equal_mass_bins(np.linspace(0, 1, 50), 5)) == 10).all()
    labels, scores = cohort(26)
    curve = reliability_curve(labels, expit(scores), bins=4, confidence=0.95)
    assert sum(curve["n"]) == 76
    assert np.dot(curve["n"], curve["observed"]) == pytest.approx(labels.sum())
    assert curve["predicted"] == sorted(curve["predicted"])


@pytest.mark.parametrize(
    ("patients", "slope"),
    [(40, 0.5), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((40, 1.0), (150, 0.5), (150, 1.0)))],
)
def test_intervals_of_the_calibration_error_cover_the_truth_and_hold_the_estimate(patients, slope):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        probabilities = expit(rng.normal(-1, 1.5, patients))
        true = expit(slope * logit(probabilities))
        labels = (rng.random(patients) < true).astype(int)
        # One bootstrap resample is enough: the calibration error takes none.
        found = calibration(labels, probabilities, bins=5, resamples=resamples_of(np.zeros(patients), resamples=1))
        inside = np.eye(5)[equal_mass_bins(probabilities, 5)]
        truth = np.abs((true - probabilities) @ inside).sum() / patients
        covered += found["ece"]["low"] <= truth <= found["ece"]["high"]
        assert found["ece"]["low"] <= found["ece"]["value"] <= found["ece"]["high"]
    assert covered >= 0.94 * 400


def test_an_interval_that_excludes_its_estimate_is_not_given():
    found = statistic(0.038, 0.022, 0.033, 121, "bootstrap")
    assert (found["value"], found["low"], found["high"]) == (0.038, None, None)
    assert "does not hold the value" in found["why"]
    assert statistic(1.0, 0.8, 1.0 - 1e-12, 9, "Wilson")["high"] == 1.0, "rounding is none of its business"


# Decisions


@pytest.mark.parametrize("seed", range(3))
def test_youdens_threshold_is_the_best_of_all_thresholds(seed):
    labels, scores = cohort(seed)
    found = OperatingPoint.choose(labels, expit(scores))
    fpr, tpr, _ = metrics.roc_curve(labels, scores)
    assert found.sensitivity + found.specificity - 1 == pytest.approx((tpr - fpr).max())
    assert metrics.recall_score(labels, found(expit(scores))) == found.sensitivity


@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_a_stated_rate_is_reached_and_the_other_is_as_high_as_can_be(rule, target):
    labels, scores = cohort(30)
    found = OperatingPoint.choose(labels, expit(scores), rule=rule, target=target)
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    pairs = [(tp, 1 - fp) if rule == "sensitivity" else (1 - fp, tp) for fp, tp in zip(fpr, tpr, strict=True)]
    reached = (
        (found.sensitivity, found.specificity) if rule == "sensitivity" else (found.specificity, found.sensitivity)
    )
    assert reached[0] >= target
    assert reached[1] == pytest.approx(max(other for bound, other in pairs if bound >= target - 1e-12))


def test_among_equally_good_thresholds_the_middle_one_is_taken():
    middle = OperatingPoint.choose(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.7, 0.9])).threshold
    assert middle == pytest.approx(0.45)
    constant = OperatingPoint.choose(np.array([0, 0, 0, 1]), np.full(4, 0.25))
    assert not constant(np.full(4, 0.25)).any(), "a constant below one half calls no one mutant"


@pytest.mark.parametrize(
    ("rule", "target", "message"),
    [
        ("best", None, "operating_point: found 'best'"),
        ("sensitivity", None, "operating_target: found None"),
        ("youden", 0.9, "null with youden"),
        ("specificity", 1.2, "a number in"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule, target, message):
    with pytest.raises(ConfigError, match=message):
        OperatingPoint.choose(np.array([0, 1]), np.array([0.1, 0.9]), rule=rule, target=target)


def test_conformal_sets_cover_each_class_as_promised_and_hardly_more():
    rng = np.random.default_rng(0)
    covered = {0: [], 1: []}
    for _ in range(400):
        labels = np.repeat([0, 1], [35, 15])
        seen = ConformalSets.fit(labels, expit(rng.normal(size=50) + 2 * labels - 1), coverage=0.9)
        new = np.repeat([0, 1], [200, 200])
        sets = seen(expit(rng.normal(size=400) + 2 * new - 1))
        for label in (0, 1):
            covered[label].append(sets[new == label, label].mean())
    # The mean lies between the promise and the promise + 1 / (n + 1).
    assert 0.895 <= np.mean(covered[0]) <= 0.9 + 1 / 36 + 0.005
    assert 0.895 <= np.mean(covered[1]) <= 0.9 + 1 / 16 + 0.005


def test_a_class_with_too_few_validation_patients_is_never_excluded():
    labels = np.r_[np.zeros(30, int), np.ones(5, int)]
    found = ConformalSets.fit(labels, np.linspace(0.01, 0.99, 35), coverage=0.9)
    assert found.mutant is None
    assert found([0.0, 1.0])[:, 1].all()
    assert found.names([0.0, 1.0]) == ["both", "mutant"]
    assert ConformalSets.from_dict(found.to_dict()) == found


def test_conformal_sets_do_not_depend_on_the_calibrator():
    labels, scores = cohort(31)
    _, new = cohort(32)
    one, other = Calibrator(), Calibrator(slope=0.3, intercept=-2)
    assert ConformalSets.fit(labels, one(scores)).names(one(new)) == ConformalSets.fit(labels, other(scores)).names(
        other(new)
    )


def test_the_coverage_of_conformal_sets_is_counted():
    sets = ConformalSets(coverage=0.9, wildtype=0.6, mutant=0.6, n_wildtype=9, n_mutant=9)
    labels, probabilities = np.array([0, 1, 1, 0]), np.array([0.1, 0.5, 0.2, 0.9])
    assert sets.names(probabilities) == ["wildtype", "both", "wildtype", "mutant"]
    found = observed_sets(labels, sets.names(probabilities), confidence=0.95)
    assert {name: entry["value"] for name, entry in found.items()} == {
        "coverage": 0.5,
        "coverage_wildtype": 0.5,
        "coverage_mutant": 0.5,
        "one_class": 0.75,
        "both_classes": 0.25,
        "no_class": 0.0,
        "accuracy_of_one_class": pytest.approx(1 / 3),
    }


def test_net_benefit_is_what_a_count_by_hand_gives():
    labels, scores = cohort(33)
    probabilities = expit(scores - 1)
    thresholds = np.array([0.1, 0.25, 0.6])
    found = net_benefit(labels, probabilities, thresholds, np.ones((1, 76)))[0]
    for threshold, value in zip(thresholds, found, strict=True):
        _, fp, _, tp = metrics.confusion_matrix(labels, probabilities >= threshold).ravel()
        assert value == pytest.approx(tp / 76 - fp / 76 * threshold / (1 - threshold))


def test_no_strategy_beats_an_oracle_and_treating_no_one_is_worth_nothing():
    labels, scores = cohort(34)
    found = decision_curves(
        labels, {"model": expit(scores), "oracle": labels.astype(float)}, resamples=resamples_of(labels)
    )
    assert found["oracle"] == pytest.approx([labels.mean()] * 99)
    assert found["treat_none"] == [0.0] * 99
    assert found["treat_all"][0] == pytest.approx(labels.mean() - (1 - labels.mean()) * 0.01 / 0.99)
    assert (np.array(found["model"]) <= np.array(found["oracle"]) + 1e-12).all()
    assert (np.array(found["band"]["low"]) <= np.array(found["band"]["high"])).all()
