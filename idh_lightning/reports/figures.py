"""Figures of how good a run is: curves, tables of calls, and forest plots.

Every function returns a matplotlib Figure and touches no global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from idh_lightning.cohort import IDH, Target
from idh_lightning.evaluation.intervals import Bootstrap
from idh_lightning.reports import style
from idh_lightning.reports.style import dress, new_axes, new_figure, shorten
from idh_lightning.reports.tables import Estimate
from idh_lightning.reports.vocabulary import METRICS


def confusion_matrix(counts: ArrayLike, *, threshold: float | None = None, target: Target = IDH) -> Figure:
    """Confusion matrix with counts and row percentages.

    Args:
        counts: [2, 2], rows are the truth and columns the prediction, the negative class first.
        threshold: Probability from which a study is called positive; shown when given.
        target: Names the classes.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, axes = new_axes(4.6, 4.2)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else style.INK
        kind = "correct" if row == column else (f"missed {target.positive}" if row == 1 else "false alarm")
        axes.text(column, row - 0.1, f"{int(table[row, column])}", ha="center", fontsize=22, color=colour)
        axes.text(column, row + 0.14, f"{share:.0%} of row", ha="center", fontsize=10, color=colour)
        axes.text(column, row + 0.32, kind, ha="center", fontsize=9, color=colour, style="italic")
    names = target.classes
    axes.set_xticks((0, 1), [f"called {name}" for name in names])
    axes.set_yticks((0, 1), [f"{name}\nn = {int(n)}" for name, n in zip(names, table.sum(axis=1), strict=True)])
    note = f"called {target.positive} from P = {threshold:.2f} on" if threshold is not None else None
    dress(axes, "Test patients, called and true", note, grid=False, ylabel="truth")
    axes.tick_params(length=0, labelsize=10)
    return figure


