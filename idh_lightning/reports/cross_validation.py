"""The tables of a report that set several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from idh_lightning.cli.tables import number
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.tables import ReportTable
from idh_lightning.reports.vocabulary import METRICS, in_words


def fold_tables(run: ReportedRun) -> list[ReportTable]:
    """Scores of the runs of a pooled cross-validation one by one, and their spread."""
    if run.node("runs", "relation") != "folds":
        return []
    return [table for table in (each_run(run), spread_table(run)) if table is not None]


def each_run(run: ReportedRun) -> ReportTable | None:
    """Scores of each of several runs, with the settings that tell them apart."""
    each = run.node("runs", "spread", "runs")
    if not isinstance(each, Mapping):
        return None
    rows = []
    for name, found in each.items():
        settings = " ".join((run.node("runs", "settings") or {}).get(name, []))
        rows.append([str(name), *(number(float(value)) for value in found.values()), settings])
    scores = [in_words(str(score), METRICS) for score in next(iter(each.values()))]
    return ReportTable("Each run on its own test patients", ["", *scores, "settings"], rows, (0, len(scores) + 1))


def spread_table(run: ReportedRun) -> ReportTable | None:
    """Mean, spread and range of each score over the runs."""
    summary = run.node("runs", "spread", "summary")
    if not isinstance(summary, Mapping):
        return None
    rows = [
        [
            in_words(str(name), METRICS),
            number(found["mean"]),
            "" if found["sd"] is None else number(found["sd"], 3),
            f"{number(found['minimum'])} to {number(found['maximum'])}",
            str(found["n"]),
        ]
        for name, found in summary.items()
    ]
    return ReportTable("Spread over the runs", ["", "mean", "SD", "range", "runs"], rows)
