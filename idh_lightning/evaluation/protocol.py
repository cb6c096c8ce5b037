"""The whole evaluation of one run: what is learnt from validation patients, and what test patients say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from idh_lightning.errors import ConfigError
from idh_lightning.evaluation.baselines import Baseline, fit_baseline
from idh_lightning.evaluation.calibration import CalibrationMethod, Calibrator, calibration, reliability_curve
from idh_lightning.evaluation.comparison import pool
from idh_lightning.evaluation.cross_validation import RUN, Folds
from idh_lightning.evaluation.decisions import (
    ConformalSets,
    OperatingPoint,
    Rule,
    check_rule,
    decision_curves,
    observed_sets,
)
from idh_lightning.evaluation.discrimination import (
    auroc,
    average_precision,
    compare_auroc,
    confusion,
    discrimination,
    predictive_values,
)
from idh_lightning.evaluation.intervals import Bootstrap, Floats, Integers, Statistic
from idh_lightning.evaluation.postprocessing import PostProcessing
from idh_lightning.evaluation.predictions import join, opinions_in, patient_predictions, per_patient
from idh_lightning.evaluation.subgroups import age_bands, group_names, group_scores, within_groups_auroc

logger = logging.getLogger(__name__)

_BASELINES: dict[str, tuple[str, ...]] = {
    "prevalence": (),
    "age": ("age_years",),
    "age_sex": ("age_years", "sex_male"),
}
_COMPARISONS = {
    "model_vs_prevalence": ("model", "prevalence"),
    "model_vs_age": ("model", "age"),
    "model_vs_age_sex": ("model", "age_sex"),
    "model_vs_features": ("model", "features"),
    "model_age_vs_age": ("model_age", "age"),
}


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One run of a cross-validation, as its folder holds it.

    Attributes:
        predictions: predictions.csv.
        cohort: cohort.csv.
        features: features.csv, or None.
        learnt: From its metrics.json or its checkpoint.
    """

    predictions: pd.DataFrame
    cohort: pd.DataFrame
    features: pd.DataFrame | None
    learnt: PostProcessing


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation found.

    Attributes:
        predictions: The table that was given, its probability now calibrated, with the columns raw_probability,
            predicted (0 or 1, at the operating point) and prediction_set ("wildtype", "mutant", "both", "none").
        metrics: For metrics.json; the keys are described in the docstring of the package.
        learnt: For the checkpoint.
    """

    predictions: pd.DataFrame
    metrics: dict[str, Any]
    learnt: PostProcessing | Folds


def measure(
    patients: pd.DataFrame, *, bins: int = 5, confidence: float = 0.95, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Statistic]:
    """Return every statistic of one group of patients.

    Args:
        patients: One row each: label (both classes), logit, probability, predicted.
        bins: Of the expected calibration error.
        confidence: Of every interval.
        bootstrap: Number of resamples.
        seed: Of the resamples.

    Returns:
        Those of `discrimination` and of `calibration`.
    """
    labels = patients["label"].to_numpy(dtype=np.int64)
    resamples = Bootstrap.draw(labels, resamples=bootstrap, seed=seed, confidence=confidence)
    return {
        **discrimination(
            labels,
            patients["logit"].to_numpy(dtype=float),
            patients["predicted"].to_numpy(dtype=np.int64),
            resamples=resamples,
        ),
        **calibration(labels, patients["probability"].to_numpy(dtype=float), bins=bins, resamples=resamples),
    }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """predictions.csv and cohort.csv -> results: called once per run, a pure function of the two.

    Attributes:
        operating_point: "youden", or "sensitivity" or "specificity" with a target.
        operating_target: The sensitivity or specificity to reach on validation patients.
        calibration: "platt", "temperature" or "none".
        coverage: Share of patients of each class whose prediction set shall hold their class.
        bins: Of the reliability curve and the expected calibration error.
        bootstrap: Number of resamples.
        confidence: Of every interval.
        seed: Of the resamples.
        minimum_group: The fewest patients that a statistic of a subgroup may rest on.
        age_bands: Edges in years.
        prevalences: At which predictive values are given.
        subgroups: Name -> column of the cohort. A column that the cohort lacks is reported as such.
        without: Name of a sensitivity analysis -> `{column, value}`: the studies that it leaves out.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """

    operating_point: Rule = "youden"
    operating_target: float | None = None
    calibration: CalibrationMethod = "platt"
    coverage: float = 0.9
    bins: int = 5
    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 0
    minimum_group: int = 5
    age_bands: Sequence[float] = (40, 60)
    prevalences: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.8)
    subgroups: Mapping[str, str] = field(
        default_factory=lambda: {
            "grade": "WHO CNS Grade",
            "diagnosis": "Final pathologic diagnosis (WHO 2021)",
            "sex": "sex",
            "site": "site",
            "biopsy_before_imaging": "Biopsy prior to imaging",
            "follow_up": "follow_up",
        }
    )
    without: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "astrocytoma_wildtype": {
                "column": "Final pathologic diagnosis (WHO 2021)",
                "value": "Astrocytoma, IDH-wildtype",
            },
            "follow_ups": {"column": "follow_up", "value": True},
        }
    )

    def __post_init__(self) -> None:
        check_rule(self.operating_point, self.operating_target)
        open_unit = "a number between 0 and 1, both excluded"
        methods = get_args(CalibrationMethod)
        for name, fine, expected in (
            ("calibration", self.calibration in methods, f"one of {', '.join(methods)}"),
            ("coverage", 0 < self.coverage < 1, open_unit),
            ("confidence", 0 < self.confidence < 1, open_unit),
            ("bins", self.bins >= 1, "at least 1"),
            ("bootstrap", self.bootstrap >= 100, "at least 100"),
            ("minimum_group", self.minimum_group >= 2, "at least 2"),
            ("age_bands", len(self.age_bands) > 0, "at least one age in years"),
            ("prevalences", all(0 < value < 1 for value in self.prevalences), "numbers between 0 and 1"),
        ):
            if not fine:
                raise ConfigError(f"evaluation.{name}: found {getattr(self, name)}; expected {expected}. Correct it.")

    def learn(
        self, predictions: pd.DataFrame, cohort: pd.DataFrame, features: pd.DataFrame | None = None
    ) -> PostProcessing:
        """Return what training and validation patients teach; no test patient is needed.

        Args:
            predictions: As predictions.csv.
            cohort: As cohort.csv.
            features: study_id and numeric tumour features, or None.

        Raises:
            EvaluationError: If the tables do not fit together or validation patients are of one class.
        """
        return self._learn(join(predictions, cohort, required=("validation",), features=features))

    def __call__(
        self,
        predictions: pd.DataFrame,
        cohort: pd.DataFrame,
        features: pd.DataFrame | None = None,
        learnt: PostProcessing | None = None,
    ) -> Results:
        """Return the results of a run, or, with `learnt`, of a network on another cohort.

        Args:
            predictions: As predictions.csv: study_id, patient_id, split, fold, label, logit, probability.
            cohort: As cohort.csv.
            features: study_id and numeric tumour features, or None.
            learnt: From the checkpoint. Then only test patients are needed, and nothing is learnt from this cohort.

        Raises:
            EvaluationError: If the tables do not fit together, a split lacks a class, a patient is in two splits or a
                logit is not finite; all such faults are listed.
        """
        splits = ("validation", "test") if learnt is None else ("test",)
        studies = join(predictions, cohort, required=splits, features=features)
        if learnt is None:
            learnt = self._learn(studies)
        decided = learnt.apply(predictions["logit"])
        calibrated = predictions.assign(**{str(name): decided[name].to_numpy() for name in decided})
        return Results(predictions=calibrated, metrics=self._metrics(studies, splits, learnt), learnt=learnt)

    def pooled(self, runs: Mapping[str, Fold]) -> Results:
        """Return the results of a cross-validation: every test patient as judged in the fold that left them out.

        Patients are ranked by calibrated probability, since the logits of different networks have no common scale;
        threshold, prediction sets and baselines are those of the patient's own fold. The intervals take the networks
        as given.

        Args:
            runs: Name -> fold; their test patients are disjoint.

        Raises:
            EvaluationError: If the tables do not fit together or a patient is tested in two folds.
        """
        folds = Folds(of_run={name: fold.learnt for name, fold in runs.items()})
        pool({name: fold.predictions for name, fold in runs.items()})  # refuses patients of two folds
        parts = [
            join(
                fold.predictions[fold.predictions["split"] == "test"],
                fold.cohort[fold.cohort["split"] == "test"],
                required=("test",),
                features=fold.features,
            ).assign(**{RUN: name})
            for name, fold in runs.items()
        ]
        studies = pd.concat(parts, ignore_index=True)
        studies = studies.sort_values(["patient_id", "follow_up", "study_id"], kind="stable").reset_index(drop=True)
        studies = folds.calibrated(studies)
        predictions = folds.predictions(studies, ["study_id", "patient_id", "split", "fold", "label", RUN])
        return Results(predictions=predictions, metrics=self._metrics(studies, ("test",), folds), learnt=folds)

    def _metrics(self, studies: pd.DataFrame, splits: Sequence[str], learnt: PostProcessing | Folds) -> dict[str, Any]:
        """Return metrics.json of the studies in these splits."""
        parts = {split: patient_predictions(studies[studies["split"] == split], learnt) for split in splits}
        measured = {split: self._measure(patients) for split, patients in parts.items()}
        test, tested = parts["test"], studies[studies["split"] == "test"]
        baselines, scores = self._baselines(parts, learnt)
        said = learnt.to_metrics()
        metrics: dict[str, Any] = {
            "settings": {
                "confidence": self.confidence,
                "bootstrap": self.bootstrap,
                "seed": self.seed,
                "minimum_group": self.minimum_group,
            },
            "splits": {split: _count(studies[studies["split"] == split]) for split in ("train", *splits)},
            **measured,
            "confusion": {split: _confusion(patients) for split, patients in parts.items()},
            "predictive_values": predictive_values(
                measured["test"]["sensitivity"], measured["test"]["specificity"], self.prevalences
            ),
            "operating_point": said["operating_point"],
            "calibration": {
                **said["calibration"],
                "raw": {split: self._raw_calibration(patients) for split, patients in parts.items()},
            },
            "baselines": baselines,
            "comparisons": self._comparisons(test, scores),
            "decision_curves": self._decision_curves(test, learnt),
            "subgroups": self._subgroups(tested, learnt),
            "sensitivity_analyses": self._sensitivity_analyses(tested, learnt),
            "conformal": {
                **said["conformal"],
                **{
                    split: observed_sets(
                        patients["label"].to_numpy(dtype=np.int64),
                        patients["prediction_set"].tolist(),
                        confidence=self.confidence,
                    )
                    for split, patients in parts.items()
                },
            },
            "curves": {split: self._curves(patients) for split, patients in parts.items()},
        }
        area = measured["test"]["auroc"]
        interval = "" if area["low"] is None else f" ({area['low']:.2f} to {area['high']:.2f})"
        logger.info("Test ROC-AUC %.2f%s, n = %d patients", area["value"], interval, area["n"])
        return metrics

    def _learn(self, studies: pd.DataFrame) -> PostProcessing:
        """Return what is learnt. Test patients are dropped on the first line, so nothing below can depend on them."""
        seen = per_patient(studies[studies["split"] != "test"])
        validation = seen[seen["split"] == "validation"]
        labels, logits = validation["label"].to_numpy(dtype=np.int64), validation["logit"].to_numpy(dtype=float)
        calibrator = Calibrator.fit(logits, labels, method=self.calibration)
        probabilities = calibrator(logits)
        rule, target = self.operating_point, self.operating_target
        tumour = tuple(sorted(str(column) for column in seen if str(column).startswith("feature ")))
        columns = {**_BASELINES, **({"features": tumour} if tumour else {})}
        baselines: dict[str, Baseline | str] = {
            name: fit_baseline(seen, columns, rule=rule, target=target) for name, columns in columns.items()
        }
        baselines.setdefault("features", "no table of tumour features was given")
        for column in opinions_in(seen):
            name = column.removeprefix("logit_")
            baselines[name] = fit_baseline(seen, (column,), fitted_on="validation", rule=rule, target=target)
        baselines["model_age"] = fit_baseline(
            seen, ("logit", "age_years"), fitted_on="validation", rule=rule, target=target
        )
        return PostProcessing(
            calibrator=calibrator,
            operating_point=OperatingPoint.choose(labels, probabilities, rule=rule, target=target),
            conformal=ConformalSets.fit(labels, probabilities, coverage=self.coverage),
            baselines=baselines,
            method=self.calibration,
        )

    def _measure(self, patients: pd.DataFrame) -> dict[str, Statistic]:
        return measure(patients, bins=self.bins, confidence=self.confidence, bootstrap=self.bootstrap, seed=self.seed)

    def _resamples(self, strata: npt.ArrayLike, people: npt.ArrayLike | None = None) -> Bootstrap:
        return Bootstrap.draw(
            strata, resamples=self.bootstrap, seed=self.seed, confidence=self.confidence, patients=people
        )

    def _raw_calibration(self, patients: pd.DataFrame) -> dict[str, Statistic]:
        labels = patients["label"].to_numpy(dtype=np.int64)
        raw = patients["raw_probability"].to_numpy(dtype=float)
        return calibration(labels, raw, bins=self.bins, resamples=self._resamples(labels))

    def _curves(self, patients: pd.DataFrame) -> dict[str, Any]:
        labels, logits = patients["label"].to_numpy(dtype=np.int64), patients["logit"].to_numpy(dtype=float)
        false_alarms, found, _ = roc_curve(labels, logits)
        precision, recall, _ = precision_recall_curve(labels, logits)
        return {
            "roc": {"fpr": false_alarms.tolist(), "tpr": found.tolist()},
            "precision_recall": {
                "precision": precision.tolist(),
                "recall": recall.tolist(),
                "prevalence": float(labels.mean()),
            },
            "reliability": {
                name: reliability_curve(
                    labels, patients[column].to_numpy(dtype=float), bins=self.bins, confidence=self.confidence
                )
                for name, column in (("raw", "raw_probability"), ("calibrated", "probability"))
            },
        }

    def _baselines(
        self, parts: Mapping[str, pd.DataFrame], learnt: PostProcessing | Folds
    ) -> tuple[dict[str, Any], dict[str, pd.Series[Any]]]:
        """Return the entries of metrics.json, and the log-odds of the test patients whom each baseline knows."""
        entries: dict[str, Any] = {}
        scores: dict[str, pd.Series[Any]] = {}
        for name, baseline in learnt.baselines.items():
            if isinstance(baseline, str):
                entries[name] = {"why": baseline}
                continue
            entries[name] = baseline.to_dict()
            for split, patients in parts.items():
                known = baseline.known(patients)
                if known["label"].nunique() < 2:
                    entries[name][split] = {"why": "fewer than two classes among patients in whom it is known"}
                    continue
                logits = baseline.logits(known)
                entries[name][split] = self._measure(
                    known.assign(logit=logits, probability=expit(logits), predicted=baseline.called(known))
                )
                if split == "test":
                    scores[name] = pd.Series(logits, index=known.index)
        return entries, scores

    def _comparisons(self, test: pd.DataFrame, baselines: Mapping[str, pd.Series[Any]]) -> dict[str, Any]:
        scores = {"model": test["logit"], **baselines}
        entries: dict[str, Any] = {}
        for name, (first, second) in _COMPARISONS.items():
            if first not in scores or second not in scores:
                entries[name] = {"why": f"no baseline {first if first not in scores else second} on these patients"}
                continue
            both = scores[first].index.intersection(scores[second].index)
            labels = test.loc[both, "label"].to_numpy(dtype=np.int64)
            if len(set(labels)) < 2:
                entries[name] = {"why": "fewer than two classes among patients whom both know"}
                continue
            entries[name] = compare_auroc(
                labels,
                scores[first].loc[both].to_numpy(dtype=float),
                scores[second].loc[both].to_numpy(dtype=float),
                confidence=self.confidence,
            )
        return entries

    def _decision_curves(self, test: pd.DataFrame, learnt: PostProcessing | Folds) -> dict[str, Any]:
        """Return the curves on the same patients for all strategies: those whose age is known, if age is one."""
        age = learnt.baselines["age"]
        patients, strategies = test, {}
        if not isinstance(age, str) and len(age.known(test)):
            patients = age.known(test)
            strategies["age"] = expit(np.asarray(age.logits(patients), dtype=float))
        labels, probabilities = _labels_and_probabilities(patients)
        return decision_curves(labels, {"model": probabilities, **strategies}, resamples=self._resamples(labels))

    def _subgroups(self, studies: pd.DataFrame, learnt: PostProcessing | Folds) -> dict[str, Any]:
        """Return the results of each group; studies are grouped first and then reduced to patients within the group."""
        entries: dict[str, Any] = {}
        columns = {
            name: group_names(studies[column]) if column in studies else None for name, column in self.subgroups.items()
        }
        columns["age"] = age_bands(studies["age_years"], self.age_bands) if "age_years" in studies else None
        for name, groups in columns.items():
            column = self.subgroups.get(name, "age_years")
            if groups is None:
                entries[name] = {"column": column, "why": f"no column {column} in the cohort"}
                continue
            patients = patient_predictions(studies.assign(_group=groups), learnt)
            entries[name] = {
                "column": column,
                "groups": {},
                "within_auroc": within_groups_auroc(
                    patients,
                    patients["_group"],
                    minimum=self.minimum_group,
                    resamples=self.bootstrap,
                    seed=self.seed,
                    confidence=self.confidence,
                ),
            }
            for group in _ordered(groups.unique()):
                members = patient_predictions(studies[groups == group], learnt)
                entries[name]["groups"][group] = {
                    "n": len(members),
                    "n_mutant": int(members["label"].sum()),
                    **group_scores(members, minimum=self.minimum_group, resamples=self._resamples(members["label"])),
                }
        return entries

    def _sensitivity_analyses(self, studies: pd.DataFrame, learnt: PostProcessing | Folds) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, left_out in self.without.items():
            column, value = left_out["column"], left_out["value"]
            entry: dict[str, Any] = {"column": column, "value": value}
            entries[f"without_{name}"] = entry
            if column not in studies:
                entry["why"] = f"no column {column} in the cohort"
                continue
            kept = studies[group_names(studies[column]) != str(value)]
            entry |= {"studies_left_out": len(studies) - len(kept), **_count(kept)}
            if min(entry["n_mutant"], entry["n"] - entry["n_mutant"]) < self.minimum_group:
                entry["why"] = f"too few: {self.minimum_group} patients of each class needed"
                continue
            entry["metrics"] = self._measure(patient_predictions(kept, learnt))
        entries["every_study"] = self._every_study(studies)
        return entries

    def _every_study(self, studies: pd.DataFrame) -> dict[str, Any]:
        """Return the areas over studies instead of patients; the studies of a patient are resampled together."""
        entry: dict[str, Any] = _count(studies)
        if entry["studies"] == entry["n"]:
            return entry | {"why": "each patient has one study"}
        labels, logits = studies["label"].to_numpy(dtype=np.int64), studies["logit"].to_numpy(dtype=float)
        resamples = self._resamples(labels, studies["patient_id"].to_numpy(dtype=object))
        precision = average_precision(labels, logits, resamples.weights)
        return entry | {
            "metrics": {
                "auroc": auroc(labels, logits, resamples=resamples),
                "average_precision": resamples.interval(precision),
            }
        }


def _labels_and_probabilities(patients: pd.DataFrame) -> tuple[Integers, Floats]:
    return patients["label"].to_numpy(dtype=np.int64), patients["probability"].to_numpy(dtype=float)


def _count(studies: pd.DataFrame) -> dict[str, int]:
    mutants = studies.loc[studies["label"] == 1, "patient_id"]
    return {"n": studies["patient_id"].nunique(), "n_mutant": mutants.nunique(), "studies": len(studies)}


def _confusion(patients: pd.DataFrame) -> dict[str, int]:
    labels, predicted = (patients[name].to_numpy(dtype=np.int64) for name in ("label", "predicted"))
    counts = confusion(labels, predicted, np.ones((1, len(labels))))
    return {cell: round(float(count[0])) for cell, count in counts.items()}


def _ordered(groups: Iterable[str]) -> list[str]:
    """Return age bands from young to old, all else by name, and the unknown last."""
    return sorted(groups, key=lambda name: (name == "unknown", not name.startswith("under "), name))
