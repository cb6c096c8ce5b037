"""A run folder, read: its contract files as tables and numbers, and the figures that follow from them alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation import Folds, PostProcessing, patient_predictions, read_table
from idh_lightning.files import atomic_write
from idh_lightning.reports import figures
from idh_lightning.reports.figures import Estimate
from idh_lightning.reports.vocabulary import BASELINES, COVARIATES, group_in_words, in_words

PARTS = ("train", "validation", "test")

FEWEST_CALLED = 5
"""The decision curve ends where fewer patients are called mutant: there each one of them makes it jump."""


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """What a run folder holds; a table or mapping is empty where the run did not write it.

    Attributes:
        folder: Where it is.
        config: The recipe; interpolations of its own keys are resolved, others stand as they are.
        cohort: One row per study used.
        exclusions: One row per study left out.
        predictions: One row per validation and test study.
        metrics: What evaluation computed.
        explanations: One row per study and method.
        features: Tumour features, one row per study with a mask.
        log: What Lightning's CSVLogger wrote.
        provenance: How the run was made.
    """

    folder: Path
    config: Mapping[str, Any]
    cohort: pd.DataFrame
    exclusions: pd.DataFrame
    predictions: pd.DataFrame
    metrics: Mapping[str, Any]
    explanations: pd.DataFrame
    features: pd.DataFrame
    log: pd.DataFrame
    provenance: Mapping[str, Any]

    def node(self, *path: str) -> Any:
        """Return what metrics.json holds at this path, or None."""
        node: Any = self.metrics
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def number(self, *path: str) -> float | None:
        """Return the bare number of metrics.json at this path, or None."""
        node = self.node(*path)
        return float(node) if isinstance(node, int | float) and not isinstance(node, bool) else None

    def estimate(self, *path: str) -> Estimate | None:
        """Return the statistic of metrics.json at this path, or None where the run has not computed it."""
        return as_estimate(self.node(*path))

    @property
    def auroc(self) -> Estimate | None:
        """The ROC-AUC on test patients."""
        return self.estimate("test", "auroc")

    def patients(self, split: str) -> pd.DataFrame:
        """`patient_predictions` of a split, indexed by patient; no rows where the run has not been evaluated."""
        learnt, columns = self.learnt, {"patient_id", "split", "label", "logit"}
        if learnt is None or not columns <= set(self.predictions.columns):
            return pd.DataFrame(columns=["label", "logit", "probability", "predicted", "studies"])
        rows = self.predictions[self.predictions["split"] == split]
        rows = learnt.calibrated(rows) if isinstance(learnt, Folds) and len(rows) else rows
        return patient_predictions(rows, learnt).set_index("patient_id")

    @cached_property
    def learnt(self) -> PostProcessing | Folds | None:
        """Calibration, threshold and prediction sets of the run, of its folds, or None where it has none of its own."""
        if not {"operating_point", "calibration", "conformal", "baselines"} <= self.metrics.keys():
            return None
        pooled = "runs" in self.metrics["calibration"]
        return Folds.from_metrics(self.metrics) if pooled else PostProcessing.from_metrics(self.metrics)

    def folder_of(self, study_id: str) -> Path:
        """Return the folder that holds the maps and panels of a study: that of its run where folds are pooled."""
        folders = self.node("runs", "folders")
        if not isinstance(folders, Mapping) or "run" not in self.predictions:
            return self.folder
        run = self.predictions.loc[self.predictions["study_id"] == study_id, "run"]
        return self.folder if run.empty else Path(str(folders.get(str(run.iloc[0]), self.folder)))


def read_run(folder: Path) -> ReportedRun:
    """Return the contract files of a run folder.

    Raises:
        EvaluationError: If there is no such folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; expected a run folder, outputs/<date>/<time>_<name>. Correct the path."
        )
    config = _mapping(folder / ".hydra" / "config.yaml", yaml.safe_load)
    log_file = next(iter(sorted(folder.rglob("metrics.csv"), key=lambda path: len(path.parts))), folder / "metrics.csv")
    metrics = _mapping(folder / "metrics.json", json.loads)
    pooled = metrics.get("runs")
    # Pooled runs: what they were made with, not how they were pooled.
    config = pooled.get("config", {}) if isinstance(pooled, Mapping) else config
    return ReportedRun(
        folder=folder,
        config=_resolved(config, config),
        cohort=_table(folder / "cohort.csv"),
        exclusions=_table(folder / "exclusions.csv"),
        predictions=_table(folder / "predictions.csv"),
        metrics=metrics,
        explanations=_table(folder / "explanations.csv"),
        features=_table(folder / "features.csv"),
        log=_table(log_file),
        provenance=_mapping(folder / "provenance.json", json.loads),
    )


