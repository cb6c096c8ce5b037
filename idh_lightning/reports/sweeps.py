"""Figures of several runs: what a search found, and how much one number matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from idh_lightning.reports.style import BLUE, MUTED, dress, new_figure


def parallel_coordinates(settings: Mapping[str, Sequence[Any]], values: ArrayLike) -> Figure:
    """One line per run through all of its settings; the better its value, the darker.

    Args:
        settings: Name -> one value per run; numbers over more than a factor of 20 are spaced by their logarithm.
        values: Validation ROC-AUC per run; NaN where there is none, which is not drawn.
    """
    scores = np.asarray(values, dtype=float)
    drawn = np.flatnonzero(np.isfinite(scores))
    figure = new_figure(2.4 + 1.9 * (len(settings) + 1), 4.2)
    axes = figure.add_subplot()
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
    axes.set_ylim(-0.05, 1.15)
    axes.set_xlim(-0.2, last + 0.5)
    axes.axis("off")
    figure.suptitle(f"{len(drawn)} runs; the best are the darkest", x=0.02, ha="left", fontsize=12, fontweight="bold")
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Share of the differences between runs that each setting explains, the most first."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = new_figure(6.4, 1.4 + 0.4 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [shares[name] for name in names], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), names)
    for position, name in enumerate(names):
        axes.text(shares[name] + 0.01, position, f"{shares[name]:.2f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share of what a random forest explains of the validation ROC-AUC")
    dress(axes, "Which settings mattered")
    axes.grid(axis="y", visible=False)
    return figure


def curve(settings: ArrayLike, values: ArrayLike, low: ArrayLike, high: ArrayLike, *, name: str, split: str) -> Figure:
    """ROC-AUC against a number that was varied, each run with its 95% interval; the line joins the means.

    Args:
        settings: The number per run.
        values: ROC-AUC per run; NaN where there is none, which is not drawn.
        low: Lower ends of the intervals.
        high: Upper ends.
        name: What was varied.
        split: Whose ROC-AUC it is.
    """
    table = np.array([np.asarray(column, dtype=float) for column in (settings, values, low, high)])
    x, y, lower, upper = table[:, np.isfinite(table[1])]
    figure = new_figure(6.0, 4.2)
    axes = figure.add_subplot()
    counts = np.unique(x)
    axes.plot(counts, [y[x == count].mean() for count in counts], color=BLUE, linewidth=1.8)
    axes.errorbar(x, y, (y - lower, upper - y), fmt="o", color=BLUE, capsize=3, markersize=5, linewidth=1.2)
    axes.axhline(0.5, color=MUTED, linestyle="--", linewidth=1)
    if (counts > 0).all():
        axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(0.45, float(np.nanmin(lower)) - 0.02) if len(y) else 0.45, 1.01)
    axes.set_xlabel(name)
    axes.set_ylabel(f"{split} ROC-AUC (95% interval)")
    dress(axes, f"ROC-AUC against {name}", "One point per run, the line through their means; dashed: chance")
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
