"""Tables of a report and what goes into their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idh_lightning.cli.tables import number
from idh_lightning.reports.figures import Estimate


@dataclass(frozen=True)
class ReportTable:
    """A table of a report; cells are text and escaped by the template.

    Attributes:
        caption: What it shows.
        head: Column headings.
        rows: Cells, the first of each row being its heading.
        wide: Which columns hold words, not numbers, counted from 0.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: Sequence[int] = (0,)


def cell(estimate: Estimate | None) -> str:
    """Return an estimate with its interval, or that the run has none."""
    return "not computed in this run" if estimate is None else estimate.text


def count(estimate: Estimate | None) -> str:
    """Return the patients that an estimate rests on."""
    return "" if estimate is None or estimate.n is None else str(estimate.n)


def signed(estimate: Estimate) -> str:
    """Return a difference with its sign and interval."""
    if estimate.value is None:
        return estimate.text
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f" ({number(low, signed=True)} to {number(high, signed=True)})"
    return number(estimate.value, signed=True) + interval
