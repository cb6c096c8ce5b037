"""Figures of the course of a run, and of a search: flow of patients, learning curves, and what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from idh_lightning.cohort import IDH, Target
from idh_lightning.reports.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RULE,
    dress,
    new_axes,
    new_figure,
    shorten,
)


def draw_cohort_flow(
    excluded: Mapping[str, int], parts: Mapping[str, tuple[int, int, int]], target: Target = IDH
) -> Figure:
    """Way from the studies that were found to the three parts, as boxes.

    Args:
        excluded: Reason -> studies left out.
        parts: Part -> (studies, patients, patients of the positive class), in order.
        target: Names the classes.
    """
    used, patients, mutant = (sum(part[k] for part in parts.values()) for k in range(3))
    lost = sum(excluded.values())
    reasons = sorted(excluded.items(), key=lambda item: -item[1])
    lines = [f"{n} × {shorten(reason, 46)}" for reason, n in reasons[:5]]
    if len(reasons) > 5:
        lines.append(f"{sum(n for _, n in reasons[5:])} × other reasons (exclusions.csv)")
    height = 4.3 + 0.2 * len(lines)
    figure, axes = new_axes(7.6, height)
    axes.set(xlim=(0, 10), ylim=(0, 10))
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
    share = f"{mutant} {target.positive} ({mutant / patients:.0%})" if patients else ""
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
            f"{name}\n{people} patients ({n} studies)\n"
            f"{positive} {target.positive}, {people - positive} {target.negative}",
            bbox=box | {"facecolor": fills.get(name, "white")},
            fontsize=10,
            **write,
        )
    return figure


def learning_curves(
    log: pd.DataFrame, *, monitor: str | None = None, mode: str = "max", narrow: bool = False
) -> Figure:
    """Loss, accuracy, ROC-AUC and learning rate over optimizer steps, with the epochs along the top.

    Args:
        log: What CSVLogger wrote: `epoch` (from 0; drawn from 1), `step` and columns `stage/name`, empty where not
            logged.
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
    figure = new_figure(3.9 * columns, 3.1 * max(lines, 1))
    ends = log.dropna(subset=["epoch"]).groupby("epoch")["step"].max() if "epoch" in log else pd.Series(dtype=float)
    best = None
    if monitor in logged:
        values = log[monitor].astype(float)
        best = log.iloc[int(values.argmax() if mode == "max" else values.argmin())]
    for place, (title, keys) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        _draw_curves(axes, log, keys)
        dress(axes, title, " " if len(ends) > 1 else None, xlabel="optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
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
                words = f"line: best, {best[monitor]:.3f} in epoch {int(best['epoch']) + 1}"
                axes.set_xlabel(f"optimizer step ({words})", color="#8b3a62")
        if len(ends) > 1:
            _mark_epochs(axes, ends)
        if len(keys) > 1 and place == 0:
            axes.legend(frameon=True, framealpha=1, edgecolor="none")
    return figure


def _draw_curves(axes: Axes, log: pd.DataFrame, keys: Sequence[str]) -> None:
    """Draw columns of a log over optimizer steps."""
    looks = {"train": (ORANGE, "--", "o", "training"), "val": (BLUE, "-", "s", "validation")}
    for key in keys:
        points = log[["step", key]].dropna().sort_values("step")
        steps, values = points["step"], points[key]
        if key.endswith("_step"):
            axes.plot(steps, values, color=ORANGE, linewidth=0.9, alpha=0.45, label="training, batch")
            continue
        colour, dashes, marker, name = looks.get(key.split("/")[0], (GREEN, "-", "", "learning rate"))
        marker = marker if len(points) <= 40 else ""
        axes.plot(steps, values, color=colour, ls=dashes, marker=marker, markersize=4, linewidth=1.8, label=name)


def _mark_epochs(axes: Axes, ends: pd.Series) -> None:
    """Draw the epochs along the top, from epoch -> its last step, as many as there is room for."""
    told = spaced(ends.to_numpy(dtype=float), least=0.09 * float(np.ptp(axes.get_xlim())))
    top = axes.secondary_xaxis("top")
    top.set_xticks(ends.to_numpy()[told], [str(int(ends.index[place]) + 1) for place in told])
    top.tick_params(labelsize=8, colors=MUTED, length=2)
    top.spines["top"].set_color(RULE)
    top.set_xlabel("epoch", fontsize=8, color=MUTED, loc="right")


def spaced(places: NDArray[np.float64], *, least: float) -> list[int]:
    """Indices of ascending places that keep a distance from each other, the first and as many more as there is room."""
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= least:
            kept.append(index)
    return kept


def parallel_coordinates(settings: Mapping[str, Sequence[Any]], values: ArrayLike) -> Figure:
    """One line per run through all of its settings; the better its value, the darker.

    Args:
        settings: Name -> one value per run; numbers over more than a factor of 20 are spaced by their logarithm.
        values: Validation ROC-AUC per run; NaN where there is none, which is not drawn.
    """
    scores = np.asarray(values, dtype=float)
    drawn = np.flatnonzero(np.isfinite(scores))
    figure, axes = new_axes(2.4 + 1.9 * (len(settings) + 1), 4.2)
    beside: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
    heights = []
    for position, (name, column) in enumerate(settings.items()):
        height, labels = _axis(list(column))
        heights.append(height)
        axes.axvline(position, color=MUTED, linewidth=0.8)
        axes.text(position, 1.06, name, ha="center", fontsize=9, parse_math=False)
        for y, label in labels:
            axes.annotate(label, (position, y), (4, 0), **beside)
    low, high = float(scores[drawn].min()), float(scores[drawn].max())
    colours = ScalarMappable(Normalize(low - 0.25 * (high - low) - 1e-6, high + 1e-6), "Blues")
    for index in drawn[np.argsort(scores[drawn])]:
        line = [height[index] for height in heights] + [_scaled(scores[index], low, high)]
        axes.plot(range(len(line)), line, color=colours.to_rgba(scores[index]), linewidth=1.6, marker="o", markersize=3)
    last = len(heights)
    axes.axvline(last, color=MUTED, linewidth=0.8)
    axes.text(last, 1.06, "validation ROC-AUC", ha="center", fontsize=9)
    for value in sorted({low, high}):
        axes.annotate(f"{value:.3f}", (last, _scaled(value, low, high)), (4, 0), **beside)
    axes.set(xlim=(-0.2, last + 0.5), ylim=(-0.05, 1.15))
    axes.axis("off")
    figure.suptitle(f"{len(drawn)} runs; the best are the darkest", x=0.02, ha="left", fontsize=12, fontweight="bold")
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Share of the differences between runs that each setting explains, the most first."""
    names = sorted(shares, key=lambda name: shares[name])
    figure, axes = new_axes(6.4, 1.4 + 0.4 * len(names))
    axes.barh(range(len(names)), [shares[name] for name in names], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), names)
    for position, name in enumerate(names):
        axes.text(shares[name] + 0.01, position, f"{shares[name]:.2f}", va="center", fontsize=9)
    xlabel = "share of what a random forest explains of the validation ROC-AUC"
    dress(axes, "Which settings mattered", grid="x", xlabel=xlabel, xlim=(0, 1.1))
    return figure


def curve(settings: ArrayLike, values: ArrayLike, low: ArrayLike, high: ArrayLike, *, name: str, split: str) -> Figure:
    """ROC-AUC against a number that was varied, each run with its 95% interval; the line joins the means.

    Runs without a ROC-AUC (NaN) are not drawn.
    """
    table = np.array([np.asarray(column, dtype=float) for column in (settings, values, low, high)])
    x, y, lower, upper = table[:, np.isfinite(table[1])]
    figure, axes = new_axes(6.0, 4.2)
    counts = np.unique(x)
    axes.plot(counts, [y[x == count].mean() for count in counts], color=BLUE, linewidth=1.8)
    axes.errorbar(x, y, (y - lower, upper - y), fmt="o", color=BLUE, capsize=3, markersize=5, linewidth=1.2)
    axes.axhline(0.5, color=MUTED, linestyle="--", linewidth=1)
    if (counts > 0).all():
        axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    lowest = min(0.45, float(np.nanmin(lower)) - 0.02) if len(y) else 0.45
    named = {"xlabel": name, "ylabel": f"{split} ROC-AUC (95% interval)"}
    note = "One point per run, the line through their means; dashed: chance"
    dress(axes, f"ROC-AUC against {name}", note, ylim=(lowest, 1.01), **named)
    return figure


def _axis(column: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Height of each run on the axis of a setting, 0 to 1, and the labels with their heights."""
    try:
        numbers = np.array([float(value) for value in column])
    except (TypeError, ValueError):
        names = sorted({str(value) for value in column})
        places = {name: _scaled(index, 0, len(names) - 1) for index, name in enumerate(names)}
        return [places[str(value)] for value in column], [(place, name) for name, place in places.items()]
    spaced = np.log(numbers) if numbers.min() > 0 and numbers.max() > 20 * numbers.min() else numbers
    heights = [_scaled(value, spaced.min(), spaced.max()) for value in spaced]
    shown = sorted(set(numbers)) if len(set(numbers)) <= 5 else [numbers.min(), numbers.max()]
    return heights, [(heights[int(np.flatnonzero(numbers == value)[0])], f"{value:.3g}") for value in shown]


def _scaled(value: float, low: float, high: float) -> float:
    return float((value - low) / (high - low)) if high > low else 0.5
