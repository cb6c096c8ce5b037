"""Figures that follow from the files of a run folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idh_lightning.evaluation.measurement import group_names
from idh_lightning.files import atomic_write
from idh_lightning.reports import course_figures, figures
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.tables import Estimate, as_estimate
from idh_lightning.reports.vocabulary import BASELINES, COVARIATES, OVERLAPPING, SUBGROUPS, group_in_words, in_words

FEWEST_CALLED = 5
"""The decision curve ends where fewer patients are called positive: there each one of them makes it jump."""

_Drawn = tuple[Figure | Callable[..., Figure], str] | None
_Rows = list[tuple[str, Estimate]]


def save_figures(run: ReportedRun) -> dict[str, str]:
    """Draw every figure that the contract files of a run allow, into its folder `figures`.

    Returns:
        File name -> what the figure shows, in words and numbers.
    """
    shown: dict[str, str] = {}
    for name, draw in _DRAWINGS.items():
        drawn = draw(run)
        path = run.folder / "figures" / f"{name}.png"
        if drawn is None:
            # What an earlier evaluation drew must not stand beside the numbers of this one.
            for old in (path, path.parent / "narrow" / path.name):
                old.unlink(missing_ok=True)
            continue
        shown |= save_figure(*drawn, path)
    return shown


def save_figure(figure: Figure | Callable[..., Figure], words: str, path: Path) -> dict[str, str]:
    """Write a figure, and one for narrow screens where it is given as what draws both; return file name -> words."""
    if isinstance(figure, Figure):
        drawn = {path.name: figure}
    else:
        drawn = {path.name: figure(), f"narrow/{path.name}": figure(narrow=True)}
    for name, one in drawn.items():
        with atomic_write(path.parent / name) as temporary:
            one.savefig(temporary, dpi=150)
    return dict.fromkeys(drawn, words)


def _cohort_flow(run: ReportedRun) -> _Drawn:
    if not run.partitions:
        return None
    counts = (
        f"{name} {n} studies of {people} patients, {m} {run.target.positive}"
        for name, (n, people, m) in run.partitions.items()
    )
    words = f"Cohort flow: {sum(run.exclusion_reasons.values())} studies left out; {'; '.join(counts)}."
    return course_figures.draw_cohort_flow(run.exclusion_reasons, run.partitions, run.target), words


def _learning_curves(run: ReportedRun) -> _Drawn:
    if not {"epoch", "step"} <= set(run.log.columns) or not any("/" in str(name) for name in run.log.columns):
        return None
    monitor = run.config.get("monitor")
    monitor = monitor if isinstance(monitor, Mapping) else {}
    metric, mode = str(monitor.get("metric", "val/loss")), str(monitor.get("mode", "max"))
    epochs = int(run.log["epoch"].max()) + 1
    words = f"Learning curves over {epochs} epochs: loss, accuracy and ROC-AUC of studies, learning rate."
    return partial(course_figures.learning_curves, run.log, monitor=metric, mode=mode), words


def _confusion_matrix(run: ReportedRun) -> _Drawn:
    cells = run.node("confusion", "test")
    if not isinstance(cells, Mapping):
        return None
    tn, fp, fn, tp = (int(cells[cell]) for cell in ("tn", "fp", "fn", "tp"))
    negative, positive = run.target.classes
    words = f"{tp} of {tp + fn} {positive} and {tn} of {tn + fp} {negative} test patients are called right"
    figure = figures.confusion_matrix(
        [[tn, fp], [fn, tp]], threshold=run.number("operating_point", "threshold"), target=run.target
    )
    return figure, f"Confusion matrix: {words}."


def _curve(run: ReportedRun) -> dict[str, Any] | None:
    """Arguments that the curves over test patients share, or None where only one class is there."""
    people, threshold = run.patients("test"), run.number("operating_point", "threshold")
    if people["label"].nunique() < 2:
        return None
    return {
        "labels": people["label"],
        "probabilities": people["probability"],
        "threshold": threshold,
        "target": run.target,
    }


def _roc(run: ReportedRun) -> _Drawn:
    known = _curve(run)
    if known is None:
        return None
    area = "" if run.auroc is None else f", ROC-AUC {run.auroc.text}"
    figure = figures.roc(**known, auroc=run.auroc)
    return figure, f"ROC curve of {len(known['labels'])} test patients{area}."


def _precision_recall(run: ReportedRun) -> _Drawn:
    known, precision = _curve(run), run.estimate("test", "average_precision")
    if known is None:
        return None
    figure = figures.precision_recall(**known, average_precision=precision)
    words = "" if precision is None else f", average precision {precision.text}"
    return figure, f"Precision-recall curve{words}; the prevalence is {known['labels'].mean():.2f}."


def _reliability(run: ReportedRun) -> _Drawn:
    curves, people = run.node("curves", "test", "reliability"), run.patients("test")
    if not isinstance(curves, Mapping) or "calibrated" not in curves or people.empty:
        return None
    ece = run.estimate("test", "ece")
    figure = figures.reliability(
        curves["calibrated"],
        people["label"],
        people["probability"],
        raw=None if run.node("calibration", "method") in (None, "none") else curves.get("raw"),
        ece=ece,
        target=run.target,
    )
    words = "" if ece is None else f" Calibration error {ece.text}."
    share = f"Observed share of {run.target.positive} patients"
    return figure, f"{share} against predicted probability in groups of equal size.{words}"


def _decision_curve(run: ReportedRun) -> _Drawn:
    curves, people = run.node("decision_curves"), run.patients("test")
    if not isinstance(curves, Mapping) or "thresholds" not in curves:
        return None
    benefit = {str(name): values for name, values in curves.items() if isinstance(values, list)}
    figure = figures.decision_curve(
        pd.DataFrame(benefit).rename(columns={"thresholds": "threshold"}),
        band=curves.get("band"),
        prevalence=people["label"].mean() if len(people) else None,
        last=people["probability"].nlargest(FEWEST_CALLED).min() if len(people) else None,
        target=run.target,
    )
    return (
        figure,
        "Net benefit of acting on the model, on age, on everyone and on no one, over threshold probabilities, up to "
        f"the one from which {FEWEST_CALLED} patients are called {run.target.positive}.",
    )


def _subgroups(run: ReportedRun) -> _Drawn:
    rows: _Rows = []
    for name, section in (run.node("subgroups") or {}).items():
        groups = section.get("groups", {})
        if len(groups) < 2:
            continue
        rows.append((f"# {in_words(name, SUBGROUPS)}", Estimate(None)))
        for group, found in groups.items():
            estimate = as_estimate(found.get("auroc"))
            if estimate is not None:
                # The patients of the group, also where too few of a class leave no area.
                rows.append((group_in_words(group), replace(estimate, n=found.get("n", estimate.n))))
        within = as_estimate(section.get("within_auroc"))
        if within is not None and within.value is not None:
            rows.append((f"within {in_words(name, SUBGROUPS)}", within))
    if not rows:
        return None
    whole = run.auroc
    reference = ("all test patients", whole.value) if whole is not None and whole.value is not None else None
    words = "; ".join(f"{name}: {estimate.text}" for name, estimate in rows if not name.startswith("# "))
    draw = partial(figures.forest, rows, title="ROC-AUC in groups of test patients", reference=reference)
    shared = [in_words(name, SUBGROUPS) for name in run.node("subgroups") or {} if run.groups_overlap(name)]
    return draw, f"Forest plot. {words}." + (f" Of {' and '.join(shared)}, {OVERLAPPING}." if shared else "")


def _sites(run: ReportedRun) -> _Drawn:
    column, people = run.node("subgroups", "site", "column"), run.patients("test")
    if column not in run.cohort.columns or people.empty:
        return None
    homes = run.cohort[run.cohort["split"] == "test"].drop_duplicates("patient_id").set_index("patient_id")[column]
    sites = group_names(people.index.to_series().map(homes))
    if sites.nunique() < 2:
        return None
    groups = run.node("subgroups", "site", "groups") or {}
    areas = {name: area for name, found in groups.items() if (area := as_estimate(found.get("auroc"))) is not None}
    threshold = run.number("operating_point", "threshold")  # none where each fold has its own
    scores = people["probability"], people["label"], sites, areas
    drawn = partial(figures.scores_by_group, *scores, threshold=threshold, target=run.target)
    negative, positive = run.target.classes
    middles = (
        f"{site}: {np.median(rows[rows['label'] == 0]['probability']):.2f} of {negative} patients, "
        f"{np.median(rows[rows['label'] == 1]['probability']):.2f} of {positive} ones"
        for site, rows in people.groupby(sites)
        if rows["label"].nunique() == 2
    )
    return drawn, f"{run.target.chance} of each test patient by site; medians: " + "; ".join(middles) + "."


def _known(rows: Iterable[tuple[str, object]]) -> _Rows:
    """Rows of a forest plot, of (name, statistic of metrics.json) those that have been computed."""
    return [(name, estimate) for name, node in rows if (estimate := as_estimate(node)) is not None]


def _shift(run: ReportedRun) -> _Drawn:
    section = run.node("external", "shift") or {}
    rows = _known(
        (in_words(str(name), COVARIATES, run.target), found.get("difference")) for name, found in section.items()
    )
    if not rows:
        return None
    ends = [x for _, e in rows for x in (e.low, e.high, e.value) if x is not None] or [0.0]
    reach = max(1.0, *(abs(x) for x in ends)) * 1.05
    figure = partial(
        figures.forest,
        rows,
        title="How these patients differ from the training patients",
        reference=("no difference", 0.0),
        xlabel="standardised difference",
        xlim=(-reach, reach),
    )
    return figure, "Standardised differences: " + "; ".join(f"{name}: {e.text}" for name, e in rows) + "."


def _areas(rows: _Rows, title: str) -> _Drawn:
    """Forest plot of ROC-AUCs beside that of guessing."""
    words = "; ".join(f"{name}: ROC-AUC {estimate.text}" for name, estimate in rows)
    return partial(figures.forest, rows, title=title, reference=("guessing", 0.5)), f"{words}."


def _runs(run: ReportedRun) -> _Drawn:
    each = run.node("runs", "test")
    if not isinstance(each, Mapping):
        return None
    rows = _known((str(name), found.get("auroc")) for name, found in each.items())
    return _areas(rows, "The runs on the same test patients")


def _baselines(run: ReportedRun) -> _Drawn:
    sections = (run.node("baselines") or {}).items()
    others = ((in_words(name, BASELINES), section.get("test", {}).get("auroc")) for name, section in sections)
    rows = _known([("model (MRI)", run.node("test", "auroc")), *others])
    return _areas(rows, "The model, its parts, and what is known without a network") if len(rows) > 1 else None


_DRAWINGS: dict[str, Callable[[ReportedRun], _Drawn]] = {
    "cohort_flow": _cohort_flow,
    "learning_curves": _learning_curves,
    "roc": _roc,
    "precision_recall": _precision_recall,
    "confusion_matrix": _confusion_matrix,
    "reliability": _reliability,
    "baselines": _baselines,
    "decision_curve": _decision_curve,
    "subgroups": _subgroups,
    "sites": _sites,
    "shift": _shift,
    "runs": _runs,
}
