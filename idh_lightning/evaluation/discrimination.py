"""Discrimination between mutants and wildtypes: areas under curves and scores at a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from scipy.special import ndtr, ndtri

from idh_lightning.evaluation.intervals import (
    Bootstrap,
    Floats,
    Integers,
    Statistic,
    absent,
    statistic,
    wilson,
)


def delong(labels: Integers, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Areas under the ROC curve of K scores on the same patients, and their covariance.

    Args:
        labels: [n], 0 wildtype, 1 mutant; both classes present.
        scores: [K, n] or [n], higher means mutant; ties count one half.

    Returns:
        [K] areas and [K, K] covariance; the covariance is NaN where a class has a single patient.

    Source: DeLong et al. 1988, Biometrics 44:837; by midranks in O(n log n): Sun & Xu 2014, IEEE Signal Process.
    Lett. 21:1389, algorithm 2.
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=float))
    mutant = labels == 1
    m, n = int(mutant.sum()), int((~mutant).sum())
    ranks = scipy.stats.rankdata(rows, axis=1)
    # Of each mutant, the share of wildtypes below it; of each wildtype, the share of mutants above it.
    above = (ranks[:, mutant] - scipy.stats.rankdata(rows[:, mutant], axis=1)) / n
    below = 1 - (ranks[:, ~mutant] - scipy.stats.rankdata(rows[:, ~mutant], axis=1)) / m
    areas: Floats = above.mean(axis=1)
    if min(m, n) < 2:
        return areas, np.full((len(rows), len(rows)), np.nan)
    return areas, np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n


def auroc(labels: Integers, scores: Floats, *, resamples: Bootstrap) -> Statistic:
    """Area under the ROC curve with the interval that is shown wherever this package says ROC-AUC.

    It is the bootstrap's, which keeps its level where a class has a few dozen patients. Where every pair is ordered the
    same way, no resample differs and the interval is Newcombe's, which depends on the class sizes only.

    Source: Newcombe 2006, Stat. Med. 25:559, method 5.
    """
    right, pairs = concordance(labels, scores, resamples.weights)
    return _or_newcombe(resamples.interval(divide(right, pairs)), labels, resamples.confidence)


def auroc_delong(labels: Integers, scores: Floats, *, confidence: float = 0.95) -> Statistic:
    """Area under the ROC curve with DeLong's interval, cut at 0 and 1, for comparison with other publications.

    It is too narrow where a class has fewer than about 100 patients. See `auroc` for perfect order.

    Source: DeLong 1988.
    """
    areas, covariance = delong(labels, scores)
    area, variance = float(areas[0]), float(covariance[0, 0])
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance) if variance > 0 else math.nan
    found = statistic(area, max(area - half, 0.0), min(area + half, 1.0), len(labels), "DeLong")
    return _or_newcombe(found, labels, confidence)


def _or_newcombe(area: Statistic, labels: Integers, confidence: float) -> Statistic:
    """Statistic of an area, with Newcombe's interval where all pairs are ordered the same way."""
    if area["value"] not in (0.0, 1.0):
        return area
    z = float(ndtri((1 + confidence) / 2))
    bound = _newcombe_bound(int((labels == 1).sum()), int((labels == 0).sum()), z)
    low, high = (bound, 1.0) if area["value"] == 1.0 else (0.0, 1 - bound)
    return statistic(area["value"], low, high, area["n"], "Newcombe")


def _newcombe_bound(m: int, n: int, z: float) -> float:
    """Smallest area that m mutants and n wildtypes in perfect order do not contradict."""
    mean_size = (m + n) / 2

    def excess(area: float) -> float:
        spread = 1 + (mean_size - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) ** 2 - z**2 * area * (1 - area) * spread / (m * n)

    return float(scipy.optimize.brentq(excess, 1e-9, 1 - 1e-9))


