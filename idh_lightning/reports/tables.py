"""Estimates with their intervals, tables of a report and what goes into their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idh_lightning.cli.tables import number
from idh_lightning.reports.vocabulary import p_value_words


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval and the count it rests on; what is unknown is None.

    Attributes:
        value: Point estimate, or None where there were too few patients for one.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
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
    def holds_chance(self) -> bool:
        """Whether its interval holds 0.5, the area that guessing reaches."""
        return self.low is not None and self.high is not None and self.low <= 0.5 <= self.high

    @property
    def interval(self) -> str:
        """Its interval alone: 0.80 to 0.97, or nothing."""
        return "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"


def as_estimate(node: object) -> Estimate | None:
    """Statistic of metrics.json, `{value, low, high, n, why}`, as an Estimate; None if it is none."""
    if not isinstance(node, Mapping) or "value" not in node:
        return None
    value, low, high = (None if node.get(key) is None else float(node[key]) for key in ("value", "low", "high"))
    n = node.get("n")
    return Estimate(value, low, high, None if n is None else int(n), node.get("why"))


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


def cell(estimate: Estimate | None, absent: str = "not computed in this run") -> str:
    """Estimate with its interval, or the words for one that the run does not have."""
    return absent if estimate is None else estimate.text


def p_value_cell(p: float | None) -> str:
    """P-value under a heading that says so, or nothing."""
    return "" if p is None else p_value_words(float(p)).removeprefix("p ").removeprefix("= ")


def count(estimate: Estimate | None) -> str:
    """Patients that an estimate rests on."""
    return "" if estimate is None or estimate.n is None else str(estimate.n)


def signed(estimate: Estimate) -> str:
    """Difference with its sign and interval."""
    if estimate.value is None:
        return estimate.text
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f" ({number(low, signed=True)} to {number(high, signed=True)})"
    return number(estimate.value, signed=True) + interval
