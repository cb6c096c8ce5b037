"""Arrays and tables to figures that can be read without the text.

Every function returns a matplotlib Figure and touches no global state. Colours are those of Okabe and Ito, which stay
apart under the common forms of colour blindness; shape or line style always carries the same difference.

Source: Okabe & Ito 2008, Color Universal Design.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from idh_lightning.cli.tables import number
from idh_lightning.evaluation.intervals import Bootstrap
from idh_lightning.reports.vocabulary import METRICS

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, MUTED, RULE = "#1a1a1a", "#5f6368", "#c9ccd1"
WILDTYPE_COLOUR, MUTANT_COLOUR = BLUE, VERMILLION

NARROW = 4.6
"""Inches: a figure of this width can be read on a telephone."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the count it rests on; what is unknown is None.

    Attributes:
        value: Point estimate, or None where there were too few patients for one.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Patients (or studies) that it was computed on.
        why: Why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    why: str | None = None

    @property
    def text(self) -> str:
        """The estimate as it is printed everywhere: 0.90 (0.80 to 0.97)."""
        if self.value is None:
            return (self.why or "not known").split(":")[0]
        return number(self.value) + (f" ({self.interval})" if self.interval else "")

    @property
    def interval(self) -> str:
        """Its interval alone: 0.80 to 0.97, or nothing."""
        return "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"


def learning_curves(
    log: pd.DataFrame, *, monitor: str | None = None, mode: str = "max", narrow: bool = False
) -> Figure:
    """Return loss, accuracy, ROC-AUC and learning rate over optimizer steps, with the epochs along the top.

    Args:
        log: What Lightning's CSVLogger wrote: `epoch`, `step` and columns `stage/name`, empty where not logged.
        monitor: Column whose best value is marked (the checkpoint that was kept), or None.
        mode: "max" or "min": which value of `monitor` is best.
        narrow: For a telephone: one panel under the other.
    """
    logged = {str(name) for name in log.columns if log[name].notna().any()}
    rates = sorted(name for name in logged if name == "lr" or name.startswith("lr-"))[:1]
    panels = [
        ("Loss", ["train/loss_step", "train/loss", "train/loss_epoch", "val/loss"]),
        ("Accuracy of studies at 0.5", ["train/study_accuracy", "val/study_accuracy"]),
        ("ROC-AUC of studies", ["train/study_auroc", "val/study_auroc"]),
        ("Learning rate", rates),
    ]
    panels = [(title, [key for key in keys if key in logged]) for title, keys in panels]
    panels = [(title, keys) for title, keys in panels if keys]
    columns = 2 if len(panels) > 1 and not narrow else 1
    lines = -(-len(panels) // columns)
    figure = _figure(3.9 * columns, 3.1 * max(lines, 1))
    looks = {"train": (ORANGE, "--", "o", "training"), "val": (BLUE, "-", "s", "validation")}
    ends = log.dropna(subset=["epoch"]).groupby("epoch")["step"].max() if "epoch" in log else pd.Series(dtype=float)
    best = None
    if monitor in logged:
        values = log[monitor].astype(float)
        best = log.iloc[int(values.argmax() if mode == "max" else values.argmin())]
    for place, (title, keys) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        for key in keys:
            points = log[["step", key]].dropna().sort_values("step")
            if key.endswith("_step"):
                axes.plot(points["step"], points[key], color=ORANGE, linewidth=0.9, alpha=0.45, label="training, batch")
                continue
            colour, style, marker, name = looks.get(key.split("/")[0], (GREEN, "-", "", "learning rate"))
            axes.plot(
                points["step"],
                points[key],
                color=colour,
                linestyle=style,
                marker=marker if len(points) <= 40 else "",
                markersize=4,
                linewidth=1.8,
                label=name,
            )
        _dress(axes, title, " " if len(ends) > 1 else None)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if "of studies" in title:
            axes.set_ylim(min(0.4, axes.get_ylim()[0]), 1.02)
        elif title == "Loss":
            axes.set_ylim(bottom=0)
        else:
            axes.yaxis.set_major_formatter("{x:.1e}")
        if title.startswith("ROC-AUC"):
            axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=":")
            axes.annotate("chance", (0.02, 0.5), xycoords=("axes fraction", "data"), va="bottom", color=MUTED)
        if best is not None:
            axes.axvline(best["step"], color=PURPLE, linewidth=1.2, zorder=0)
            if monitor in keys:
                words = f"line: best, {best[monitor]:.3f} in epoch {int(best['epoch'])}"
                axes.set_xlabel(f"optimizer step ({words})", color="#8b3a62")
        if len(ends) > 1:
            told = spaced(ends.to_numpy(dtype=float), least=0.09 * float(np.ptp(axes.get_xlim())))
            top = axes.secondary_xaxis("top")
            top.set_xticks(ends.to_numpy()[told], [str(int(ends.index[place])) for place in told])
            top.tick_params(labelsize=8, colors=MUTED, length=2)
            top.spines["top"].set_color(RULE)
            top.set_xlabel("epoch", fontsize=8, color=MUTED, loc="right")
        if len(keys) > 1 and place == 0:
            axes.legend(frameon=True, framealpha=1, edgecolor="none")
    return figure


