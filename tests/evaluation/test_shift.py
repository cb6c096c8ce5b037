"""How another cohort differs, and how much worse or better a network is there."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, norm, ttest_ind

from idh_lightning.evaluation import compare_with_internal, covariate_shift, covariate_summary
from idh_lightning.evaluation.discrimination import auroc_delong, delong
from idh_lightning.evaluation.shift import difference_of_independent, study_covariates


def cohort_of(n: int, mutants: int, *, age: float = 60.0, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    names = [f"S{i}" for i in range(n)]
    cohort = pd.DataFrame(
        {
            "study_id": names,
            "patient_id": names,
            "label": (np.arange(n) < mutants).astype(int),
            "age_years": rng.normal(age, 10, n),
        }
    )
    return cohort, pd.DataFrame({"study_id": names, "brain_ml": rng.normal(1400, 100, n)})


def test_a_cohort_does_not_differ_from_itself() -> None:
    summary = covariate_summary(*cohort_of(80, 20))
    for entry in covariate_shift(summary, summary).values():
        assert entry["difference"]["value"] == 0
        assert entry["p_value"] == pytest.approx(1)
        assert entry["ks"] in (0, None)


def test_a_known_shift_is_found_where_it_is_and_nowhere_else() -> None:
    here, there = covariate_summary(*cohort_of(4000, 800)), covariate_summary(*cohort_of(4000, 2000, age=50, seed=1))
    found = covariate_shift(here, there)
    assert found["age_years"]["difference"]["value"] == pytest.approx(-1, abs=0.1)
    assert found["age_years"]["p_value"] < 1e-6
    assert abs(found["brain_ml"]["difference"]["value"]) < 0.06
    assert found["mutant"]["reference"]["mean"] == 0.2
    # The share rises by 0.3 over a pooled sd of sqrt((0.16 + 0.25) / 2).
    assert found["mutant"]["difference"]["value"] == pytest.approx(0.3 / math.sqrt(0.205))


def test_distance_and_difference_are_those_of_the_patients_themselves() -> None:
    first, second = cohort_of(90, 30), cohort_of(70, 20, age=57, seed=3)
    found = covariate_shift(covariate_summary(*first), covariate_summary(*second))["age_years"]
    ages = [table["age_years"].to_numpy() for table, _ in (first, second)]
    expected = ks_2samp(*ages)
    assert found["ks"] == pytest.approx(expected.statistic, abs=1e-12)
    assert found["p_value"] == pytest.approx(expected.pvalue)
    # Cohen's d is the t statistic over the square root of the harmonic sample size, up to how variances are pooled.
    d = -ttest_ind(*ages, equal_var=False).statistic * math.sqrt(1 / 90 + 1 / 70)
    assert found["difference"]["value"] == pytest.approx(d, rel=0.05)


def test_a_summary_is_primitive_counts_patients_and_links_no_two_values() -> None:
    cohort, covariates = cohort_of(6, 2)
    cohort.loc[5, "patient_id"] = "S4"
    cohort.loc[0, "age_years"] = np.nan
    summary = covariate_summary(cohort, covariates)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["n"], summary["n_mutant"]) == (5, 2)
    assert len(summary["values"]["age_years"]) == 4
    assert all(values == sorted(values) for values in summary["values"].values())


def test_what_one_cohort_lacks_is_said() -> None:
    cohort, covariates = cohort_of(10, 5)
    without = covariate_summary(cohort.drop(columns="age_years"), covariates)
    found = covariate_shift(covariate_summary(cohort, covariates), without)
    assert found["age_years"] == {"why": "known in 10 training patients and in 0 of this cohort"}


def test_volumes_and_intensities_of_one_study_are_measured_where_they_are() -> None:
    brain = np.zeros((10, 10, 10), np.uint8)
    brain[2:8, 2:8, 2:8] = 1
    mask = np.zeros_like(brain)
    mask[3:5, 3:5, 3:5] = 1
    image = np.stack([np.where(brain, 2.0, -99.0), np.zeros(brain.shape)])
    found = study_covariates(
        image, brain, mask, sequences=("FLAIR", "T1"), spacing_mm=(5, 4, 4), native_spacing_mm=(1, 1, 5.5)
    )
    assert found == {
        "brain_ml": pytest.approx(216 * 0.08),
        "tumour_ml": pytest.approx(8 * 0.08),
        "native_spacing_mm": 5.5,
        "FLAIR_p05": 2.0,
        "FLAIR_median": 2.0,
        "FLAIR_p95": 2.0,
    }


def test_the_difference_of_two_samples_has_the_sum_of_their_delong_variances() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.permuted(np.repeat([0, 1], size)) for size in ((90, 50), (70, 30))]
    scores = [rng.normal(size=len(these)) + 0.8 * these for these in labels]
    first, second = (auroc_delong(these, score) for these, score in zip(labels, scores, strict=True))
    variances = [delong(these, score)[1][0, 0] for these, score in zip(labels, scores, strict=True)]
    found = difference_of_independent(first, second)
    half = norm.ppf(0.975) * math.sqrt(sum(variances))
    assert found["value"] == pytest.approx(first["value"] - second["value"])
    assert found["low"] == pytest.approx(found["value"] - half)
    assert found["high"] == pytest.approx(found["value"] + half)
    assert found["n"] == 240


def test_intervals_of_a_difference_cover_the_truth_in_95_of_100_pairs_of_cohorts() -> None:
    rng = np.random.default_rng(1)
    labels = [np.repeat([0, 1], size) for size in ((100, 40), (60, 30))]
    shifts = [norm.ppf(area) * math.sqrt(2) for area in (0.85, 0.75)]
    covered = 0
    for _ in range(1000):
        there, here = (
            auroc_delong(these, rng.normal(size=len(these)) + shift * these)
            for these, shift in zip(labels, shifts, strict=True)
        )
        found = difference_of_independent(there, here)
        covered += found["low"] <= 0.1 <= found["high"]
    assert 930 <= covered <= 970


def test_results_that_share_patients_or_levels_differ_are_not_compared() -> None:
    statistic = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}
    internal = {"confidence": 0.95, "test": {"auroc": statistic}}
    here = {"auroc": statistic | {"value": 0.75, "low": 0.6, "high": 0.85}, "ece": statistic}
    found = compare_with_internal(internal, here, confidence=0.95)
    assert list(found["differences"]) == ["auroc"]
    assert found["differences"]["auroc"]["value"] == pytest.approx(-0.05)
    assert (
        "3 patients were internal test patients"
        in compare_with_internal(internal, here, confidence=0.95, shared=3)["why"]
    )
    assert "at 0.95, these at 0.9" in compare_with_internal(internal, here, confidence=0.9)["why"]
    lacking = difference_of_independent({"value": None, "n": 3}, statistic)
    assert lacking["value"] is None
    assert "no value" in lacking["why"]