def as_estimate(node: object) -> Estimate | None:
    """Return a statistic of metrics.json, `{value, low, high, n, why}`, as an Estimate; None if it is none."""
    if not isinstance(node, Mapping) or "value" not in node:
        return None
    value, low, high = (None if node.get(key) is None else float(node[key]) for key in ("value", "low", "high"))
    n = node.get("n")
    return Estimate(value, low, high, None if n is None else int(n), node.get("why"))


def exclusion_reasons(run: ReportedRun) -> dict[str, int]:
    """Return how many studies each reason left out, the commonest first; a reason is the check, without its details."""
    if "reason" not in run.exclusions:
        return {}
    reasons = run.exclusions["reason"].astype(str).str.split(":", n=1).str[0].str.replace("_", " ")
    return {str(reason): int(n) for reason, n in reasons.value_counts().items()}


def draw_run_figures(run_folder: Path) -> dict[str, str]:
    """Draw every figure that the contract files of a run allow, into its folder `figures`.

    Returns:
        File name -> what the figure shows, in words and numbers.
    """
    return save_figures(read_run(run_folder))


def save_figures(run: ReportedRun) -> dict[str, str]:
    """Draw the figures of a run that was read. See `draw_run_figures`."""
    shown: dict[str, str] = {}
    for name, draw in _DRAWINGS.items():
        drawn = draw(run)
        path = run.folder / "figures" / f"{name}.png"
        if drawn is None:
            # What an earlier evaluation drew must not stand beside the numbers of this one.
            for old in (path, path.parent / "narrow" / path.name):
                old.unlink(missing_ok=True)
            continue
        figure, words = drawn
        shown |= save_figure(figure, words, path)
    return shown


def save_figure(figure: Figure | Callable[..., Figure], words: str, path: Path) -> dict[str, str]:
    """Write a figure, and one for narrow screens where it is given as what draws both; return file name -> words."""
    drawn = {path.name: figure} if isinstance(figure, Figure) else {path.name: figure()}
    if not isinstance(figure, Figure):
        drawn[f"narrow/{path.name}"] = figure(narrow=True)
    for name, one in drawn.items():
        with atomic_write(path.parent / name) as temporary:
            one.savefig(temporary, dpi=150)
    return dict.fromkeys(drawn, words)


Drawn = tuple[Figure | Callable[..., Figure], str] | None


def _cohort_flow(run: ReportedRun) -> Drawn:
    parts = cohort_parts(run)
    if parts is None:
        return None
    excluded = exclusion_reasons(run)
    words = "; ".join(f"{name} {n} studies of {people} patients, {m} mutant" for name, (n, people, m) in parts.items())
    return figures.draw_cohort_flow(
        excluded, parts
    ), f"Cohort flow: {sum(excluded.values())} studies left out; {words}."


def cohort_parts(run: ReportedRun) -> dict[str, tuple[int, int, int]] | None:
    """Studies, patients and mutant patients of each split, or None where the run has no table of its cohort."""
    if not {"split", "patient_id", "label"} <= set(run.cohort.columns):
        return None
    parts = {}
    for split in PARTS:
        rows = run.cohort[run.cohort["split"] == split]
        people = rows.drop_duplicates("patient_id")
        if len(rows):
            parts[split] = (len(rows), len(people), int((people["label"].astype(int) == 1).sum()))
    return parts


