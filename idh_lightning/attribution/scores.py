"""Scores of maps: on one tumour, beside maps that know nothing of it, and over many studies; the best method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import fft
from scipy.stats import bootstrap
from torch.nn import functional

from idh_lightning.errors import ExplanationError

_Floats = NDArray[np.floating]
_MaskArray = NDArray[np.integer] | NDArray[np.bool_]

SCORES: tuple[str, ...] = ("pointing_game", "energy_inside", "auprc", "best_iou", "outside_brain", "tumour_rank")
"""Scores of a map, columns of explanations.csv."""

REFERENCED: tuple[str, ...] = ("energy_inside", "auprc", "best_iou")
"""The scores whose value for the reference map is in a column of its own, `<score>_reference`."""

SCORE_COLUMNS: tuple[str, ...] = ("study_id", "method", *SCORES, *(f"{score}_reference" for score in REFERENCED))
"""Columns of explanations.csv, which may have more."""

BASELINE = "baseline: "
"""What the names of maps that do not come from the network begin with, in the column `method`."""

LOWER_IS_BETTER: frozenset[str] = frozenset({"outside_brain"})

SUMMARY_GROUPS: tuple[str, ...] = ("all", "right", "wrong")
"""Of studies: all of them, those that the network calls right, those that it calls wrong."""

PLACES_GRID = 25
"""Largest edge of the grid on which the tumour is moved about."""


def localisation_scores(cam: _Floats, mask: _MaskArray, brain: _MaskArray) -> dict[str, float]:
    """Scores of one map as a detector of one tumour; what of it is outside the brain counts as brain.

    Returns:
        pointing_game: 1.0 if the hottest voxel of the brain lies in the tumour, else 0.0; of several that are equally
            hot, the share that does.
        energy_inside: Share of the map's sum in the brain that lies in the tumour.
        auprc: Average precision of the map as a detector of tumour among brain voxels; chance is the tumour's share.
        best_iou: Largest intersection over union with the tumour over all thresholds.
        outside_brain: Share of the map's sum that lies outside the brain.
        A map that is zero throughout the brain scores 0 in the first four, `auprc` being chance.

    Raises:
        ExplanationError: If shapes differ or the mask is empty.

    Source: pointing game, Zhang et al. 2018, doi:10.1007/s11263-017-1059-x; energy, Wang et al. 2020,
        arXiv:1910.01279, section 4.3.
    """
    if cam.shape != mask.shape or cam.shape != brain.shape:
        raise ExplanationError(
            f"map {cam.shape}, mask {mask.shape}, brain {brain.shape}: shapes differ; expected one grid. "
            "Resample the mask to the grid of the map."
        )
    tumour = mask > 0
    if not tumour.any():
        raise ExplanationError("the tumour mask is empty; expected some tumour. Leave the study out of scoring.")
    head = (brain > 0) | tumour
    values, truth = cam[head], tumour[head]
    total, in_brain = float(cam.sum(dtype=np.float64)), float(values.sum(dtype=np.float64))
    order = np.argsort(-values)
    falling, hit = values[order], truth[order]
    # A threshold cannot part equal values: only the last of each counts.
    last = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])
    found = np.cumsum(hit)[last]
    marked, tumour_voxels = last + 1, int(hit.sum())
    alive = in_brain > 0
    return {
        "pointing_game": float(found[0] / marked[0]) if alive else 0.0,
        "energy_inside": float(values[truth].sum(dtype=np.float64) / in_brain) if alive else 0.0,
        "auprc": float(np.sum(np.diff(found, prepend=0) * (found / marked)) / tumour_voxels),
        "best_iou": float((found / (marked + tumour_voxels - found)).max()) if alive else 0.0,
        "outside_brain": 1.0 - in_brain / total if total > 0 else 0.0,
    }


def tumour_ranks(cams: Sequence[_Floats], mask: _MaskArray, brain: _MaskArray) -> list[float]:
    """Rank of the tumour among regions of the brain that have its shape and size, by each map's mean in them.

    The tumour is moved, unturned, to every place where at least nine tenths of it are brain and less than half is the
    tumour itself; what is not brain does not count in the mean. The grid is made coarser first, to at most 25 cells
    along each edge. Regions of an atlas would differ in size, and a small one has the hotter mean by chance.

    Returns:
        For each map the share of those places with a lower mean, those with the same mean counting half: 1 if the
        tumour is first, 0.5 for a map that knows nothing. NaN if there is no other place.
    """
    depth, height, width = (min(edge, PLACES_GRID) for edge in mask.shape)
    heats = [np.where(brain > 0, cam, 0.0) for cam in cams]
    fine = np.stack([mask > 0, brain > 0, *heats]).astype(np.float32)
    coarse = functional.adaptive_avg_pool3d(torch.from_numpy(fine), (depth, height, width)).numpy()
    tumour = coarse[0]
    size = float(tumour.sum())
    if size == 0:
        return [float("nan")] * len(cams)
    room = [fft.next_fast_len(2 * edge - 1, real=True) for edge in tumour.shape]
    moved = np.conj(fft.rfftn(tumour, room))
    # Sums of each under the tumour moved by every shift, shift 0 first.
    sums = fft.irfftn(fft.rfftn(coarse, room, axes=(1, 2, 3)) * moved, room, axes=(1, 2, 3))
    overlap, in_brain = sums[:2]
    allowed = (in_brain >= 0.9 * size) & (overlap < 0.5 * float((tumour**2).sum()))
    if not allowed.any():
        return [float("nan")] * len(cams)
    means = sums[2:] / np.maximum(in_brain, 1e-3 * size)
    ranks = []
    for heat in means:
        here, elsewhere = float(heat[0, 0, 0]), heat[allowed]
        same = np.abs(elsewhere - here) <= 1e-4 * max(abs(here), float(elsewhere.max()))
        ranks.append(float((((elsewhere < here) & ~same) + 0.5 * same).mean()))
    return ranks


def brain_mask(brain: _MaskArray) -> _Floats:
    """Map that says: somewhere in the brain."""
    return (brain > 0).astype(np.float32)


def centre_gaussian(brain: _MaskArray) -> _Floats:
    """Map that says: near the middle. A Gaussian with the brain's mean and spread along each axis."""
    places = np.argwhere(brain > 0)
    if len(places) == 0:
        return np.zeros(brain.shape, np.float32)
    centre, spread = places.mean(axis=0), places.std(axis=0).clip(min=1e-6)
    axes = [np.exp(-(((np.arange(n) - c) / s) ** 2) / 2) for n, c, s in zip(brain.shape, centre, spread, strict=True)]
    gaussian = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return np.asarray(gaussian / gaussian.max(), dtype=np.float32)


