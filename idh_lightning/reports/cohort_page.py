"""The cohort report: one HTML file that says who is in, who is not and why, and what was found on the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from idh_lightning.cohort.checks import (
    by_check,
    by_message,
    cohort_flow,
    counted,
    exclusions_table,
    open_errors,
    place_of,
    refused_studies,
)
from idh_lightning.cohort.study import Cohort
from idh_lightning.files import write_text
from idh_lightning.reports.page import render

logger = logging.getLogger(__name__)


def write_cohort_report(cohort: Cohort, path: Path, table: pd.DataFrame | None = None) -> Path:
    """Write the faults, the exclusions and the flow of patients as one HTML file that opens offline.

    Without the table of a split the flow ends before it.
    """
    flow = cohort_flow(cohort, table)
    steps = flow.groupby("step")[["patients", "studies"]].sum()
    found = by_check(cohort.faults)
    page = render(
        "cohort.html.j2",
        title=", ".join([f"Cohort {cohort.name}", *dict.fromkeys(note.split(": ")[0] for note in cohort.notes)]),
        badges=[],
        cohort=cohort,
        read=steps.loc["read"],
        used=steps.loc["used"],
        errors=len(open_errors(cohort)),
        refused=refused_studies(cohort),
        faults={kind: [(place_of(g, examples=len(g)), g[0]) for g in by_message(f)] for kind, f in found.items()},
        counts={kind: len(faults) for kind, faults in found.items()},
        exclusions=exclusions_table(cohort).to_dict("records"),
        flow=flow_boxes(flow),
    )
    write_text(path, page)
    logger.info("Cohort report: %s", path)
    return path


def flow_boxes(flow: pd.DataFrame) -> dict[str, list[tuple[str, ...]]]:
    """Boxes of the flow diagram, step -> lines of each box, its heading first: read, excluded, refused, used, split."""
    parts = {str(step): part for step, part in flow.groupby("step", sort=False)}
    boxes: dict[str, list[tuple[str, ...]]] = {"read": [("Read", _counts(parts["read"]))]}
    for step in ("excluded", "refused"):
        if step in parts:
            reasons = (f"{group}: {_counts(part)}" for group, part in parts[step].groupby("group"))
            boxes[step] = [(f"{step.capitalize()}: {_counts(parts[step])}", *reasons)]
    boxes["used"] = [("Without an error" if "refused" in parts else "Used", *_labels(parts["used"]))]
    if "split" in parts:
        boxes["split"] = [
            (str(split).capitalize(), *_labels(part)) for split, part in parts["split"].groupby("group", sort=False)
        ]
    return boxes


def _labels(part: pd.DataFrame) -> tuple[str, ...]:
    """Lines of a box that counts by label."""
    each = (f"{label}: {_counts(rows)}" for label, rows in part.groupby("label", sort=False))
    return (_counts(part), *each)


def _counts(part: pd.DataFrame) -> str:
    patients, studies = int(part["patients"].sum()), int(part["studies"].sum())
    words = counted(patients, "patient")
    return words if patients == studies else f"{words}, {counted(studies, 'study', 'studies')}"
