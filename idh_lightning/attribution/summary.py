"""Scores of many studies in a few numbers, and the method that they speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

from idh_lightning.attribution.scores import BASELINE, REFERENCED, SCORES

LOWER_IS_BETTER: frozenset[str] = frozenset({"outside_brain"})

SUMMARY_GROUPS: tuple[str, ...] = ("all", "right", "wrong")
"""Of studies: all of them, those that the network calls right, those that it calls wrong."""


class Choice(NamedTuple):
    """The method that is taken, and why in one sentence."""

    method: str
    why: str


def mean_with_interval(
    values: NDArray[np.floating], *, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of some studies and the ends of its interval, NaN where there is none that holds the mean.

    Percentiles of the bootstrap over studies are corrected for bias and skewness (BCa).

    Source: Efron 1987, J. Am. Stat. Assoc. 82:171, computed by SciPy.
    """
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) < 3 or np.ptp(values) < 1e-12:
        return mean, float("nan"), float("nan")
    found = bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=confidence, rng=np.random.default_rng(0)
    ).confidence_interval
    holds = found.low - 1e-9 <= mean <= found.high + 1e-9
    return (mean, float(min(found.low, mean)), float(max(found.high, mean))) if holds else (mean, np.nan, np.nan)


def summarised(scores: pd.DataFrame, *, resamples: int = 2000, confidence: float = 0.95) -> pd.DataFrame:
    """Return the mean of every score of every method with its interval.

    Args:
        scores: Rows of explanations.csv, with the column `right` (whether the study is called right) where known.
        resamples: Of the bootstrap.
        confidence: Of the intervals.

    Returns:
        One row per method, group (see `SUMMARY_GROUPS`) and score, references among the scores: `method`, `group`,
        `score`, `value`, `low`, `high`, `n`.
    """
    columns = [name for name in (*SCORES, *(f"{score}_reference" for score in REFERENCED)) if name in scores]
    rows = []
    for method, theirs in scores.groupby("method", sort=False):
        for group in SUMMARY_GROUPS:
            chosen = theirs
            if group != "all":
                if "right" not in theirs:
                    continue
                chosen = theirs[theirs["right"].astype(bool) == (group == "right")]
            for column in columns:
                values = chosen[column].to_numpy(dtype=float)
                values = values[np.isfinite(values)]
                if len(values):
                    value, low, high = mean_with_interval(values, resamples=resamples, confidence=confidence)
                    rows.append((method, group, column, value, low, high, len(values)))
    return pd.DataFrame(rows, columns=["method", "group", "score", "value", "low", "high", "n"])


def mean_ranks(summary: pd.DataFrame, faithfulness: Mapping[str, float]) -> pd.Series[float]:
    """Return the mean of the ranks of each method over all scores, 1 being best; the best method first.

    Args:
        summary: Of `summarised`; baselines and references do not take part.
        faithfulness: Method -> how faithful it is, larger is better; it counts as one score.
    """
    rows = summary[(summary["group"] == "all") & summary["score"].isin(SCORES)]
    rows = rows[~rows["method"].str.startswith(BASELINE)]
    means = rows.pivot(index="method", columns="score", values="value")
    for score in LOWER_IS_BETTER & set(means.columns):
        means[score] = -means[score]
    if faithfulness:
        means = means.reindex(means.index.union(list(faithfulness)))
        means["faithfulness"] = pd.Series(faithfulness, dtype=float)
    ranks = means.rank(ascending=False).mean(axis=1).sort_values(kind="stable")
    return ranks.astype(float)


def choose(ranks: pd.Series[float], sanity: pd.DataFrame, order: Sequence[str]) -> Choice:
    """Return the method with the best mean rank among those that pass every sanity check.

    Args:
        ranks: Of `mean_ranks`.
        sanity: One row per method and check with `method` and `passed`; empty where nothing was checked.
        order: Names of the methods; of equal ones the first counts.
    """
    ranked = ranks.reindex(list(order)).dropna()
    if ranked.empty:
        return Choice(order[0], f"{order[0]} is shown because it comes first: nothing could be scored.")
    checked = not sanity.empty
    sound = [
        method for method in ranked.index if checked and bool(sanity.loc[sanity["method"] == method, "passed"].all())
    ]
    among = ranked[sound] if sound else ranked
    best = str(among.idxmin())
    if not checked:
        condition = f"of {len(ranked)} methods; sanity was not checked"
    elif sound:
        condition = f"among the {len(sound)} of {len(ranked)} methods that pass every sanity check"
    else:
        condition = f"of {len(ranked)} methods, none of which passes every sanity check"
    return Choice(best, f"{best} has the best mean rank over all scores ({among[best]:.1f}) {condition}.")