def _learning_curves(run: ReportedRun) -> Drawn:
    if not {"epoch", "step"} <= set(run.log.columns) or not any("/" in str(name) for name in run.log.columns):
        return None
    monitor = run.config.get("monitor")
    monitor = monitor if isinstance(monitor, Mapping) else {}
    metric, mode = str(monitor.get("metric", "val/loss")), str(monitor.get("mode", "max"))
    epochs = int(run.log["epoch"].max()) + 1
    words = f"Learning curves over {epochs} epochs: loss, accuracy and ROC-AUC of studies, learning rate."
    return partial(figures.learning_curves, run.log, monitor=metric, mode=mode), words


def _confusion_matrix(run: ReportedRun) -> Drawn:
    cells = run.node("confusion", "test")
    if not isinstance(cells, Mapping):
        return None
    tn, fp, fn, tp = (int(cells[cell]) for cell in ("tn", "fp", "fn", "tp"))
    figure = figures.confusion_matrix(
        [[tn, fp], [fn, tp]],
        title="Test patients, called and true",
        threshold=run.number("operating_point", "threshold"),
    )
    words = f"{tp} of {tp + fn} mutant and {tn} of {tn + fp} wildtype test patients are called right"
    return figure, f"Confusion matrix: {words}."


def _roc(run: ReportedRun) -> Drawn:
    people = run.patients("test")
    if people["label"].nunique() < 2:
        return None
    figure = figures.roc(
        people["label"],
        people["probability"],
        auroc=run.auroc,
        threshold=run.number("operating_point", "threshold"),
        title="ROC curve, test patients",
    )
    return (
        figure,
        f"ROC curve of {len(people)} test patients{'' if run.auroc is None else f', ROC-AUC {run.auroc.text}'}.",
    )


def _precision_recall(run: ReportedRun) -> Drawn:
    people = run.patients("test")
    if people["label"].nunique() < 2:
        return None
    precision = run.estimate("test", "average_precision")
    figure = figures.precision_recall(
        people["label"],
        people["probability"],
        average_precision=precision,
        threshold=run.number("operating_point", "threshold"),
        title="Precision and recall, test patients",
    )
    words = "" if precision is None else f", average precision {precision.text}"
    return figure, f"Precision-recall curve{words}; the prevalence is {people['label'].mean():.2f}."


def _reliability(run: ReportedRun) -> Drawn:
    curves = run.node("curves", "test", "reliability")
    people = run.patients("test")
    if not isinstance(curves, Mapping) or "calibrated" not in curves or people.empty:
        return None
    calibrated = run.node("calibration", "method") not in (None, "none")
    ece = run.estimate("test", "ece")
    figure = figures.reliability(
        curves["calibrated"],
        people["label"],
        people["probability"],
        raw=curves.get("raw") if calibrated else None,
        ece=ece,
        title="Calibration, test patients",
    )
    words = "" if ece is None else f" Calibration error {ece.text}."
    return figure, f"Observed share of mutants against predicted probability in groups of equal size.{words}"


def _decision_curve(run: ReportedRun) -> Drawn:
    curves = run.node("decision_curves")
    if not isinstance(curves, Mapping) or "thresholds" not in curves:
        return None
    benefit = {str(name): values for name, values in curves.items() if isinstance(values, list)}
    people = run.patients("test")
    figure = figures.decision_curve(
        pd.DataFrame(benefit).rename(columns={"thresholds": "threshold"}),
        band=curves.get("band"),
        prevalence=people["label"].mean() if len(people) else None,
        last=people["probability"].nlargest(FEWEST_CALLED).min() if len(people) else None,
        title="Decision curve, test patients",
    )
    return (
        figure,
        "Net benefit of acting on the model, on age, on everyone and on no one, over threshold probabilities, up to "
        f"the one from which {FEWEST_CALLED} patients are called mutant.",
    )


