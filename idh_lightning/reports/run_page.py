"""A run folder to report.html: one file that opens offline and says how good the model is, for whom, and how sure.

Several runs on the same test patients make a page of the same format.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.cli.tables import number
from idh_lightning.cohort import SPLITS
from idh_lightning.cohort.checks import counted
from idh_lightning.reports.cases import gallery_of, telling_cases, turning_case
from idh_lightning.reports.page import badges, inlined, save_page
from idh_lightning.reports.run_figures import save_figures
from idh_lightning.reports.run_folder import ReportedRun, caveats, read_run
from idh_lightning.reports.run_results import (
    PAIRED_CAPTION,
    each_run,
    fold_tables,
    gap_in_words,
    provenance_table,
    result_tables,
    spread_table,
)
from idh_lightning.reports.tables import ReportTable, as_estimate, cell, p_value_cell, signed
from idh_lightning.reports.vocabulary import METRICS, in_words


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder, from what else is in it, and return its path.

    The figures are drawn anew. What the run did not compute is said to be so.

    Raises:
        EvaluationError: If there is no such folder or a file in it is damaged.
    """
    run = read_run(run_folder)
    drawn = save_figures(run)
    gallery = gallery_of(run)
    name = run.provenance.get("cohort")
    return save_run_page(
        run,
        "report.html",
        "report.html.j2",
        drawn,
        title=f"{run.target.title} from MRI: {name}" if name else f"{run.target.title} from MRI",
        tiles=[
            *((METRICS[key].name, run.estimate("test", key)) for key in ("auroc", "sensitivity", "specificity", "ece")),
            ("age alone, ROC-AUC", run.estimate("baselines", "age", "test", "auroc")),
        ],
        whom="patients",
        folds=fold_tables(run),
        flow=_flow(run),
        compared=(run.folder / "explanations.html").is_file(),
        telling=telling_cases(run, gallery),
        turning=turning_case(run),
        gallery=gallery,
        plain=_plain,
        gap=gap_in_words,
        as_estimate=as_estimate,
        settings=partial(_settings, run),
        splits=SPLITS,
        baseline=BASELINE,
        **result_tables(run),
    )


def save_run_page(run: ReportedRun, file: str, template: str, drawn: Mapping[str, str], **content: Any) -> Path:
    """Write a page into a run folder, with what stands at the top of all of them, and return its path."""
    return save_page(
        run.folder / file,
        template,
        run=run,
        place="/".join(run.folder.resolve().parts[-2:]),
        badges=badges(run.trained_on),
        caveats=caveats(run),
        figures=inlined(run.folder, drawn),
        **content,
    )


def _flow(run: ReportedRun) -> dict[str, list[tuple[str, ...]]] | None:
    """Boxes of the flow of patients, step -> lines of each box, as in the cohort report."""
    if not run.partitions:
        return None
    reasons = run.exclusion_reasons
    words = run.target
    studies, patients, mutant = (sum(counts) for counts in zip(*run.partitions.values(), strict=True))
    lost = sum(reasons.values())
    boxes: dict[str, list[tuple[str, ...]]] = {"read": [(f"{counted(studies + lost, 'study', 'studies')} found",)]}
    if reasons:
        boxes["excluded"] = [(f"{lost} left out", *(f"{n} × {reason}" for reason, n in reasons.items()))]
    used = f"{counted(studies, 'study', 'studies')} of {counted(patients, 'patient')}"
    boxes["used"] = [(used, f"{mutant} {words.positive} ({mutant / patients:.0%})")]
    boxes["split"] = [
        (
            name,
            f"{counted(people, 'patient')}, {counted(n, 'study', 'studies')}",
            f"{m} {words.positive}, {people - m} {words.negative}",
        )
        for name, (n, people, m) in run.partitions.items()
    ]
    return boxes


def _settings(run: ReportedRun, *path: str) -> str:
    """Section of the recipe in a sentence, for the checklist; nothing where there is none."""
    section = run.setting(*path)
    return f"{_plain(section)}." if isinstance(section, Mapping) else ""


def _plain(node: Any) -> str:
    """Settings as words: the name of the class first, then its values."""
    if isinstance(node, Mapping):
        values = [f"{in_words(str(key))} {_plain(one)}" for key, one in node.items() if not str(key).startswith("_")]
        name = [str(node["_target_"]).split(".")[-1]] if "_target_" in node else []
        return ": ".join([*name, *([", ".join(values)] if values else [])])
    if isinstance(node, list | tuple):
        return " ".join(map(_plain, node)) or "none"
    return {"None": "none", "True": "yes", "False": "no"}.get(str(node), str(node))


_SHOWN = ("auroc", "sensitivity", "specificity", "brier", "ece")


def write_comparison(run_folder: Path) -> Path:
    """Write report.html into the folder of a comparison, from the metrics.json in it, and return its path."""
    run = read_run(run_folder)
    return save_run_page(
        run,
        "report.html",
        "comparison.html.j2",
        save_figures(run),
        title=f"{run.target.title} from MRI: runs compared",
        headline=_headline(run),
        tiles=[],
        runs=_runs(run),
        pairs=_pairs(run),
        spread=spread_table(run),
        provenance=provenance_table(run),
    )


def _headline(run: ReportedRun) -> list[str]:
    each = {name: run.estimate("runs", "test", name, "auroc") for name in run.node("runs", "test") or {}}
    areas = {name: found for name, found in each.items() if found is not None and found.value is not None}
    ranked = sorted(areas, key=lambda name: -(areas[name].value or 0.0))
    if len(ranked) < 2:
        return []
    best, worst = ranked[0], ranked[-1]
    patients = f"{run.node('runs', 'n')} test patients ({run.node('runs', 'n_mutant')} {run.target.positive})"
    sentences = [
        f"On the same {patients}, the ROC-AUC of {len(areas)} runs goes from {areas[worst].text} ({worst}) to "
        f"{areas[best].text} ({best})."
    ]
    pairs = run.node("runs", "pairs") or []
    apart = [pair for pair in pairs if pair.get("p_holm") is not None and pair["p_holm"] < 0.05]
    named = "; ".join(" and ".join(pair["names"]) for pair in apart[:5])
    told = "The two cannot be told apart" if len(pairs) == 1 else f"None of {len(pairs)} pairs can be told apart"
    told += " (paired DeLong test, no p below 0.05 after correction)"
    if apart:
        told = f"{len(apart)} of {counted(len(pairs), 'pair')} differ (p below 0.05 after correction): {named}"
    return [*sentences, f"{told}. The best of several runs looks better than it is: test patients must not choose it."]


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
