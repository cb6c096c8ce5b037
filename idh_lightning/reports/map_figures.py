"""Figures of the maps of all methods: their scores, their faithfulness, and what randomising the network does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from idh_lightning.reports import style
from idh_lightning.reports.style import dress, new_axes, new_figure, shorten

METHOD_LOOKS = (
    (style.BLUE, "-"), (style.VERMILLION, "--"), (style.GREEN, "-."), (style.PURPLE, ":"),
    (style.ORANGE, "-"), (style.SKY, "--"), (style.INK, "-."), (style.MUTED, "-"),
)  # fmt: skip
"""Colour and line style of methods of explanation, in their order; they begin again where there are more."""


def score_distributions(
    scores: pd.DataFrame, columns: Mapping[str, str], *, chosen: str, muted: Sequence[str] = (), narrow: bool = False
) -> Figure:
    """Each score of each method as points, one per study, with the mean and the middle half.

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
    figure = new_figure(style.NARROW if narrow else 11.0, down * (0.95 + 0.31 * len(methods)))
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
            colour = style.MUTED if method in muted else style.VERMILLION if method == chosen else style.BLUE
            heights = row + rng.uniform(-0.26, 0.26, values.size)
            axis.plot(values, heights, ".", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            low, high = np.percentile(values, (25, 75))
            axis.plot((low, high), (row, row), color=colour, linewidth=2.2)
            axis.plot(values.mean(), row, "D", color=colour, markersize=6, markeredgecolor="white")
        dress(axis, title, grid="x", xlim=(-0.03, 1.03), ylim=(len(methods) - 0.4, -0.6))
        axis.set_yticks(range(len(methods)), [shorten(method, 34) for method in methods])
        axis.tick_params(axis="y", length=0)
    return figure


def faithfulness_curves(
    fractions: ArrayLike, curves: Mapping[str, Mapping[str, Sequence[float]]], *, narrow: bool = False
) -> Figure:
    """Probability of the predicted class while voxels go and come in the order of each method's map.

    Args:
        fractions: Share of the brain, 0 to 1.
        curves: Method -> deletion, insertion, random_deletion, random_insertion: mean over studies at each fraction.
        narrow: For a telephone.
    """
    figure = new_figure(style.NARROW, 8.4) if narrow else new_figure(10.4, 4.2)
    titles = {
        "deletion": ("Deletion", "hottest voxels replaced first: lower is better"),
        "insertion": ("Insertion", "hottest voxels brought back first: higher is better"),
    }
    for axes, (name, (title, note)) in zip(
        figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=True), titles.items(), strict=True
    ):
        for place, (method, theirs) in enumerate(curves.items()):
            colour, dashes = METHOD_LOOKS[place % len(METHOD_LOOKS)]
            axes.plot(fractions, theirs[name], color=colour, linestyle=dashes, linewidth=1.8, label=method)
        for theirs in list(curves.values())[:1]:
            axes.plot(
                fractions, theirs[f"random_{name}"], color=style.MUTED, linewidth=1.2, linestyle=":", label="at random"
            )
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        dress(axes, title, note, xlabel="share of the brain", xlim=(0, 1))
    figure.axes[0].set_ylabel("probability of the predicted class")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left" if narrow else "outside right upper", frameon=False, fontsize=9
    )
    return figure


def cascade_curves(agreement: pd.DataFrame, *, bound: float, narrow: bool = False) -> Figure:
    """Rank correlation of maps with those of the trained network while more and more of it is randomised.

    Args:
        agreement: `method`, `module` (in the order in which they are randomised) and `spearman` (mean over studies).
        bound: Below which a map must be in the end.
        narrow: For a telephone.
    """
    figure, axes = new_axes(*((style.NARROW, 5.2) if narrow else (10.4, 3.9)))
    modules = list(dict.fromkeys(agreement["module"]))
    for place, (method, theirs) in enumerate(agreement.groupby("method", sort=False)):
        colour, dashes = METHOD_LOOKS[place % len(METHOD_LOOKS)]
        values = [1.0, *theirs.set_index("module")["spearman"].reindex(modules)]
        axes.plot(range(len(values)), values, color=colour, linestyle=dashes, linewidth=1.8, label=str(method))
    axes.axhline(bound, color=style.MUTED, linewidth=1, linestyle=":")
    axes.annotate("must end below", (0.01, bound), xycoords=("axes fraction", "data"), va="bottom", color=style.MUTED)
    axes.axhline(0, color=style.RULE, linewidth=1)
    axes.set_xticks(range(len(modules) + 1), ["as trained", *modules], rotation=35, ha="right")
    note = "each module is randomised on top of those to its left"
    dress(axes, "Maps of a network that forgets", note, ylabel="rank correlation with the map")
    figure.legend(loc="outside lower left" if narrow else "outside right upper", frameon=False, fontsize=9)
    return figure
