"""A run folder, read: its contract files as tables and numbers, and the caveats of its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]

from idh_lightning.cohort import SPLITS, Target
from idh_lightning.cohort.checks import counted
from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation import Folds, PostProcessing, patient_predictions, read_table
from idh_lightning.provenance import PROVENANCE
from idh_lightning.reports.tables import Estimate, as_estimate
from idh_lightning.reports.vocabulary import NO_BETTER_THAN_CHANCE


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """Content of a run folder; a table or mapping is empty where the run did not write it.

    Attributes:
        folder: Where it is.
        config: The recipe; interpolations of its own keys are resolved, others stand as they are.
        cohort: One row per study used.
        exclusions: One row per study left out.
        predictions: One row per validation and test study.
        metrics: Content of metrics.json.
        explanations: One row per study and method.
        features: Tumour features, one row per study with a mask.
        segmentation: Dice coefficient and pointing game of a locator that the run has fine-tuned, one row per study.
        log: Table of Lightning's CSVLogger.
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
    segmentation: pd.DataFrame
    log: pd.DataFrame
    provenance: Mapping[str, Any]

    def node(self, *path: str) -> Any:
        """Content of metrics.json at this path, or None."""
        return _at(self.metrics, path)

    def setting(self, *path: str, default: Any = None) -> Any:
        """Setting of the recipe at this path; `default` where it has none."""
        return _at(self.config, path, default)

    def number(self, *path: str) -> float | None:
        """Bare number of metrics.json at this path, or None."""
        node = self.node(*path)
        return float(node) if isinstance(node, int | float) and not isinstance(node, bool) else None

    def estimate(self, *path: str) -> Estimate | None:
        """Statistic of metrics.json at this path, or None where the run has not computed it."""
        return as_estimate(self.node(*path))

    @property
    def trained_on(self) -> str:
        """Name of the cohort that the network was trained on."""
        return str(self.provenance.get("trained_on") or self.provenance.get("cohort", ""))

    @cached_property
    def target(self) -> Target:
        """Target that the run predicts."""
        return Target.of_record(self.metrics.get("target") or self.provenance.get("target"))

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

    def groups_overlap(self, name: str) -> bool:
        """Whether a test patient counts in several groups of a subgroup analysis, having studies in each."""
        groups, everyone = self.node("subgroups", name, "groups"), self.number("splits", "test", "n")
        return isinstance(groups, Mapping) and everyone is not None and sum(g["n"] for g in groups.values()) > everyone

    @cached_property
    def learnt(self) -> PostProcessing | Folds | None:
        """Calibration, threshold and prediction sets of the run, of its folds, or None where it has none of its own."""
        if not {"operating_point", "calibration", "conformal", "baselines"} <= self.metrics.keys():
            return None
        pooled = "runs" in self.metrics["calibration"]
        return Folds.from_metrics(self.metrics) if pooled else PostProcessing.from_metrics(self.metrics)

    def folder_of(self, study_id: str) -> Path:
        """Folder that holds the maps and panels of a study: that of its run where folds are pooled."""
        folders = self.node("runs", "folders")
        if not isinstance(folders, Mapping) or "run" not in self.predictions:
            return self.folder
        run = self.predictions.loc[self.predictions["study_id"] == study_id, "run"]
        return self.folder if run.empty else Path(str(folders.get(str(run.iloc[0]), self.folder)))

    @cached_property
    def partitions(self) -> dict[str, tuple[int, int, int]]:
        """Studies, patients and positive patients of each split; empty where the run has no table of its cohort."""
        if not {"split", "patient_id", "label"} <= set(self.cohort.columns):
            return {}
        found = {}
        for split in SPLITS:
            rows = self.cohort[self.cohort["split"] == split]
            people = rows.drop_duplicates("patient_id")
            if len(rows):
                found[split] = (len(rows), len(people), int((people["label"].astype(int) == 1).sum()))
        return found

    @property
    def torn_patients(self) -> int | None:
        """Number of patients that are in more than one partition, or None where the run does not say."""
        if not {"patient_id", "split"} <= set(self.cohort.columns):
            return None
        return int((self.cohort.groupby("patient_id")["split"].nunique() > 1).sum())

    @property
    def exclusion_reasons(self) -> dict[str, int]:
        """Studies that each reason left out, the commonest first; a reason is the check, without its details."""
        if "reason" not in self.exclusions:
            return {}
        reasons = self.exclusions["reason"].astype(str).str.split(":", n=1).str[0].str.replace("_", " ")
        return {str(reason): int(n) for reason, n in reasons.value_counts().items()}