def roc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    auroc: Estimate | None = None,
    threshold: float | None = None,
    target: Target = IDH,
) -> Figure:
    """ROC curve with a pointwise 95% bootstrap band, resampled within each class, and the operating point.

    Args:
        labels: [N], 0 or 1; both present.
        probabilities: [N], of class 1.
        auroc: Stands under the title.
        threshold: The operating point, the probability from which a patient is called positive.
        target: Names the classes.
    """
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    grid = np.linspace(0, 1, 101)
    low, high = np.percentile(_resampled_sensitivity(grid, truth, score), (2.5, 97.5), axis=0)
    false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    figure, axes = new_axes(4.9, 4.9)
    axes.fill_between(grid, low, high, color=style.SKY, alpha=0.3, linewidth=0, label="95% band (bootstrap)")
    axes.plot((0, 1), (0, 1), color=style.MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes.plot(false_rate, true_rate, color=style.BLUE, linewidth=2.2, label="model")
    if threshold is not None:
        called = score >= threshold
        x, y = called[truth == 0].mean(), called[truth == 1].mean()
        _mark_operating_point(axes, x, y, f"operating point:\nsensitivity {y:.2f}\nspecificity {1 - x:.2f}")
    counts = f"n = {truth.size}, {truth.sum()} {target.positive}"
    note = counts if auroc is None else f"{METRICS['auroc'].name} {auroc.text}; {counts}"
    negative, positive = target.classes
    named = {
        "xlabel": f"1 − specificity: {negative} called {positive}",
        "ylabel": f"sensitivity: {positive} called {positive}",
    }
    dress(axes, "ROC curve, test patients", note, **style.UNIT_SQUARE, **named)
    # The legend goes where the curve is not.
    axes.legend(loc="lower right" if np.trapezoid(true_rate, false_rate) >= 0.5 else "upper left", frameon=False)
    return figure


def precision_recall(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    average_precision: Estimate | None = None,
    threshold: float | None = None,
    target: Target = IDH,
) -> Figure:
    """Precision-recall curve with the prevalence as the line that guessing reaches. See `roc`."""
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    precision, recall, _ = precision_recall_curve(truth, score)
    prevalence = truth.mean()
    figure, axes = new_axes(4.9, 4.9)
    axes.axhline(
        prevalence, color=style.MUTED, linestyle=":", linewidth=1.2, label=f"prevalence {prevalence:.2f}: guessing"
    )
    axes.step(recall, precision, where="post", color=style.BLUE, linewidth=2.2, label="model")
    if threshold is not None and (score >= threshold).any():
        called = score >= threshold
        _mark_operating_point(axes, called[truth == 1].mean(), truth[called].mean())
    counts = f"n = {truth.size}, {truth.sum()} {target.positive}"
    note = counts if average_precision is None else f"average precision {average_precision.text}; {counts}"
    named = {
        "xlabel": f"recall: share of {target.positive} patients found",
        "ylabel": f"precision: share of calls that are {target.positive}",
    }
    dress(axes, "Precision and recall, test patients", note, **style.UNIT_SQUARE, **named)
    axes.legend(loc="best", frameon=False)
    return figure


def reliability(
    curve: Mapping[str, Sequence[float]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    raw: Mapping[str, Sequence[float]] | None = None,
    ece: Estimate | None = None,
    target: Target = IDH,
) -> Figure:
    """Observed share of the positive class against its probability, with the probabilities themselves below.

    Args:
        curve: `predicted`, `observed`, `low`, `high`: one entry per group of patients.
        labels: [N], 0 or 1.
        probabilities: [N], of class 1.
        raw: `predicted` and `observed` before calibration, drawn in outline when given.
        ece: Stands under the title.
        target: Names the classes.
    """
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    figure = new_figure(4.9, 5.4)
    axes, counts = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    axes.plot((0, 1), (0, 1), color=style.MUTED, linestyle=":", linewidth=1.2, label="perfect")
    if raw is not None:
        axes.plot(
            raw["predicted"], raw["observed"], "o--", color=style.MUTED, mfc="white", lw=1.2, label="uncalibrated"
        )
    observed = np.asarray(curve["observed"], dtype=float)
    below, above = observed - np.asarray(curve["low"]), np.asarray(curve["high"]) - observed
    axes.errorbar(
        curve["predicted"],
        observed,
        yerr=np.clip((below, above), 0, None),
        color=style.BLUE,
        marker="s",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
        label="probability of the report",
    )
    note = f"{len(observed)} groups of about equal size, 95% intervals; n = {truth.size}"
    note = note if ece is None else f"{METRICS['ece'].name} {ece.text}\n{note}"
    dress(
        axes,
        "Calibration, test patients",
        note,
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        ylabel=f"observed share of {target.positive} patients",
    )
    axes.legend(loc="upper left", frameon=False)
    shades = tuple(zip((0, 1), (style.WILDTYPE_COLOUR, style.MUTANT_COLOUR), target.classes, strict=True))
    counts.hist(
        [score[truth == label] for label, _, _ in shades],
        bins=np.linspace(0, 1, 21).tolist(),
        stacked=True,
        color=[colour for _, colour, _ in shades],
        label=[name for _, _, name in shades],
    )
    dress(counts, xlabel=target.chance, ylabel="n")
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    counts.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    return figure


def decision_curve(
    curves: pd.DataFrame,
    *,
    band: Mapping[str, Any] | None = None,
    prevalence: float | None = None,
    last: float | None = None,
    target: Target = IDH,
) -> Figure:
    """Net benefit over threshold probabilities: the model against age and against treating all or none.

    Args:
        curves: Column `threshold`, and one column of net benefit per strategy; `treat_all` and `treat_none` are drawn
            as references and `model` on top.
        band: `low` and `high`, net benefit at the same thresholds: the 95% band of the model.
        prevalence: Sets the upper end of the axis, which net benefit cannot pass.
        last: Threshold up to which the curves are drawn, since beyond it single patients make them jump. They end
            before it where the model falls below the axis: a piece that comes up again further on is chance.
        target: Names the classes.

    Source: Vickers & Elkin 2006, doi:10.1177/0272989X06295361.
    """
    figure, axes = new_axes(5.6, 5.0)
    names = [name for name in curves.columns if name != "threshold"]
    top = float(np.nanmax(curves[names].to_numpy())) if prevalence is None else prevalence
    note = "higher is better; net benefit = true calls − weighted false calls, per patient"
    below = curves.loc[curves["model"] < -0.12 * top, "threshold"] if "model" in curves else curves["threshold"][:0]
    end = min([last if last is not None else 1.0, *below])
    kept = (curves["threshold"] <= end).to_numpy()
    if 1 < kept.sum() < len(kept):
        why = "does harm" if len(below) and end == below.min() else f"calls too few {target.positive}"
        note += f"\nnot drawn beyond {end:.0%}, where the model {why}"
        curves = curves[kept]
        band = None if band is None else {end: np.asarray(band[end], dtype=float)[kept] for end in ("low", "high")}
    looks = {
        "treat_none": (style.MUTED, ":", 1.2),
        "treat_all": (style.MUTED, "--", 1.2),
        "age": (style.ORANGE, "-.", 1.8),
        "model": (style.BLUE, "-", 2.4),
    }
    if band is not None:
        axes.fill_between(curves["threshold"], band["low"], band["high"], color=style.SKY, alpha=0.25, linewidth=0)
    dashed = {style.GREEN: (0, (5, 1)), style.PURPLE: (0, (3, 1, 1, 1)), style.VERMILLION: (0, (1, 1))}
    spare = iter([(colour, dashes, 1.6) for colour, dashes in dashed.items()] * 3)
    for name in sorted(names, key=lambda name: (name == "model", name not in looks, name)):
        colour, dashes, width = looks.get(name) or next(spare)
        whom = {"treat_all": "everyone", "treat_none": "no one"}.get(name)
        label = f"call {whom} {target.positive}" if whom else name.replace("_", " ")
        axes.plot(curves["threshold"], curves[name], color=colour, linestyle=dashes, linewidth=width, label=label)
    ends = (float(curves["threshold"].min()), float(curves["threshold"].max()))
    named = {"xlabel": f"threshold: {target.chance} from which one would act", "ylabel": "net benefit"}
    dress(axes, "Decision curve, test patients", note, xlim=ends, ylim=(-0.12 * top, 1.12 * top), **named)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    # Below the axes: with few patients the curves go everywhere.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def scores_by_group(
    probabilities: pd.Series[float],
    labels: pd.Series[int],
    groups: pd.Series[str],
    areas: Mapping[str, Estimate],
    *,
    threshold: float | None = None,
    narrow: bool = False,
    target: Target = IDH,
) -> Figure:
    """Probability of each patient, one line for each group and class: where scores are shifted, a threshold is too.

    Args:
        probabilities: [N], of the positive class.
        labels: [N], 0 and 1.
        groups: [N], names.
        areas: Group -> ROC-AUC, which stands under its name.
        threshold: From which a patient is called positive; None where there is no common one.
        narrow: For a telephone.
        target: Names the classes.
    """
    names = sorted(groups.unique())
    figure, axes = new_axes(style.NARROW if narrow else 7.8, 1.6 + 0.62 * len(names))
    negative, positive = target.classes
    looks = ((0, style.WILDTYPE_COLOUR, "o", negative), (1, style.MUTANT_COLOUR, "D", positive))
    for label, colour, marker, word in looks:
        for position, name in enumerate(names):
            scores = np.sort(probabilities[(groups == name) & (labels == label)].to_numpy(dtype=float))
            # Neighbours apart in three lanes, so that equal scores are seen; no chance in a figure.
            height = position + (0.2 if label else -0.2) + 0.08 * (np.arange(len(scores)) % 3 - 1)
            axes.plot(scores, height, marker, color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
            if len(scores):
                middle = position + (0.2 if label else -0.2)
                axes.plot([np.median(scores)] * 2, [middle - 0.16, middle + 0.16], color=colour, linewidth=2.5)
        axes.plot([], [], marker, color=colour, label=f"{word} (bar: median)")
    if threshold is not None:
        axes.axvline(threshold, color=style.MUTED, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    told = [areas[name].text if name in areas else "" for name in names]
    lines = [
        f"{shorten(name, 18)}, n = {(groups == name).sum()}\n{text}" for name, text in zip(names, told, strict=True)
    ]
    axes.set_yticks(range(len(names)), lines, parse_math=False)
    axes.set_ylim(len(names) - 0.45, -0.55)
    dress(axes, "Scores by site", "name, patients, ROC-AUC", grid="x", xlabel=target.chance, xlim=(-0.02, 1.02))
    figure.legend(loc="outside lower center", ncols=1 if narrow else 3, frameon=False)
    return figure


def forest(
    rows: Sequence[tuple[str, Estimate]],
    *,
    title: str,
    reference: tuple[str, float] | None = None,
    xlabel: str = METRICS["auroc"].name,
    xlim: tuple[float, float] | None = None,
    narrow: bool = False,
) -> Figure:
    """Forest plot: estimates with their intervals, one per line, with n and the numbers written out.

    Args:
        rows: (name, estimate) from top to bottom; a name that starts with "# " opens a group and its estimate is
            not drawn; an estimate without a value says "too few".
        title: What is compared.
        reference: (name, value) of a vertical line, for example the whole test set, or None.
        xlabel: What the values are.
        xlim: Limits of the axis; None takes them from the intervals.
        narrow: For a telephone: names and numbers stand above the intervals instead of beside them.
    """
    figure, axes = new_axes(*((style.NARROW, 1.5 + 0.46 * len(rows)) if narrow else (7.8, 1.25 + 0.33 * len(rows))))
    title = textwrap.fill(title, 40) if narrow else title
    figure.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold", color=style.INK, parse_math=False)
    drawn = [(name, e) for name, e in rows if not name.startswith("# ") and e.value is not None]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 10}
    for x, heading in () if narrow else ((1.02, "n"), (1.12, "value (95% interval)")):
        axes.text(x, -0.9, heading, **(beside | {"fontsize": 9, "color": style.MUTED}))
    for position, (name, estimate) in enumerate(rows):
        if not name.startswith("# "):
            _draw_estimate(axes, position, name, estimate, beside, narrow=narrow)
    words = xlabel
    if reference is not None:
        line: dict[str, Any] = {"color": style.VERMILLION, "linestyles": "--", "linewidth": 1.2, "zorder": 0}
        # Where the numbers stand above the intervals, the line runs beside the intervals only.
        tops = np.arange(len(rows)) - (0.18 if narrow else 0.6)
        axes.vlines(np.full(len(rows), reference[1]), tops, tops + (0.66 if narrow else 1.2), **line)
        words = f"{xlabel} (dashed line: {reference[0]}, {reference[1]:.2f})"
    dress(axes, grid="x")
    axes.set_yticks(range(len(rows)), [shorten(name.removeprefix("# "), 34) for name, _ in rows])
    if narrow:
        for position, (name, _) in enumerate(rows):
            if name.startswith("# "):
                axes.text(0.0, position, name[2:], fontweight="bold", parse_math=False, **(beside | {"fontsize": 9}))
        axes.set_yticks([])
    for tick, (name, _) in zip(axes.get_yticklabels(), rows, strict=False):
        tick.set_parse_math(False)
        if name.startswith("# "):
            tick.set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if xlim is not None:
        axes.set_xlim(*xlim)
    elif drawn:
        ends = [x for _, e in drawn for x in (e.low, e.high, e.value) if x is not None]
        axes.set_xlim(min(0.45, *ends) - 0.02, max(1.0, *ends) + 0.02)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(words, parse_math=False)
    return figure


def _draw_estimate(
    axes: Axes, position: int, name: str, estimate: Estimate, beside: Mapping[str, Any], *, narrow: bool
) -> None:
    """Draw one line of a forest plot: the interval, the estimate and both in numbers."""
    if estimate.value is not None:
        if estimate.low is not None and estimate.high is not None:
            axes.plot((estimate.low, estimate.high), (position, position), color=style.BLUE, linewidth=2)
        axes.plot(estimate.value, position, "s", color=style.BLUE, markersize=7, markeredgecolor="white")
    colour = style.MUTED if estimate.value is None else style.INK
    text = shorten(estimate.text, 24)
    if narrow:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        above = {**beside, "fontsize": 9, "parse_math": False, "bbox": paper}
        count = "" if estimate.n is None else f", n = {estimate.n}"
        axes.text(0.0, position - 0.36, f"{shorten(name, 30)}{count}", color=style.INK, **above)
        axes.text(1.0, position - 0.36, text, color=colour, ha="right", **above)
    else:
        axes.text(1.02, position, "" if estimate.n is None else f"{estimate.n}", color=colour, **beside)
        axes.text(1.12, position, text, color=colour, parse_math=False, **beside)


def _mark_operating_point(axes: Axes, x: float, y: float, words: str = "operating point") -> None:
    axes.plot(x, y, "D", color=style.VERMILLION, markersize=9, markeredgecolor="white", label=words)


def _resampled_sensitivity(
    grid: NDArray[Any], truth: NDArray[Any], score: NDArray[Any], resamples: int = 500, seed: int = 0
) -> NDArray[Any]:
    """[resamples, grid] sensitivity at each false-positive rate, resampled within each class."""
    drawn = Bootstrap.draw(truth, resamples=resamples, seed=seed).weights[-resamples:]
    order = np.argsort(-score, kind="stable")
    # A threshold cannot part equal scores: only the last of each counts.
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    counts = [np.cumsum((drawn * (truth == label))[:, order], axis=1)[:, last] for label in (0, 1)]
    start = np.zeros((resamples, 1))
    false_rate, true_rate = (np.hstack([start, count / count[:, -1:]]) for count in counts)
    # Where a curve rises vertically its upper end counts: np.interp takes the last of equal abscissae.
    return np.array([np.interp(grid, x, y) for x, y in zip(false_rate, true_rate, strict=True)])
