"""Scores of maps as tables: every method beside its reference map and the baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.cli.tables import number
from idh_lightning.reports.tables import Estimate, ReportTable
from idh_lightning.reports.vocabulary import LOCALISATION, REFERENCE_MAP


def localisation_tables(summary: pd.DataFrame) -> list[ReportTable]:
    """All methods and baselines with all scores, then the methods where the call is right and where it is wrong.

    Args:
        summary: Of `explain.summary.summarised`.
    """
    found = {(str(row.method), str(row.group), str(row.score)): row for row in summary.itertuples(index=False)}
    methods = list(dict.fromkeys(summary["method"].astype(str)))
    scores = {score: metric.short for score, metric in LOCALISATION.items() if score in set(summary["score"])}
    if not scores:
        return []
    referenced = any(f"{score}_reference" in set(summary["score"]) for score in scores)
    n = int(summary["n"].max())
    caption = f"Do the maps lie on the tumour? Means over {n} studies (95% interval)"
    if referenced:
        caption += f"; in brackets the {REFERENCE_MAP}: a map of the same cells that holds the share of tumour in each"
    rows = [[method, *_cells(found, method, "all", scores)] for method in methods]
    tables = [ReportTable(caption, ["", *scores.values()], rows)]
    split = [
        [f"{method}, call {group}, n = {n}", *_cells(found, method, group, scores)]
        for method in methods
        if not method.startswith(BASELINE)
        for group in ("right", "wrong")
        if (n := max((int(str(found[method, group, s].n)) for s in scores if (method, group, s) in found), default=0))
    ]
    if split:
        tables.append(
            ReportTable("The same where the network is right and where it is wrong", ["", *scores.values()], split)
        )
    return tables


def _cells(found: Mapping[tuple[str, str, str], Any], method: str, group: str, scores: Iterable[str]) -> Iterable[str]:
    for score in scores:
        row, best = found.get((method, group, score)), found.get((method, group, f"{score}_reference"))
        if row is None:
            yield ""
            continue
        low, high = (None if pd.isna(end) else float(end) for end in (row.low, row.high))
        text = Estimate(float(row.value), low, high).text
        yield text if best is None else f"{text} [{number(best.value)}]"
