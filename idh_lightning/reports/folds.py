"""The tables of a report that set several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from idh_lightning.reports.cells import Table
from idh_lightning.reports.run import Run, in_words


def fold_tables(run: Run) -> list[Table]:
    """Return how the runs of a pooled cross-validation did one by one, and how far they spread."""
    if run.node("runs", "relation") != "folds":
        return []
    return [table for table in (each_run(run), spread_table(run)) if table is not None]


def each_run(run: Run) -> Table | None:
    """Return the scores of each of several runs, with the settings that tell them apart."""
    each = run.node("runs", "spread", "runs")
    if not isinstance(each, Mapping):
        return None
    rows = []
    for name, found in each.items():
        settings = " ".join((run.node("runs", "settings") or {}).get(name, []))
        rows.append([str(name), *(f"{float(value):.2f}" for value in found.values()), settings])
    scores = [in_words(str(score)) for score in next(iter(each.values()))]
    scores = ["ROC-AUC" if score.startswith("ROC-AUC") else score for score in scores]
    return Table("Each run on its own test patients", ["", *scores, "settings"], rows, (0, len(scores) + 1))


def spread_table(run: Run) -> Table | None:
    """Return the mean, spread and range of each score over the runs."""
    summary = run.node("runs", "spread", "summary")
    if not isinstance(summary, Mapping):
        return None
    rows = [
        [
            "ROC-AUC" if name == "auroc" else in_words(str(name)),
            f"{found['mean']:.2f}",
            "" if found["sd"] is None else f"{found['sd']:.3f}",
            f"{found['minimum']:.2f} to {found['maximum']:.2f}",
            str(found["n"]),
        ]
        for name, found in summary.items()
    ]
    return Table("Spread over the runs", ["", "mean", "SD", "range", "runs"], rows)
