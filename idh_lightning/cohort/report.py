"""The cohort report: one HTML file that says who is in, who is not and why, and what was found on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from idh_lightning.cohort.checks import by_check, by_message, counted, exclusions_table, open_errors, place_of, refused
from idh_lightning.cohort.flow import cohort_flow
from idh_lightning.cohort.study import Cohort
from idh_lightning.files import write_text

_log = logging.getLogger(__name__)

_WIDTH, _LINE, _GAP = 265.0, 18.0, 36.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of the flow diagram: where it lies, in pixels, and what it says.

    Attributes:
        x: Of its left edge.
        y: Of its upper edge.
        width: In pixels.
        height: In pixels.
        kind: "read", "excluded", "used" or "split"; its colour.
        lines: Text, one entry per line; the first is the heading.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str
    lines: tuple[str, ...]


def write_cohort_report(cohort: Cohort, path: Path, table: pd.DataFrame | None = None) -> Path:
    """Write the faults, the exclusions and the flow of patients as one HTML file that opens offline.

    Args:
        cohort: As `settle` returns it, or as a reader does.
        path: Written atomically; its folder is made if need be.
        table: As a split returns it; without it the flow ends before the split.

    Returns:
        The path.
    """
    flow = cohort_flow(cohort, table)
    without = refused(cohort)
    steps = flow.groupby("step")[["patients", "studies"]].sum()
    boxes = flow_boxes(flow)
    found = by_check(cohort.faults)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        cohort=cohort,
        read=steps.loc["read"],
        used=steps.loc["used"],
        errors=len(open_errors(cohort)),
        refused=without,
        faults={kind: [(place_of(g, examples=len(g)), g[0]) for g in by_message(f)] for kind, f in found.items()},
        counts={kind: len(faults) for kind, faults in found.items()},
        exclusions=exclusions_table(cohort).to_dict("records"),
        boxes=boxes,
        width=max(box.x + box.width for box in boxes),
        height=max(box.y + box.height for box in boxes),
        line=_LINE,
    )
    write_text(path, page)
    _log.info("Cohort report: %s", path)
    return path


def flow_boxes(flow: pd.DataFrame) -> list[Box]:
    """Return the boxes of the flow diagram: read, to its right the excluded and refused, then used, then splits.

    Args:
        flow: As `cohort_flow` returns it.
    """
    parts = {str(step): part for step, part in flow.groupby("step", sort=False)}
    middle = _WIDTH + _GAP
    boxes = [_box(middle, 0, "read", ("Read", _counts(parts["read"])))]
    for step in ("excluded", "refused"):
        if step in parts:
            reasons = (f"{group}: {_counts(part)}" for group, part in parts[step].groupby("group"))
            lines = (f"{step.capitalize()}: {_counts(parts[step])}", *reasons)
            boxes.append(_box(middle + _WIDTH / 2 + _GAP, _below(boxes), "excluded", lines, width=1.5 * _WIDTH))
    left = "Without an error" if "refused" in parts else "Used"
    boxes.append(_box(middle, _below(boxes), "used", (left, *_labels(parts["used"]))))
    if "split" in parts:
        row = _below(boxes)
        boxes += [
            _box(column * middle, row, "split", (str(split).capitalize(), *_labels(part)))
            for column, (split, part) in enumerate(parts["split"].groupby("group", sort=False))
        ]
    return boxes


def _box(x: float, y: float, kind: str, lines: tuple[str, ...], width: float = _WIDTH) -> Box:
    return Box(x=x, y=y, width=width, height=_LINE * len(lines) + 14, kind=kind, lines=lines)


def _below(boxes: list[Box]) -> float:
    return boxes[-1].y + boxes[-1].height + _GAP


def _labels(part: pd.DataFrame) -> tuple[str, ...]:
    """Return the lines of a box that counts by label."""
    each = (f"{label}: {_counts(rows)}" for label, rows in part.groupby("label", sort=False))
    return (_counts(part), *each)


def _counts(part: pd.DataFrame) -> str:
    patients, studies = int(part["patients"].sum()), int(part["studies"].sum())
    words = counted(patients, "patient")
    return words if patients == studies else f"{words}, {counted(studies, 'study', 'studies')}"