def baselines(brain: _MaskArray, mean_tumour: _Floats | None) -> dict[str, _Floats]:
    """Name -> map of what is known without looking at the study."""
    maps = {"brain mask": brain_mask(brain), "centre of the brain": centre_gaussian(brain)}
    if mean_tumour is not None:
        maps["mean tumour of training"] = mean_tumour
    return {f"{BASELINE}{name}": values for name, values in maps.items()}


def study_rows(
    cams: Mapping[str, tuple[_Floats, _Floats]], mask: _MaskArray, brain: _MaskArray, mean_tumour: _Floats | None
) -> list[dict[str, object]]:
    """Rows of explanations.csv of one study: those of each method (map and reference map), then of the baselines.

    Raises:
        ExplanationError: See `localisation_scores`.
    """
    maps = {name: cam for name, (cam, _) in cams.items()} | baselines(brain, mean_tumour)
    rows: list[dict[str, object]] = []
    for (name, cam), rank in zip(maps.items(), tumour_ranks(list(maps.values()), mask, brain), strict=True):
        row: dict[str, object] = {"method": name, **localisation_scores(cam, mask, brain), "tumour_rank": rank}
        if name in cams:
            best = localisation_scores(cams[name][1], mask, brain)
            row |= {f"{score}_reference": best[score] for score in REFERENCED}
        rows.append(row)
    return rows


def mean_mask(masks: Iterable[_MaskArray | None]) -> _Floats | None:
    """How often studies have tumour in each voxel, [D, H, W]; None where none of them has a mask."""
    total, n = None, 0
    for mask in masks:
        if mask is not None:
            found = np.greater(mask, 0).astype(np.float32)
            total, n = found if total is None else total + found, n + 1
    return None if total is None else total / n


class Choice(NamedTuple):
    """The method that is taken, and why in one sentence."""

    method: str
    why: str


def mean_with_interval(
    values: NDArray[np.floating], *, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of some studies and the ends of its interval, NaN where there is none that holds the mean.

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
    """Mean of every score of every method with its interval.

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
    """Mean of the ranks of each method over all scores, 1 being best; the best method first.

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
    """Method with the best mean rank among those that pass every sanity check.

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
    return Choice(best, f"{best} has the best mean rank over the scores of this run ({among[best]:.1f}) {condition}.")