def spaced(places: NDArray[np.float64], *, least: float) -> list[int]:
    """Indices of ascending places that keep a distance from each other, the first and as many more as there is room."""
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= least:
            kept.append(index)
    return kept


def confusion_matrix(counts: ArrayLike, *, title: str = "Confusion matrix", threshold: float | None = None) -> Figure:
    """Return the confusion matrix with counts and row percentages.

    Args:
        counts: [2, 2], rows are the truth and columns the prediction, wildtype first.
        title: Names the patients.
        threshold: P(mutant) from which a study is called mutant; shown when given.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure = _figure(4.6, 4.2)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else INK
        kind = "correct" if row == column else ("missed mutant" if row == 1 else "false alarm")
        axes.text(column, row - 0.1, f"{int(table[row, column])}", ha="center", fontsize=22, color=colour)
        axes.text(column, row + 0.14, f"{share:.0%} of row", ha="center", fontsize=10, color=colour)
        axes.text(column, row + 0.32, kind, ha="center", fontsize=9, color=colour, style="italic")
    names = ("wildtype", "mutant")
    axes.set_xticks((0, 1), [f"called {name}" for name in names])
    axes.set_yticks((0, 1), [f"{name}\nn = {int(n)}" for name, n in zip(names, table.sum(axis=1), strict=True)])
    note = f"called mutant from P = {threshold:.2f} on" if threshold is not None else None
    _dress(axes, title, note, grid=False)
    axes.set_ylabel("truth")
    axes.tick_params(length=0, labelsize=10)
    return figure


def roc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    auroc: Estimate | None = None,
    threshold: float | None = None,
    title: str = "ROC curve",
    resamples: int = 500,
    seed: int = 0,
) -> Figure:
    """Return the ROC curve with a pointwise 95 % bootstrap band and the operating point.

    Args:
        labels: [N], 0 wildtype, 1 mutant; both present.
        probabilities: [N], P(mutant).
        auroc: Shown in the title.
        threshold: The operating point, from which P(mutant) is called mutant.
        title: Names the patients.
        resamples: Bootstrap resamples, drawn within each class.
        seed: Of the resampling.
    """
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    grid = np.linspace(0, 1, 101)
    low, high = np.percentile(_resampled_sensitivity(grid, truth, score, resamples, seed), (2.5, 97.5), axis=0)
    false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    figure = _figure(4.9, 4.9)
    axes = figure.add_subplot()
    axes.fill_between(grid, low, high, color=SKY, alpha=0.3, linewidth=0, label="95 % band (bootstrap)")
    axes.plot((0, 1), (0, 1), color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes.plot(false_rate, true_rate, color=BLUE, linewidth=2.2, label="model")
    if threshold is not None:
        called = score >= threshold
        x, y = called[truth == 0].mean(), called[truth == 1].mean()
        axes.plot(x, y, "D", color=VERMILLION, markersize=9, markeredgecolor="white", label="operating point")
        right, high_up = x < 0.5, y > 0.4
        axes.annotate(
            f"sensitivity {y:.2f}\nspecificity {1 - x:.2f}",
            (x, y),
            xytext=(14 if right else -14, -8 if high_up else 8),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top" if high_up else "bottom",
            color="#9a4300",
        )
    counts = f"n = {truth.size}, {truth.sum()} mutant"
    _dress(axes, title, counts if auroc is None else f"{METRICS['auroc'].name} {auroc.text}; {counts}")
    _unit_square(axes)
    axes.set_xlabel("1 − specificity: wildtype called mutant")
    axes.set_ylabel("sensitivity: mutant called mutant")
    # The legend goes where the curve is not.
    axes.legend(loc="lower right" if np.trapezoid(true_rate, false_rate) >= 0.5 else "upper left", frameon=False)
    return figure


def precision_recall(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    average_precision: Estimate | None = None,
    threshold: float | None = None,
    title: str = "Precision and recall",
) -> Figure:
    """Return the precision-recall curve with the prevalence as the line that guessing reaches. See `roc`."""
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    precision, recall, _ = precision_recall_curve(truth, score)
    prevalence = truth.mean()
    figure = _figure(4.9, 4.9)
    axes = figure.add_subplot()
    axes.axhline(prevalence, color=MUTED, linestyle=":", linewidth=1.2, label=f"prevalence {prevalence:.2f}: guessing")
    axes.step(recall, precision, where="post", color=BLUE, linewidth=2.2, label="model")
    if threshold is not None and (score >= threshold).any():
        called = score >= threshold
        point = (called[truth == 1].mean(), truth[called].mean())
        axes.plot(*point, "D", color=VERMILLION, markersize=9, markeredgecolor="white", label="operating point")
    counts = f"n = {truth.size}, {truth.sum()} mutant"
    note = counts if average_precision is None else f"average precision {average_precision.text}; {counts}"
    _dress(axes, title, note)
    _unit_square(axes)
    axes.set_xlabel("recall: share of mutants found")
    axes.set_ylabel("precision: share of calls that are mutant")
    axes.legend(loc="best", frameon=False)
    return figure


def reliability(
    curve: Mapping[str, Sequence[float]],
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    raw: Mapping[str, Sequence[float]] | None = None,
    ece: Estimate | None = None,
    title: str = "Calibration",
) -> Figure:
    """Return the observed share of mutants against P(mutant), with the probabilities themselves below.

    Args:
        curve: `predicted`, `observed`, `low`, `high`: one entry per group of patients.
        labels: [N], 0 wildtype, 1 mutant.
        probabilities: [N], P(mutant).
        raw: `predicted` and `observed` before calibration, drawn in outline when given.
        ece: Shown in the title.
        title: Names the patients.
    """
    truth, score = np.asarray(labels, dtype=int), np.asarray(probabilities, dtype=float)
    figure = _figure(4.9, 5.4)
    axes, counts = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    axes.plot((0, 1), (0, 1), color=MUTED, linestyle=":", linewidth=1.2, label="perfect")
    if raw is not None:
        axes.plot(raw["predicted"], raw["observed"], "o--", color=MUTED, mfc="white", lw=1.2, label="uncalibrated")
    observed = np.asarray(curve["observed"], dtype=float)
    below, above = observed - np.asarray(curve["low"]), np.asarray(curve["high"]) - observed
    axes.errorbar(
        curve["predicted"],
        observed,
        yerr=np.clip((below, above), 0, None),
        color=BLUE,
        marker="s",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
        label="probability of the report",
    )
    note = f"{len(observed)} groups of about equal size, 95 % intervals; n = {truth.size}"
    _dress(axes, title, note if ece is None else f"{METRICS['ece'].name} {ece.text}\n{note}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylabel("observed share of mutants")
    axes.legend(loc="upper left", frameon=False)
    shades = ((0, WILDTYPE_COLOUR, "wildtype"), (1, MUTANT_COLOUR, "mutant"))
    counts.hist(
        [score[truth == label] for label, _, _ in shades],
        bins=np.linspace(0, 1, 21).tolist(),
        stacked=True,
        color=[colour for _, colour, _ in shades],
        label=[name for _, _, name in shades],
    )
    _dress(counts)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    counts.set_xlabel("P(mutant)")
    counts.set_ylabel("n")
    counts.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    return figure


def decision_curve(
    curves: pd.DataFrame,
    *,
    band: Mapping[str, Any] | None = None,
    prevalence: float | None = None,
    last: float | None = None,
    title: str = "Decision curve",
) -> Figure:
    """Return net benefit over threshold probabilities: the model against age and against treating all or none.

    Args:
        curves: Column `threshold`, and one column of net benefit per strategy; `treat_all` and `treat_none` are drawn
            as references and `model` on top.
        band: `low` and `high`, net benefit at the same thresholds: the 95 % band of the model.
        prevalence: Sets the upper end of the axis, which net benefit cannot pass.
        last: Threshold up to which the curves are drawn, since beyond it single patients make them jump. They end
            before it where the model falls below the axis: a piece that comes up again further on is chance.
        title: Names the patients.

    Source: Vickers & Elkin 2006, doi:10.1177/0272989X06295361.
    """
    figure = _figure(5.6, 4.6)
    axes = figure.add_subplot()
    names = [name for name in curves.columns if name != "threshold"]
    top = float(np.nanmax(curves[names].to_numpy())) if prevalence is None else prevalence
    note = "higher is better; net benefit = true calls − weighted false calls, per patient"
    below = curves.loc[curves["model"] < -0.12 * top, "threshold"] if "model" in curves else curves["threshold"][:0]
    end = min([last if last is not None else 1.0, *below])
    kept = (curves["threshold"] <= end).to_numpy()
    if 1 < kept.sum() < len(kept):
        why = "the model does harm" if len(below) and end == below.min() else "the model calls too few mutant"
        note += f"\nnot drawn beyond {end:.0%}, where {why}"
        curves = curves[kept]
        band = None if band is None else {end: np.asarray(band[end], dtype=float)[kept] for end in ("low", "high")}
    looks = {
        "treat_none": (MUTED, ":", 1.2),
        "treat_all": (MUTED, "--", 1.2),
        "age": (ORANGE, "-.", 1.8),
        "model": (BLUE, "-", 2.4),
    }
    if band is not None:
        axes.fill_between(curves["threshold"], band["low"], band["high"], color=SKY, alpha=0.25, linewidth=0)
    spare = iter([(GREEN, (0, (5, 1)), 1.6), (PURPLE, (0, (3, 1, 1, 1)), 1.6), (VERMILLION, (0, (1, 1)), 1.6)] * 3)
    for name in sorted(names, key=lambda name: (name == "model", name not in looks, name)):
        colour, style, width = looks.get(name) or next(spare)
        label = {"treat_all": "call everyone mutant", "treat_none": "call no one mutant"}.get(name)
        label = label or name.replace("_", " ")
        axes.plot(curves["threshold"], curves[name], color=colour, linestyle=style, linewidth=width, label=label)
    axes.set_ylim(-0.12 * top, 1.12 * top)
    axes.set_xlim(float(curves["threshold"].min()), float(curves["threshold"].max()))
    _dress(axes, title, note)
    axes.set_xlabel("threshold: P(mutant) from which one would act")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("net benefit")
    axes.legend(frameon=False)
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
    """Return estimates with their intervals, one per line, with n and the numbers written out.

    Args:
        rows: (name, estimate) from top to bottom; a name that starts with "# " opens a group and its estimate is
            not drawn; an estimate without a value says "too few".
        title: What is compared.
        reference: (name, value) of a vertical line, for example the whole test set, or None.
        xlabel: What the values are.
        xlim: Limits of the axis; None takes them from the intervals.
        narrow: For a telephone: names and numbers stand above the intervals instead of beside them.
    """
    figure = _figure(NARROW, 1.5 + 0.46 * len(rows)) if narrow else _figure(7.8, 1.25 + 0.33 * len(rows))
    title = textwrap.fill(title, 40) if narrow else title
    figure.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    axes = figure.add_subplot()
    drawn = [(name, e) for name, e in rows if not name.startswith("# ") and e.value is not None]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 10}
    for x, heading in () if narrow else ((1.02, "n"), (1.12, "value (95 % interval)")):
        axes.text(x, -0.9, heading, **(beside | {"fontsize": 9, "color": MUTED}))
    for position, (name, estimate) in enumerate(rows):
        if name.startswith("# "):
            continue
        if estimate.value is not None:
            if estimate.low is not None and estimate.high is not None:
                axes.plot((estimate.low, estimate.high), (position, position), color=BLUE, linewidth=2)
            axes.plot(estimate.value, position, "s", color=BLUE, markersize=7, markeredgecolor="white")
        colour = MUTED if estimate.value is None else INK
        if narrow:
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            above = beside | {"fontsize": 9, "parse_math": False, "bbox": paper}
            count = "" if estimate.n is None else f", n = {estimate.n}"
            axes.text(0.0, position - 0.36, f"{_shorten(name, 30)}{count}", color=INK, **above)
            axes.text(1.0, position - 0.36, _shorten(estimate.text, 24), color=colour, ha="right", **above)
            continue
        axes.text(1.02, position, "" if estimate.n is None else f"{estimate.n}", color=colour, **beside)
        axes.text(1.12, position, _shorten(estimate.text, 24), color=colour, parse_math=False, **beside)
    words = xlabel
    if reference is not None:
        line: dict[str, Any] = {"color": VERMILLION, "linestyles": "--", "linewidth": 1.2, "zorder": 0}
        # Where the numbers stand above the intervals, the line runs beside the intervals only.
        tops = np.arange(len(rows)) - (0.18 if narrow else 0.6)
        axes.vlines(np.full(len(rows), reference[1]), tops, tops + (0.66 if narrow else 1.2), **line)
        words = f"{xlabel} (dashed line: {reference[0]}, {reference[1]:.2f})"
    _dress(axes)
    axes.set_yticks(range(len(rows)), [_shorten(name.removeprefix("# "), 34) for name, _ in rows])
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
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(words, parse_math=False)
    return figure


def draw_cohort_flow(excluded: Mapping[str, int], parts: Mapping[str, tuple[int, int, int]]) -> Figure:
    """Return the way from the studies that were found to the three parts, as boxes.

    Args:
        excluded: Reason -> studies left out.
        parts: Part -> (studies, patients, patients with a mutation), in order.
    """
    used, patients, mutant = (sum(part[k] for part in parts.values()) for k in range(3))
    lost = sum(excluded.values())
    reasons = sorted(excluded.items(), key=lambda item: -item[1])
    lines = [f"{n} × {_shorten(reason, 46)}" for reason, n in reasons[:5]]
    if len(reasons) > 5:
        lines.append(f"{sum(n for _, n in reasons[5:])} × other reasons (exclusions.csv)")
    height = 4.3 + 0.2 * len(lines)
    figure = _figure(7.6, height)
    axes = figure.add_subplot()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    axes.axis("off")
    box: dict[str, Any] = {"boxstyle": "round,pad=0.55", "facecolor": "white", "edgecolor": MUTED, "linewidth": 1.2}
    write: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 1.45, "parse_math": False, "color": INK}
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    top, middle, bottom = 9.2, 4.6, 1.3
    split = 3.1
    axes.annotate("", (3, middle + 0.95), (3, top - 0.4), arrowprops=arrow)
    axes.plot((3, 3), (middle, split), color=MUTED, linewidth=1.2, zorder=0)
    axes.text(3, top, f"{used + lost} studies found", bbox=box, fontsize=12, **write)
    text = "\n".join([f"{lost} left out", *lines]) if lost else "none left out"
    axes.annotate("", (5.0, 7.0), (3, 7.0), arrowprops=arrow)
    axes.text(5.2, 7.0, text, bbox=box | {"edgecolor": RULE}, fontsize=9.5, **(write | {"ha": "left"}))
    share = f"{mutant} mutant ({mutant / patients:.0%})" if patients else ""
    axes.text(3, middle, f"{used} studies of {patients} patients\n{share}", bbox=box, fontsize=12, **write)
    places = np.linspace(1.6, 8.4, len(parts)) if len(parts) > 1 else np.array([3.0])
    if len(parts):
        axes.plot((min(3, places[0]), max(3, places[-1])), (split, split), color=MUTED, linewidth=1.2, zorder=0)
    fills = {"train": "#fdf3e0", "validation": "#e3f0f8", "test": "#fae9de"}
    for place, (name, (n, people, positive)) in zip(places, parts.items(), strict=True):
        axes.annotate("", (place, bottom + 1.0), (place, split), arrowprops=arrow)
        axes.text(
            place,
            bottom,
            f"{name}\n{people} patients ({n} studies)\n{positive} mutant, {people - positive} wildtype",
            bbox=box | {"facecolor": fills.get(name, "white")},
            fontsize=10,
            **write,
        )
    return figure


METHOD_LOOKS = (
    (BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":"),
    (ORANGE, "-"), (SKY, "--"), (INK, "-."), (MUTED, "-"),
)  # fmt: skip
"""Colour and line style of methods of explanation, in their order; they begin again where there are more."""


def score_distributions(
    scores: pd.DataFrame, columns: Mapping[str, str], *, chosen: str, muted: Sequence[str] = (), narrow: bool = False
) -> Figure:
    """Return each score of each method as points, one per study, with the mean and the middle half.

    Args:
        scores: One row per study and method: `method` and the columns.
        columns: Column -> title of its panel.
        chosen: Method whose points are coloured.
        muted: Methods that stand for comparison, drawn in grey.
        narrow: For a telephone.
    """
    methods = list(dict.fromkeys(scores["method"]))
    across = 1 if narrow else 3
    down = -(-len(columns) // across)
    figure = _figure(NARROW if narrow else 11.0, down * (0.95 + 0.31 * len(methods)))
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    rng = np.random.default_rng(0)
    for place, axis in enumerate(axes.flat):
        if place >= len(columns):
            axis.set_visible(False)
            continue
        column, title = list(columns.items())[place]
        for row, method in enumerate(methods):
            values = scores.loc[scores["method"] == method, column].to_numpy(dtype=float)
            values = values[np.isfinite(values)]
            if values.size == 0:
                continue
            colour = MUTED if method in muted else VERMILLION if method == chosen else BLUE
            heights = row + rng.uniform(-0.26, 0.26, values.size)
            axis.plot(values, heights, ".", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            low, high = np.percentile(values, (25, 75))
            axis.plot((low, high), (row, row), color=colour, linewidth=2.2)
            axis.plot(values.mean(), row, "D", color=colour, markersize=6, markeredgecolor="white")
        _dress(axis, title)
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(len(methods) - 0.4, -0.6)
        axis.set_yticks(range(len(methods)), [_shorten(method, 34) for method in methods])
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    return figure


def faithfulness_curves(
    fractions: ArrayLike, curves: Mapping[str, Mapping[str, Sequence[float]]], *, narrow: bool = False
) -> Figure:
    """Return the probability of the predicted class while voxels go and come in the order of each method's map.

    Args:
        fractions: Share of the brain, 0 to 1.
        curves: Method -> deletion, insertion, random_deletion, random_insertion: mean over studies at each fraction.
        narrow: For a telephone.
    """
    figure = _figure(NARROW, 8.4) if narrow else _figure(10.4, 4.2)
    titles = {
        "deletion": ("Deletion", "hottest voxels replaced first: lower is better"),
        "insertion": ("Insertion", "hottest voxels brought back first: higher is better"),
    }
    for axes, (name, (title, note)) in zip(
        figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=True), titles.items(), strict=True
    ):
        for place, (method, theirs) in enumerate(curves.items()):
            colour, style = METHOD_LOOKS[place % len(METHOD_LOOKS)]
            axes.plot(fractions, theirs[name], color=colour, linestyle=style, linewidth=1.8, label=method)
        for theirs in list(curves.values())[:1]:
            axes.plot(fractions, theirs[f"random_{name}"], color=MUTED, linewidth=1.2, linestyle=":", label="at random")
        _dress(axes, title, note)
        axes.set_xlabel("share of the brain")
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set_xlim(0, 1)
    figure.axes[0].set_ylabel("probability of the predicted class")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left" if narrow else "outside right upper", frameon=False, fontsize=9
    )
    return figure


def cascade_curves(agreement: pd.DataFrame, *, bound: float, narrow: bool = False) -> Figure:
    """Return how alike maps stay while more and more of the network is randomised.

    Args:
        agreement: `method`, `module` (in the order in which they are randomised) and `spearman` (mean over studies).
        bound: Below which a map must be in the end.
        narrow: For a telephone.
    """
    figure = _figure(NARROW, 5.2) if narrow else _figure(10.4, 3.9)
    axes = figure.add_subplot()
    modules = list(dict.fromkeys(agreement["module"]))
    for place, (method, theirs) in enumerate(agreement.groupby("method", sort=False)):
        colour, style = METHOD_LOOKS[place % len(METHOD_LOOKS)]
        values = [1.0, *theirs.set_index("module")["spearman"].reindex(modules)]
        axes.plot(range(len(values)), values, color=colour, linestyle=style, linewidth=1.8, label=str(method))
    axes.axhline(bound, color=MUTED, linewidth=1, linestyle=":")
    axes.annotate("must end below", (0.01, bound), xycoords=("axes fraction", "data"), va="bottom", color=MUTED)
    axes.axhline(0, color=RULE, linewidth=1)
    axes.set_xticks(range(len(modules) + 1), ["as trained", *modules], rotation=35, ha="right")
    _dress(axes, "Maps of a network that forgets", "each module is randomised on top of those to its left")
    axes.set_ylabel("rank correlation with the map")
    figure.legend(loc="outside lower left" if narrow else "outside right upper", frameon=False, fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def _dress(axes: Axes, title: str | None = None, note: str | None = None, *, grid: bool = True) -> None:
    """Give axes their title, a quieter note under it, and light rules."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=INK, labelsize=9, color=RULE)
    if grid:
        axes.grid(color=RULE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
    if note:
        axes.set_title(note, loc="left", fontsize=9, color=MUTED, linespacing=1.3, parse_math=False)
    if title:
        lift = 10 + 13 * (note.count("\n") + 1) if note else 6
        axes.annotate(
            title,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, lift),
            textcoords="offset points",
            fontsize=12,
            fontweight="bold",
            color=INK,
            parse_math=False,
        )


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _resampled_sensitivity(
    grid: NDArray[Any], truth: NDArray[Any], score: NDArray[Any], resamples: int, seed: int
) -> NDArray[Any]:
    """Return [resamples, grid] the sensitivity at each false-positive rate, resampled within each class."""
    drawn = Bootstrap.draw(truth, resamples=resamples, seed=seed).weights[-resamples:]
    order = np.argsort(-score, kind="stable")
    # A threshold cannot part equal scores: only the last of each counts.
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    counts = [np.cumsum((drawn * (truth == label))[:, order], axis=1)[:, last] for label in (0, 1)]
    start = np.zeros((resamples, 1))
    false_rate, true_rate = (np.hstack([start, count / count[:, -1:]]) for count in counts)
    # Where a curve rises vertically its upper end counts: np.interp takes the last of equal abscissae.
    return np.array([np.interp(grid, x, y) for x, y in zip(false_rate, true_rate, strict=True)])


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