def compare_auroc(labels: Integers, first: Floats, second: Floats, *, confidence: float = 0.95) -> dict[str, Any]:
    """Difference in area (first minus second) on the same patients, with the paired DeLong test.

    Returns:
        `first` and `second` (areas), `difference` (a statistic), `z`, `p_value` (two-sided; null where the
        variance of the difference is 0 and the areas differ), `n`.
    """
    areas, covariance = delong(labels, np.stack([first, second]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    result: dict[str, Any] = {"first": float(areas[0]), "second": float(areas[1]), "n": len(labels)}
    # Rounding leaves a variance of about 1e-18 for scores in the same order.
    if variance > 1e-12:
        z = difference / math.sqrt(variance)
        half = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance)
        interval = statistic(difference, max(difference - half, -1), min(difference + half, 1), len(labels), "DeLong")
        return result | {"difference": interval, "z": z, "p_value": float(2 * ndtr(-abs(z)))}
    result["difference"] = statistic(difference, None, None, len(labels), "DeLong")
    if abs(difference) < 1e-12:
        return result | {"z": 0.0, "p_value": 1.0}
    return result | {"z": None, "p_value": None, "why": "the variance of the difference is 0 or unknown"}


def divide(top: Floats, bottom: Floats, *, undefined: float = math.nan) -> Floats:
    """Ratios, and `undefined` where the bottom is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full_like(top, undefined, dtype=float), where=bottom > 0)
    return quotient


def concordance(labels: Integers, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted number of mutant-wildtype pairs in the right order (ties one half), and of all pairs.

    Returns:
        [R] and [R]; their ratio is the area under the ROC curve of each resample.
    """
    mutants, wildtypes = _counts_by_score(labels, scores, weights)
    below = np.cumsum(wildtypes, axis=1) - wildtypes
    right: Floats = (mutants * (below + wildtypes / 2)).sum(axis=1)
    return right, mutants.sum(axis=1) * wildtypes.sum(axis=1)


def average_precision(labels: Integers, scores: Floats, weights: Floats) -> Floats:
    """Average precision of each resample, [R]: precision at each score, weighted by the rise in recall."""
    mutants, wildtypes = _counts_by_score(labels, scores, weights)
    mutants, wildtypes = mutants[:, ::-1], wildtypes[:, ::-1]
    found = np.cumsum(mutants, axis=1)
    called = found + np.cumsum(wildtypes, axis=1)
    # Before the first patient that a resample holds, nothing is called and nothing is found: any precision will do.
    precision = found / np.maximum(called, 1)
    return divide((precision * mutants).sum(axis=1), mutants.sum(axis=1))


def _counts_by_score(labels: Integers, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mutants and wildtypes at each distinct score, from the lowest up, [R, distinct] each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    mutants: Floats = np.add.reduceat(weights[:, order] * (labels[order] == 1), starts, axis=1)
    wildtypes: Floats = np.add.reduceat(weights[:, order] * (labels[order] == 0), starts, axis=1)
    return mutants, wildtypes


def confusion(labels: Integers, predicted: Integers, weights: Floats) -> dict[str, Floats]:
    """Counts `tn`, `fp`, `fn`, `tp` of each resample, [R] each."""
    cells = {"tn": (0, 0), "fp": (0, 1), "fn": (1, 0), "tp": (1, 1)}
    return {
        cell: weights @ ((labels == truth) & (predicted == call)).astype(float) for cell, (truth, call) in cells.items()
    }


def threshold_scores(tn: Floats, fp: Floats, fn: Floats, tp: Floats) -> dict[str, Floats]:
    """F1 (mutant, macro, weighted by class size) and Matthews' correlation from counts.

    An undefined ratio counts as 0, as in scikit-learn.
    """
    mutant = divide(2 * tp, 2 * tp + fp + fn, undefined=0.0)
    wildtype = divide(2 * tn, 2 * tn + fp + fn, undefined=0.0)
    return {
        "f1": mutant,
        "f1_macro": (mutant + wildtype) / 2,
        "f1_weighted": divide(mutant * (tp + fn) + wildtype * (tn + fp), tn + fp + fn + tp),
        "mcc": divide(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)), undefined=0.0),
    }


def discrimination(
    labels: Integers, scores: Floats, predicted: Integers, *, resamples: Bootstrap
) -> dict[str, Statistic]:
    """Every statistic of discrimination of one group of patients, with the class `predicted` at the operating point.

    Returns:
        Name -> statistic. `auroc` has the bootstrap's interval and `auroc_delong` DeLong's; `prevalence` is the level
        that `average_precision` has to beat; proportions have Wilson intervals, `balanced_accuracy` combines
        two of them (Zou & Donner 2008, Stat. Med. 27:1693), the rest are bootstrapped.
    """
    n, confidence, weights = len(labels), resamples.confidence, resamples.weights
    counts = confusion(labels, predicted, weights)
    bootstrapped = {name: resamples.interval(values) for name, values in threshold_scores(**counts).items()}
    tn, fp, fn, tp = (round(float(counts[cell][0])) for cell in ("tn", "fp", "fn", "tp"))
    sensitivity = wilson(tp, tp + fn, confidence)
    specificity = wilson(tn, tn + fp, confidence)
    return {
        "auroc": auroc(labels, scores, resamples=resamples),
        "auroc_delong": auroc_delong(labels, scores, confidence=confidence),
        "average_precision": resamples.interval(average_precision(labels, scores, weights)),
        "prevalence": wilson(tp + fn, n, confidence),
        "accuracy": wilson(tp + tn, n, confidence),
        "balanced_accuracy": _mean_of_two(sensitivity, specificity, n),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": wilson(tp, tp + fp, confidence, denominator="patient was called positive"),
        "npv": wilson(tn, tn + fn, confidence, denominator="patient was called negative"),
        **bootstrapped,
    }


def _mean_of_two(first: Statistic, second: Statistic, n: int) -> Statistic:
    """Mean of two independent proportions; the interval recovers its variance from theirs."""
    value = (first["value"] + second["value"]) / 2
    below = math.hypot(first["value"] - first["low"], second["value"] - second["low"]) / 2
    above = math.hypot(first["high"] - first["value"], second["high"] - second["value"]) / 2
    return statistic(value, max(value - below, 0.0), min(value + above, 1.0), n, "Wilson")


def predictive_values(
    sensitivity: Statistic, specificity: Statistic, prevalences: Sequence[float]
) -> list[dict[str, Any]]:
    """PPV and NPV as they would be where the disease is rarer or commoner, by Bayes' rule.

    Both grow with sensitivity and with specificity, so the bounds are taken at the lower and at the upper bounds of
    the two: an interval that is never too narrow.

    Returns:
        One `{prevalence, ppv, npv}` per prevalence.
    """
    rows: list[dict[str, Any]] = []
    n = sensitivity["n"] + specificity["n"]
    for prevalence in prevalences:
        row: dict[str, Any] = {"prevalence": float(prevalence)}
        cases = (("ppv", sensitivity, specificity, prevalence), ("npv", specificity, sensitivity, 1 - prevalence))
        for name, own, other, share in cases:
            bounds: list[float] = []
            for bound in ("value", "low", "high"):
                right = own[bound] * share
                called = right + (1 - other[bound]) * (1 - share)
                bounds.append(right / called if called > 0 else math.nan)
            value, low, high = bounds
            known = math.isfinite(value)
            row[name] = statistic(value, low, high, n, "Bayes") if known else absent("no patient was called so", n)
        rows.append(row)
    return rows
