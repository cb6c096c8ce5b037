"""Calibration of probabilities: 30% shall mean that 30 of 100 such patients are mutant."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import scipy
from scipy.special import expit, logit, ndtri

from idh_lightning.evaluation.intervals import Bootstrap, Floats, Integers, Statistic, absent, statistic, wilson
from idh_lightning.records import Record

CalibrationMethod = Literal["platt", "temperature", "none"]

_LEAST_SLOPE = 1e-3
_SPREAD = 1.5
"""How far calibrated logits likely spread: where the ROC-AUC is 0.85, classes lie 1.5 standard deviations apart."""

_LEAST_PROBABILITY = 1e-15


@dataclass(frozen=True, kw_only=True)
class Calibrator(Record):
    """Logits -> probabilities of mutant, by a straight line through the logits that never reorders patients.

    Attributes:
        slope: > 0; below 1 the network was too sure of itself. Its inverse is the temperature.
        intercept: Undoes a shift, for example of a balanced sampler or of focal loss.
    """

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(
        cls,
        logits: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        method: CalibrationMethod = "platt",
        prevalence: float | None = None,
    ) -> Self:
        """Line of least cross-entropy on validation patients, held near a likely one where these are few.

        Args:
            logits: [n], mutant minus wildtype.
            labels: [n], 0 or 1.
            method: "platt" fits slope and intercept, "temperature" the slope alone, "none" neither.
            prevalence: Share of mutants among all that were seen, of a network that was shown as many mutants as
                wildtypes: where its logit is 0, this is the likely probability. Normal priors, of standard deviation 1
                for the intercept and for the logarithm of how far calibrated logits spread (1.5), hold eight patients
                near the likely line and hardly move eighty. None: no priors.

        Source: Platt 1999, in Advances in Large Margin Classifiers, with his smoothed targets, which keep the slope
        finite where validation patients are perfectly separated; Guo et al. 2017, arXiv:1706.04599. The slope is
        held at 0.001 or above, so a network that is worse than chance becomes unsure instead of being turned round.
        """
        x, y = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
        if method == "none":
            return cls()
        mutants, wildtypes = float(y.sum()), float((1 - y).sum())
        target = np.where(y == 1, (mutants + 1) / (mutants + 2), 1 / (wildtypes + 2))
        scale = float(x.std())
        if scale < 1e-9:
            # All logits are equal: no slope can be seen, only how far they are off.
            return cls(intercept=float(logit(target.mean()) - x.mean())) if method == "platt" else cls()
        centre = float(x.mean()) if method == "platt" else 0.0
        z = (x - centre) / scale

        likely = None if prevalence is None else float(logit(np.clip(prevalence, 1e-3, 1 - 1e-3)))

        def loss(line: Floats) -> tuple[float, Floats]:
            eta = line[0] * z + line[1]
            error = expit(eta) - target
            value = float(np.mean(np.logaddexp(0, eta) - target * eta))
            gradient = np.array([np.mean(error * z), error.mean()])
            if likely is None:
                return value, gradient
            spread = float(np.log(line[0] / _SPREAD))
            shift = float(line[1] - line[0] * centre / scale - likely) if method == "platt" else 0.0
            priors = np.array([spread / line[0] - shift * centre / scale, shift])
            return value + (spread**2 + shift**2) / (2 * len(x)), gradient + priors / len(x)

        free = None if method == "platt" else 0.0
        found = scipy.optimize.minimize(
            loss,
            x0=[scale, 0.0],
            jac=True,
            method="L-BFGS-B",
            bounds=[(_LEAST_SLOPE * scale, None), (free, free)],
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
        )
        slope = float(found.x[0]) / scale
        return cls(slope=slope, intercept=float(found.x[1]) - slope * centre)

    def __call__(self, logits: npt.ArrayLike) -> Floats:
        """Calibrated probability of mutant of each logit, same shape."""
        probabilities: Floats = expit(self.slope * np.asarray(logits, dtype=float) + self.intercept)
        return probabilities


def calibration(labels: Integers, probabilities: Floats, *, bins: int, resamples: Bootstrap) -> dict[str, Statistic]:
    """Every statistic of calibration of one group of patients, one row per patient.

    Returns:
        `brier` and `log_loss` (nats), with bootstrap intervals; `ece`, whose interval reaches down to 0 where perfect
        probabilities would give as large a value; `calibration_slope` (1 is right, below 1 too extreme) and
        `calibration_intercept` (0 is right, below 0 too high), with Wald intervals.

    Source: Brier 1950; Naeini et al. 2015, AAAI (ECE, here with bins of equal mass); Van Calster et al. 2019, BMC
    Med. 17:230 (slope and intercept).
    """
    clipped = np.clip(probabilities, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    squared = (probabilities - labels) ** 2
    nats = -np.log(np.where(labels == 1, clipped, 1 - clipped))
    weights = resamples.weights
    total = weights.sum(axis=1)
    return {
        "brier": resamples.interval(weights @ squared / total),
        "log_loss": resamples.interval(weights @ nats / total),
        "ece": _expected_calibration_error(labels, probabilities, bins, resamples.confidence),
        **_slope_and_intercept(labels, logit(clipped), resamples.confidence),
    }


def equal_mass_bins(probabilities: Floats, bins: int) -> Integers:
    """Bin of each patient, 0 to bins - 1, cut at quantiles; equal probabilities share a bin."""
    edges = np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])
    found: Integers = np.searchsorted(edges, probabilities, side="right")
    return found


def reliability_curve(labels: Integers, probabilities: Floats, *, bins: int, confidence: float) -> dict[str, Any]:
    """Points of a reliability diagram: per bin the mean probability and the observed share of mutants.

    Returns:
        Lists of one entry per bin that holds patients: `predicted`, `observed`, `low`, `high` (Wilson), `n`.
    """
    index = equal_mass_bins(probabilities, bins)
    points: dict[str, Any] = {key: [] for key in ("predicted", "observed", "low", "high", "n")}
    for number in np.unique(index):
        inside = index == number
        observed = wilson(int(labels[inside].sum()), int(inside.sum()), confidence)
        points["predicted"].append(float(probabilities[inside].mean()))
        points["observed"].append(observed["value"])
        for key in ("low", "high", "n"):
            points[key].append(observed[key])
    return points


def _expected_calibration_error(labels: Integers, probabilities: Floats, bins: int, confidence: float) -> Statistic:
    """Expected calibration error: the mean over patients of how far off their bin is.

    The estimate is biased upward, since chance alone moves every bin off, and resampling adds that bias once more, so a
    bootstrap interval may exclude the estimate. Here the bins err independently, each as a binomial
    share (two mutants and two wildtypes are added to it, since a bin without any mutant is no proof). By the triangle
    inequality the estimate exceeds the truth by no more than the sum of the errors without their signs, and falls short
    of it by no more than one sum with signs, which is normal: quantiles of the two bound the truth, so that the
    interval covers it at least as often as it says.

    Source: Agresti & Coull 1998, Am. Stat. 52:119, for the two that are added.
    """
    index, n = equal_mass_bins(probabilities, bins), len(labels)
    sizes = np.bincount(index, minlength=bins)
    mutants = np.bincount(index, weights=labels, minlength=bins)
    value = np.abs(mutants - np.bincount(index, weights=probabilities, minlength=bins)).sum() / n
    share = (mutants + 2) / (sizes + 4)
    errors = np.sqrt(share * (1 - share) * sizes) / n
    upper_tail = (1 + confidence) / 2
    drawn = np.abs(np.random.default_rng(0).normal(size=(10_000, bins))) @ errors
    low = max(value - float(np.quantile(drawn, upper_tail)), 0.0)
    high = min(value + float(ndtri(upper_tail)) * float(np.linalg.norm(errors)), 1.0)
    return statistic(value, low, high, n, "binomial bins")


def _slope_and_intercept(labels: Integers, logits: Floats, confidence: float) -> dict[str, Statistic]:
    """Slope of the labels on the logits, and the intercept when the slope is held at 1."""
    n, z = len(labels), float(ndtri((1 + confidence) / 2))

    def wald(estimate: float, error: float) -> Statistic:
        return statistic(estimate, estimate - z * error, estimate + z * error, n, "Wald")

    mutants, wildtypes = logits[labels == 1], logits[labels == 0]
    if not len(mutants) or not len(wildtypes):
        why = "one class only"
        return {"calibration_slope": absent(why, n), "calibration_intercept": absent(why, n)}
    import statsmodels.api as sm  # here, since it takes a second, and a new patient's answer fits nothing

    with warnings.catch_warnings():
        # Probabilities of nearly 0 or 1 overflow on the way; a result that is not finite is reported as such.
        warnings.simplefilter("ignore")
        level = sm.GLM(labels, np.ones(n), family=sm.families.Binomial(), offset=logits).fit()
        intercept = wald(float(level.params[0]), float(level.bse[0]))
        if mutants.min() >= wildtypes.max() or mutants.max() <= wildtypes.min():
            slope = absent("the classes do not overlap, so no finite slope fits best", n)
        else:
            line = sm.GLM(labels, sm.add_constant(logits, has_constant="add"), family=sm.families.Binomial()).fit()
            slope = wald(float(line.params[1]), float(line.bse[1]))
    return {"calibration_slope": slope, "calibration_intercept": intercept}