def read_run(folder: Path) -> ReportedRun:
    """Contract files of a run folder.

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
        segmentation=_table(folder / "segmentation.csv"),
        log=_table(log_file),
        provenance=_mapping(folder / PROVENANCE, json.loads),
    )


def _at(node: Any, path: Iterable[str], default: Any = None) -> Any:
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return default
        node = node[key]
    return node


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
    """Configuration with every value `${a.b}` replaced by the value of the key a.b."""
    if isinstance(node, Mapping):
        return {key: _resolved(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root) for value in node]
    named = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    if named is None:
        return node
    found = _at(root, named[1].split("."))
    return node if found is None or found == node else _resolved(found, root)


FEW_EPOCHS = 5
FEW_PATIENTS = 30
FEW_OF_A_CLASS = 10
"""Below these a run says that it was hardly trained, that its calibration and its test rest on little."""


def caveats(run: ReportedRun) -> list[str]:
    """Caveats that weaken the numbers of a run, the gravest first; empty where nothing is known against them."""
    return [*_synthetic(run), *_torn(run), *_test(run), *_network(run), *_calibrated(run), *_left_out(run)]


def _synthetic(run: ReportedRun) -> Iterator[str]:
    """Name synthetic patients, tested or trained on, and the control that was drawn into them."""
    if "phantom" not in str(run.provenance.get("cohort", "")):
        if "phantom" in run.trained_on:
            yield "The network was trained on synthetic patients: it has never seen a real tumour."
        return
    yield (
        "These patients are synthetic. The numbers say whether the machinery works, not how well MRI shows "
        f"{run.target.title} in people."
    )
    control = str(run.config.get("control", "natural"))
    if control != "natural":
        words = {
            "trivial": "one certain sign was drawn into every mutant and no other, so the AUC must be about 1",
            "shortcut": "a mark outside the tumour agrees with most labels, so the maps must expose it",
        }
        yield f"Control run: {words.get(control, 'labels were shuffled, so the AUC must hold 0.5')}."
    if run.target.name == "mgmt":
        yield "Control run: nothing in these images depends on MGMT, so the AUC must hold 0.5."


def _torn(run: ReportedRun) -> Iterator[str]:
    if run.torn_patients:
        yield f"{counted(run.torn_patients, 'patient')} are in more than one partition: the test is not independent."


def _test(run: ReportedRun) -> Iterator[str]:
    if run.auroc is not None and run.auroc.holds_chance:
        yield NO_BETTER_THAN_CHANCE
    n, mutant = (run.number("splits", "test", key) for key in ("n", "n_mutant"))
    if n is None or mutant is None:
        return
    if min(mutant, n - mutant) < FEW_OF_A_CLASS:
        words = run.target
        rarer = f"{mutant:.0f} {words.positive}" if 2 * mutant <= n else f"{n - mutant:.0f} {words.negative}"
        yield f"Only {rarer} test patients of {n:.0f}: every interval below is wide for that reason."


def _network(run: ReportedRun) -> Iterator[str]:
    weights, epochs = run.provenance.get("weights"), run.provenance.get("epochs")
    if isinstance(weights, Mapping) and str(weights.get("source") or "none") == "none":
        parameters = run.provenance.get("parameters") or {}
        total, trainable = (parameters.get(key) or 0 for key in ("total", "trainable"))
        frozen = "" if total <= trainable else f", and {(total - trainable) / total:.0%} of its parameters stayed so"
        yield (
            f"The network started untrained{frozen}: no pretrained weights were loaded "
            f"(model.weights={weights.get('requested', 'none')})."
        )
    if isinstance(epochs, int) and 0 < epochs < FEW_EPOCHS:
        yield f"It was trained for {counted(epochs, 'epoch')} only (trainer.max_epochs)."


def _calibrated(run: ReportedRun) -> Iterator[str]:
    """Name thresholds and calibrations that rest on few validation patients; of pooled folds, the fewest."""
    each = run.node("calibration", "runs")
    found = list(each.values()) if isinstance(each, Mapping) else [run.node("calibration")]
    sizes = [int(one["n"]) for one in found if isinstance(one, Mapping) and one.get("n") is not None]
    n, mutant = (run.number("splits", "validation", key) for key in ("n", "n_mutant"))
    if not sizes:
        return
    rarer = None if n is None or mutant is None or n != min(sizes) else int(min(mutant, n - mutant))
    if min(sizes) < FEW_PATIENTS or (rarer is not None and rarer < FEW_OF_A_CLASS):
        least = "" if rarer is None else f", {rarer} of the rarer class"
        yield (
            f"Threshold, calibration and prediction sets were chosen on {counted(min(sizes), 'validation patient')} "
            f"only{least}: calls and probabilities could be quite different with others."
        )


def _left_out(run: ReportedRun) -> Iterator[str]:
    among = "among the folds" if run.node("runs", "relation") == "folds" else "compared"
    for folder in run.node("runs", "left_out") or []:
        yield f"{folder} came to no predictions and is not {among}."