def _subgroups(run: ReportedRun) -> Drawn:
    rows: list[tuple[str, Estimate]] = []
    for name, section in (run.node("subgroups") or {}).items():
        groups = section.get("groups", {})
        if len(groups) < 2:
            continue
        rows.append((f"# {name.replace('_', ' ')}", Estimate(None)))
        for group, found in groups.items():
            estimate = as_estimate(found.get("auroc"))
            if estimate is not None:
                # The patients of the group, also where too few of a class leave no area.
                rows.append((group_in_words(group), replace(estimate, n=found.get("n", estimate.n))))
        within = as_estimate(section.get("within_auroc"))
        if within is not None and within.value is not None:
            rows.append((f"within {name.replace('_', ' ')}", within))
    if not rows:
        return None
    whole = run.auroc
    reference = ("all test patients", whole.value) if whole is not None and whole.value is not None else None
    words = "; ".join(f"{name}: {estimate.text}" for name, estimate in rows if not name.startswith("# "))
    draw = partial(figures.forest, rows, title="ROC-AUC in groups of test patients", reference=reference)
    return draw, f"Forest plot. {words}."


def _shift(run: ReportedRun) -> Drawn:
    section = run.node("external", "shift")
    rows = [
        (in_words(str(name), COVARIATES), estimate)
        for name, found in (section if isinstance(section, Mapping) else {}).items()
        if (estimate := as_estimate(found.get("difference"))) is not None
    ]
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


def _runs(run: ReportedRun) -> Drawn:
    each = run.node("runs", "test")
    if not isinstance(each, Mapping):
        return None
    rows = [
        (str(name), estimate)
        for name, found in each.items()
        if (estimate := as_estimate(found.get("auroc"))) is not None
    ]
    words = "; ".join(f"{name}: ROC-AUC {estimate.text}" for name, estimate in rows)
    draw = partial(figures.forest, rows, title="The runs on the same test patients", reference=("guessing", 0.5))
    return draw, f"{words}."


def _baselines(run: ReportedRun) -> Drawn:
    rows = [("model (MRI)", run.auroc)]
    for name, section in (run.node("baselines") or {}).items():
        rows.append((in_words(name, BASELINES), as_estimate(section.get("test", {}).get("auroc"))))
    known = [(name, estimate) for name, estimate in rows if estimate is not None]
    if len(known) < 2:
        return None
    figure = partial(
        figures.forest,
        known,
        title="The model, its parts, and what is known without a network",
        reference=("guessing", 0.5),
    )
    return figure, "; ".join(f"{name}: ROC-AUC {estimate.text}" for name, estimate in known) + "."


_DRAWINGS: dict[str, Callable[[ReportedRun], Drawn]] = {
    "cohort_flow": _cohort_flow,
    "learning_curves": _learning_curves,
    "roc": _roc,
    "precision_recall": _precision_recall,
    "confusion_matrix": _confusion_matrix,
    "reliability": _reliability,
    "baselines": _baselines,
    "decision_curve": _decision_curve,
    "subgroups": _subgroups,
    "shift": _shift,
    "runs": _runs,
}


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    try:
        return read_table(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (ValueError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: {error}; expected a CSV table. Run the stage that writes it again.") from error


def _mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise EvaluationError(f"{path}: {error}; expected a whole file. Run the stage that writes it again.") from error
    return content if isinstance(content, Mapping) else {}


def _resolved(node: Any, root: Mapping[str, Any]) -> Any:
    """Return a configuration with every value `${a.b}` replaced by the value of the key a.b."""
    if isinstance(node, Mapping):
        return {key: _resolved(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root) for value in node]
    named = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    if named is None:
        return node
    found: Any = root
    for key in named[1].split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return node if found is None or found == node else _resolved(found, root)
