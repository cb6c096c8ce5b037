"""One shape for every statistic, and the intervals that go into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Statistic = dict[str, Any]

_ROUNDING = 1e-9


def statistic(value: float, low: float | None, high: float | None, n: int, method: str) -> Statistic:
    """Statistic `{value, low, high, n, method}` in primitives.

    Bounds that are not finite, or between which the value does not lie, become null, with a `why`: an interval that
    excludes its own estimate says nothing about it.
    """
    if not math.isfinite(value):
        return absent(f"{method} gives no finite value", n)
    found: Statistic = {"value": float(value), "low": None, "high": None, "n": int(n), "method": method}
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return found | {"why": f"{method} gives no finite interval"}
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        return found | {"why": f"the interval of the {method} does not hold the value"}
    return found | {"low": min(float(low), float(value)), "high": max(float(high), float(value))}


def absent(why: str, n: int = 0) -> Statistic:
    """Statistic that has no value, and the reason."""
    return {"value": None, "low": None, "high": None, "n": int(n), "why": why}


def wilson(successes: int, n: int, confidence: float, *, denominator: str = "patients") -> Statistic:
    """Proportion with its Wilson interval, which stays inside [0, 1] and never shrinks to a point.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    if n == 0:
        return absent(f"no {denominator}")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return statistic(successes / n, low, high, n, "Wilson")


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Patients drawn with replacement within strata, as weights, so that all resamples are computed at once.

    A statistic written for weighted rows, `[rows, n] -> [rows]`, is called once with `weights` and its values handed
    to `interval`.

    Attributes:
        weights: [1 + P + R, n]: the sample itself (ones); the sample without each of its P patients; R resamples,
            each counting how often a row was drawn.
        strata: [P], the stratum of each patient, counted from 0.
        confidence: For example 0.95.
    """

    weights: Floats
    strata: Integers
    confidence: float

    @classmethod
    def draw(
        cls,
        strata: npt.ArrayLike,
        *,
        resamples: int = 2000,
        seed: int = 0,
        confidence: float = 0.95,
        patients: npt.ArrayLike | None = None,
    ) -> Self:
        """Resamples of n rows.

        Args:
            strata: [n], any labels; each resample holds as many patients of a stratum as the sample.
            resamples: R.
            seed: Same seed, same weights.
            confidence: Of the intervals.
            patients: [n], who each row belongs to; the rows of a patient are drawn together. None: each row is one.
        """
        row_strata = np.asarray(strata)
        people = np.arange(len(row_strata)) if patients is None else np.asarray(patients)
        _, first_row, person_of_row = np.unique(people, return_index=True, return_inverse=True)
        _, stratum_of_person, stratum_sizes = np.unique(row_strata[first_row], return_inverse=True, return_counts=True)
        rng = np.random.default_rng(seed)
        drawn = np.empty((resamples, len(first_row)))
        for stratum, size in enumerate(stratum_sizes):
            drawn[:, stratum_of_person == stratum] = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
        weights = np.vstack([np.ones((1, len(first_row))), 1 - np.eye(len(first_row)), drawn])
        return cls(weights=weights[:, person_of_row], strata=stratum_of_person, confidence=confidence)

    def interval(self, values: Floats) -> Statistic:
        """Statistic of the sample with its bias-corrected and accelerated (BCa) interval.

        Plain percentiles are too narrow in small cohorts: for an area of 0.9 on 10 mutants and 32 wildtypes their
        95% intervals cover 88%, these 95%. Where no resample differs (a perfect or a constant predictor) the
        bootstrap knows nothing about the uncertainty, so the bounds are null, not an interval of no width.

        Args:
            values: [1 + P + R], the statistic of each row of `weights`; NaN where a resample leaves it undefined.

        Source: Efron 1987, J. Am. Stat. Assoc. 82:171; for strata Davison & Hinkley 1997, eq. 5.36.
        """
        people = len(self.strata)
        value, left_out, resampled = float(values[0]), values[1 : 1 + people], values[1 + people :]
        resampled = resampled[np.isfinite(resampled)]
        if resampled.size == 0 or np.ptp(resampled) < 1e-12:
            return statistic(value, None, None, people, "bootstrap")
        at_most = np.mean(resampled < value - 1e-12) + np.mean(np.abs(resampled - value) <= 1e-12) / 2
        bias = ndtri(np.clip(at_most, 1 / (resampled.size + 1), resampled.size / (resampled.size + 1)))
        sizes = np.bincount(self.strata)
        # A patient who is alone in a stratum cannot be left out; it has no influence, as it is in every resample.
        left_out = np.where(np.isfinite(left_out), left_out, value)
        mean_left_out = np.bincount(self.strata, weights=left_out) / sizes
        influence = (mean_left_out[self.strata] - left_out) * ((sizes - 1) / sizes)[self.strata]
        spread = np.sum(influence**2) ** 1.5
        acceleration = np.sum(influence**3) / (6 * spread) if spread > 0 else 0.0
        tails = bias + ndtri([(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        low, high = np.quantile(resampled, ndtr(bias + tails / (1 - acceleration * tails)))
        return statistic(value, low, high, people, "bootstrap")
