"""Look of the figures: colours of Okabe and Ito, which stay apart under the common forms of colour blindness.

Shape or line style always carries the same difference.

Source: Okabe & Ito 2008, Color Universal Design.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, MUTED, RULE = "#1a1a1a", "#5f6368", "#c9ccd1"
WILDTYPE_COLOUR, MUTANT_COLOUR = BLUE, VERMILLION

UNIT_SQUARE: dict[str, Any] = {"xlim": (-0.02, 1.02), "ylim": (-0.02, 1.02), "aspect": "equal"}
"""Both axes from 0 to 1 at one scale."""

NARROW = 4.6
"""Inches: a figure of this width can be read on a telephone."""


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Figure of a size in inches, and the axes that fill it."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def dress(
    axes: Axes, title: str | None = None, note: str | None = None, *, grid: bool | str = True, **settings: Any
) -> None:
    """Title of axes, a quieter note under it, light rules (of "x" or "y" alone), and settings such as `xlabel`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=INK, labelsize=9, color=RULE)
    if grid:
        which: Any = "both" if grid is True else grid
        axes.grid(axis=which, color=RULE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
    axes.set(**settings)
    if note:
        axes.set_title(note, loc="left", fontsize=9, color=MUTED, linespacing=1.3, parse_math=False)
    if title:
        lift = 10 + 13 * (note.count("\n") + 1) if note else 6
        bold: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "color": INK, "parse_math": False}
        axes.annotate(title, (0, 1), (0, lift), xycoords="axes fraction", textcoords="offset points", **bold)


def shorten(text: str, length: int) -> str:
    """Text of at most so many characters, with an ellipsis where it was longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
