"""Several runs on the same test patients as one page, in the format of a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from idh_lightning.cli.tables import number
from idh_lightning.cohort.checks import counted
from idh_lightning.reports.caveats import caveats, trained_on
from idh_lightning.reports.cross_validation import each_run, spread_table
from idh_lightning.reports.page import badges, save_page
from idh_lightning.reports.pictures import inlined
from idh_lightning.reports.run_figures import save_figures
from idh_lightning.reports.run_folder import ReportedRun, read_run
from idh_lightning.reports.run_results import PAIRED_CAPTION, provenance_table
from idh_lightning.reports.tables import Estimate, ReportTable, as_estimate, cell, p_value_cell, signed
from idh_lightning.reports.vocabulary import METRICS

_SHOWN = ("auroc", "sensitivity", "specificity", "brier", "ece")


def write_comparison(run_folder: Path) -> Path:
    """Write report.html into the folder of a comparison, from the metrics.json in it, and return its path."""
    run = read_run(run_folder)
    drawn = save_figures(run)
    return save_page(
        run.folder / "report.html",
        "comparison.html.j2",
        title="IDH status from MRI: runs compared",
        place="/".join(run.folder.resolve().parts[-2:]),
        badges=badges(trained_on(run)),
        caveats=caveats(run),
        headline=_headline(run),
        tiles=[],
        figures=inlined(run.folder, drawn),
        runs=_runs(run),
        pairs=_pairs(run),
        spread=spread_table(run),
        patients=_patients(run),
        provenance=provenance_table(run),
    )


def _headline(run: ReportedRun) -> list[str]:
    areas = {name: found for name, found in _areas(run).items() if found.value is not None}
    ranked = sorted(areas, key=lambda name: -(areas[name].value or 0.0))
    if len(ranked) < 2:
        return []
    best, worst = ranked[0], ranked[-1]
    sentences = [
        f"On the same {run.node('runs', 'n')} test patients ({run.node('runs', 'n_mutant')} mutant), the ROC-AUC of "
        f"{len(areas)} runs goes from {areas[worst].text} ({worst}) to {areas[best].text} ({best})."
    ]
    pairs = run.node("runs", "pairs") or []
    apart = [pair for pair in pairs if pair.get("p_holm") is not None and pair["p_holm"] < 0.05]
    named = "; ".join(" and ".join(pair["names"]) for pair in apart[:5])
    told = "The two cannot be told apart" if len(pairs) == 1 else f"None of {len(pairs)} pairs can be told apart"
    told += " (paired DeLong test, no p below 0.05 after correction)"
    if apart:
        told = f"{len(apart)} of {counted(len(pairs), 'pair')} differ (p below 0.05 after correction): {named}"
    return [*sentences, f"{told}. The best of several runs looks better than it is: test patients must not choose it."]


def _areas(run: ReportedRun) -> dict[str, Estimate]:
    each = run.node("runs", "test")
    found = (
        {str(name): as_estimate(measured.get("auroc")) for name, measured in each.items()}
        if isinstance(each, Mapping)
        else {}
    )
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _runs(run: ReportedRun) -> ReportTable | None:
    each = run.node("runs", "test")
    if not isinstance(each, Mapping):
        return each_run(run)
    rows = []
    named = run.node("runs", "settings") or {}
    for name, measured in each.items():
        cells = [as_estimate(measured.get(key)) for key in _SHOWN]
        settings = [" ".join(named.get(name, []))] if any(named.values()) else []
        rows.append([str(name), *(cell(estimate, "") for estimate in cells), *settings])
    return ReportTable(
        f"Each run on the same {run.node('runs', 'n')} test patients, with 95% intervals",
        ["", *(METRICS[key].name for key in _SHOWN), *(["settings"] if any(named.values()) else [])],
        rows,
        (0, len(_SHOWN) + 1),
    )


def _pairs(run: ReportedRun) -> ReportTable | None:
    rows = []
    for pair in run.node("runs", "pairs") or []:
        difference = as_estimate(pair["difference"])
        areas = [number(float(pair[key])) for key in ("first", "second")]
        p_values = [p_value_cell(pair.get(key)) for key in ("p_value", "p_holm")]
        rows.append([" against ".join(pair["names"]), *areas, signed(difference) if difference else "", *p_values])
    head = ["", "first", "second", "difference (95% interval)", "p", "p, corrected"]
    return ReportTable(PAIRED_CAPTION, head, rows) if rows else None


def _patients(run: ReportedRun) -> str:
    found = run.node("runs", "spread", "patients") or {}
    if "probability_sd" not in found:
        return f"How much single patients move: not computed, {found.get('why', 'no result')}."
    return (
        f"From run to run the probability of a patient moves by {number(found['probability_sd'])} (mean SD), and "
        f"{found['called_differently']:.0%} of the patients are not called the same in all runs."
    )
