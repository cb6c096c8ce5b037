"""A run folder to report.html: one file that opens offline and says how good the model is, for whom, and how sure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from idh_lightning.cli.tables import number
from idh_lightning.cohort.checks import counted
from idh_lightning.reports.cases import gallery_of, telling_cases, turning_case
from idh_lightning.reports.caveats import caveats, trained_on
from idh_lightning.reports.checklist import checklist
from idh_lightning.reports.cross_validation import fold_tables
from idh_lightning.reports.external import external_section
from idh_lightning.reports.page import badges, save_page
from idh_lightning.reports.pictures import inlined
from idh_lightning.reports.run_figures import save_figures
from idh_lightning.reports.run_folder import ReportedRun, read_run
from idh_lightning.reports.run_results import result_tables
from idh_lightning.reports.tables import signed
from idh_lightning.reports.vocabulary import CLASSES, METRICS, p_value_words


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder, from what else is in it, and return its path.

    The figures are drawn anew. What the run did not compute is said to be so.

    Raises:
        EvaluationError: If there is no such folder or a file in it is damaged.
    """
    run = read_run(run_folder)
    drawn = save_figures(run)
    gallery = gallery_of(run)
    telling = telling_cases(run, gallery)
    return save_page(
        run.folder / "report.html",
        "report.html.j2",
        title=_title(run),
        place="/".join(run.folder.resolve().parts[-2:]),
        badges=badges(trained_on(run)),
        caveats=caveats(run),
        headline=_headline(run),
        tiles=_tiles(run),
        figures=inlined(run.folder, drawn),
        protocol=_protocol(run),
        external=external_section(run),
        folds=fold_tables(run),
        learns=run.node("external") is None and run.node("runs") is None,
        flow=_flow(run),
        compared=(run.folder / "explanations.html").is_file(),
        telling=telling,
        turning=turning_case(run),
        gallery=gallery,
        classes=CLASSES,
        weights=_weights_words(run),
        checklist=checklist(run),
        **result_tables(run),
    )


def _title(run: ReportedRun) -> str:
    name = run.provenance.get("cohort")
    return f"IDH status from MRI: {name}" if name else "IDH status from MRI"


def _headline(run: ReportedRun) -> list[str]:
    """Main results, in sentences that carry their uncertainty."""
    auroc = run.auroc
    if auroc is None or auroc.value is None:
        return []
    people = run.patients("test")
    level = 100 * (run.number("settings", "confidence") or 0.95)
    whose = "held-out patients"
    if run.node("external") is not None:
        whose = f"patients of a cohort that it was not trained on, {run.provenance.get('cohort', 'unknown')}"
    elif run.node("runs") is not None:
        whose = f"patients, each judged in the one of {len(run.node('runs', 'folders') or {})} folds that left them out"
    mutant = f"{int(people['label'].sum())} mutant" if len(people) else ""
    count = f"On {len(people)} {whose} ({mutant})" if len(people) else "Held out"
    interval = ""
    if auroc.interval:
        interval = f" ({level:.0f}% interval {auroc.interval})"
    sentences = [
        f"{count}, the model ranks a random mutant above a random wildtype patient with probability "
        f"{number(auroc.value)}{interval}."
    ]
    internal = run.estimate("external", "internal", "auroc")
    if internal is not None and internal.value is not None:
        home = run.node("external", "trained_on")
        sentence = f"On the test patients of {home}, where it was trained, this was {internal.text}"
        difference = run.estimate("external", "differences", "auroc")
        if difference is not None and difference.value is not None:
            sentence += f"; the difference is {signed(difference)}"
        sentences.append(sentence + ".")
    age = run.estimate("baselines", "age", "test", "auroc")
    if age is not None and age.value is not None:
        sentence = f"Age alone reaches {age.text} in the same patients"
        difference = run.estimate("comparisons", "model_vs_age", "difference")
        p = run.number("comparisons", "model_vs_age", "p_value")
        if difference is not None and difference.value is not None and p is not None:
            better = "better" if difference.value > 0 else "worse"
            told = f"the model is {better} than age" if p < 0.05 else "the two cannot be told apart"
            sentence += f"; {told} (difference {signed(difference)}, {p_value_words(p)})"
        sentences.append(sentence + ".")
    cells = run.node("confusion", "test")
    if isinstance(cells, Mapping):
        tn, fp, fn, tp = (int(cells[cell]) for cell in ("tn", "fp", "fn", "tp"))
        threshold = "thresholds" if isinstance(run.node("operating_point", "runs"), Mapping) else "threshold"
        sentences.append(
            f"At the {threshold} fixed on validation patients it finds {tp} of {tp + fn} mutants and recognises "
            f"{tn} of {tn + fp} wildtypes."
        )
    return sentences


def _protocol(run: ReportedRun) -> str:
    """Sentence on when test patients were looked at, and by which network."""
    if run.node("external") is not None:
        return "Nothing was learnt from these patients: network, threshold and calibration came with the checkpoint."
    if run.node("runs") is not None:
        return (
            "Every patient was judged once, by the network of the fold that did not train on them, with the threshold "
            "and the calibration of that fold. Patients of different folds are ranked by calibrated probability."
        )
    return (
        "Test patients were touched once, after the epoch, the threshold and the calibration had been fixed on "
        "validation patients."
    )


def _tiles(run: ReportedRun) -> list[tuple[str, str, str]]:
    """(name, value, interval and n) of the numbers that stand at the top."""
    wanted = [
        *((METRICS[key].name, run.estimate("test", key)) for key in ("auroc", "sensitivity", "specificity", "ece")),
        ("age alone, ROC-AUC", run.estimate("baselines", "age", "test", "auroc")),
    ]
    tiles = []
    for name, estimate in wanted:
        if estimate is not None and estimate.value is not None:
            interval = f"{estimate.interval}, " if estimate.interval else ""
            tiles.append((name, number(estimate.value), f"{interval}{estimate.n} patients"))
    return tiles


def _flow(run: ReportedRun) -> dict[str, list[tuple[str, ...]]] | None:
    """Boxes of the flow of patients, step -> lines of each box, as in the cohort report."""
    if not run.partitions:
        return None
    reasons = run.exclusion_reasons
    studies, patients, mutant = (sum(counts) for counts in zip(*run.partitions.values(), strict=True))
    lost = sum(reasons.values())
    boxes: dict[str, list[tuple[str, ...]]] = {"read": [(f"{counted(studies + lost, 'study', 'studies')} found",)]}
    if reasons:
        boxes["excluded"] = [(f"{lost} left out", *(f"{n} × {reason}" for reason, n in reasons.items()))]
    used = f"{counted(studies, 'study', 'studies')} of {counted(patients, 'patient')}"
    boxes["used"] = [(used, f"{mutant} mutant ({mutant / patients:.0%})")]
    boxes["split"] = [
        (name, f"{counted(people, 'patient')}, {counted(n, 'study', 'studies')}", f"{m} mutant, {people - m} wildtype")
        for name, (n, people, m) in run.partitions.items()
    ]
    return boxes


def _weights_words(run: ReportedRun) -> str | None:
    weights = run.provenance.get("weights")
    if not isinstance(weights, Mapping):
        return None
    source, requested, note = (str(weights.get(key) or "") for key in ("source", "requested", "note"))
    if source in ("", "none"):
        words = (
            f"The network started untrained: no pretrained weights were loaded (model.weights={requested or 'none'})."
        )
    else:
        words = f"The network started from {source} (model.weights={requested})."
    return f"{words} Note: {note}." if note else words
