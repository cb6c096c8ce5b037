"""Evaluation protocol of a run: post-processing from validation patients, metrics of test patients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy.special import expit

from idh_lightning.errors import ConfigError
from idh_lightning.evaluation.calibration import CalibrationMethod, Calibrator
from idh_lightning.evaluation.cross_validation import RUN, Folds, pool
from idh_lightning.evaluation.decisions import (
    ConformalSets,
    OperatingPoint,
    Rule,
    check_rule,
    decision_curves,
    observed_sets,
)
from idh_lightning.evaluation.discrimination import (
    compare_auroc,
    predictive_values,
)
from idh_lightning.evaluation.measurement import Measurement, classes, confusion_counts, count_patients, scores
from idh_lightning.evaluation.postprocessing import PostProcessing, fit_baseline
from idh_lightning.evaluation.predictions import branch_logits_in, join, patient_predictions, per_patient

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
    """One run of a cross-validation, as its folder holds it: its tables, and what it learnt."""

    predictions: pd.DataFrame
    cohort: pd.DataFrame
    features: pd.DataFrame | None
    learnt: PostProcessing


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of an evaluation.

    Attributes:
        predictions: The table that was given, its probability now calibrated, with the columns raw_probability,
            predicted (0 or 1, at the operating point) and prediction_set (the name of a class, "both", "none").
        metrics: For metrics.json; the keys are described in docs/reference/metrics.md.
        learnt: For the checkpoint.
    """

    predictions: pd.DataFrame
    metrics: dict[str, Any]
    learnt: PostProcessing | Folds


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
    """predictions.csv and cohort.csv -> results: called once per run, a pure function of the two.

    Attributes:
        operating_point: "youden", or "sensitivity" or "specificity" with a target.
        operating_target: The sensitivity or specificity to reach on validation patients.
        calibration: "platt", "temperature" or "none".
        coverage: Share of patients of each class whose prediction set shall hold their class.
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
    age_bands: Sequence[float] = (40, 60)
    prevalences: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.8)
    subgroups: Mapping[str, str] = field(
        default_factory=lambda: {
            "grade": "WHO CNS Grade",
            "diagnosis": "Final pathologic diagnosis (WHO 2021)",
            "sex": "sex",
            "site": "site",
            "manufacturer": "Manufacturer",
            "scanner": "ManufacturerModelName",
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
        """Post-processing fitted on training and validation patients; no test patient is needed.

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
        """Results of a run, or, with `learnt`, of a network on another cohort.

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
        """Results of a cross-validation: every test patient as judged in the fold that left them out.

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
        predictions["target"] = self.target.name
        return Results(predictions=predictions, metrics=self._metrics(studies, ("test",), folds), learnt=folds)

    def _metrics(self, studies: pd.DataFrame, splits: Sequence[str], learnt: PostProcessing | Folds) -> dict[str, Any]:
        """Content of metrics.json for the studies in these splits."""
        parts = {split: patient_predictions(studies[studies["split"] == split], learnt) for split in splits}
        measured = {split: self.measured(patients) for split, patients in parts.items()}
        test, tested = parts["test"], studies[studies["split"] == "test"]
        baselines, known_logits = self._baselines(parts, learnt)
        said = learnt.to_metrics()
        metrics: dict[str, Any] = {
            "target": self.target.to_dict(),
            "settings": {name: getattr(self, name) for name in ("confidence", "bootstrap", "seed", "minimum_group")},
            "splits": {split: count_patients(studies[studies["split"] == split]) for split in ("train", *splits)},
            **measured,
            "confusion": {split: confusion_counts(patients) for split, patients in parts.items()},
            "predictive_values": predictive_values(
                measured["test"]["sensitivity"], measured["test"]["specificity"], self.prevalences
            ),
            "operating_point": said["operating_point"],
            "calibration": {
                **said["calibration"],
                "raw": {split: self.raw_calibration(patients) for split, patients in parts.items()},
            },
            "baselines": baselines,
            "comparisons": self._comparisons(test, known_logits),
            "decision_curves": self._decision_curves(test, learnt),
            "subgroups": self.subgroup_metrics(tested, learnt, self.subgroups, self.age_bands),
            "sensitivity_analyses": self.sensitivity_analyses(tested, learnt, self.without),
            "conformal": {
                **said["conformal"],
                **{
                    split: observed_sets(
                        classes(patients),
                        patients["prediction_set"].tolist(),
                        confidence=self.confidence,
                        classes=self.target.classes,
                    )
                    for split, patients in parts.items()
                },
            },
            "curves": {split: self.curves(patients) for split, patients in parts.items()},
        }
        area = measured["test"]["auroc"]
        interval = "" if area["low"] is None else f" ({area['low']:.2f} to {area['high']:.2f})"
        logger.info("Test ROC-AUC %.2f%s, n = %d patients", area["value"], interval, area["n"])
        return metrics

    def _learn(self, studies: pd.DataFrame) -> PostProcessing:
        """Post-processing. Test patients are dropped on the first line, so nothing below can depend on them."""
        seen = per_patient(studies[studies["split"] != "test"])
        validation = seen[seen["split"] == "validation"]
        labels, logits = classes(validation), scores(validation)
        line = partial(Calibrator.fit, method=self.calibration, prevalence=float(np.mean(classes(seen))))
        calibrator = line(logits, labels)
        probabilities = calibrator(logits)
        choice: dict[str, Any] = {"rule": self.operating_point, "target": self.operating_target}
        tumour = tuple(sorted(str(column) for column in seen if str(column).startswith("feature ")))
        columns = {**_BASELINES, **({"features": tumour} if tumour else {})}
        baselines = {name: fit_baseline(seen, columns, **choice) for name, columns in columns.items()}
        baselines.setdefault("features", "no table of tumour features was given")
        # A logit of the network is too good on training patients.
        fitted = {"fitted_on": "validation", **choice}
        for column in branch_logits_in(seen):
            baselines[column.removeprefix("logit_")] = fit_baseline(seen, [column], line=line, **fitted)
        baselines["model_age"] = fit_baseline(seen, ["logit", "age_years"], **fitted)
        return PostProcessing(
            calibrator=calibrator,
            operating_point=OperatingPoint.choose(labels, probabilities, **choice),
            conformal=ConformalSets.fit(labels, probabilities, coverage=self.coverage),
            baselines=baselines,
            method=self.calibration,
            target=self.target,
        )

    def _baselines(
        self, parts: Mapping[str, pd.DataFrame], learnt: PostProcessing | Folds
    ) -> tuple[dict[str, Any], dict[str, pd.Series[Any]]]:
        """Entries of metrics.json, and the log-odds of the test patients whom each baseline knows."""
        entries: dict[str, Any] = {}
        known_logits: dict[str, pd.Series[Any]] = {}
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
                entries[name][split] = self.measured(
                    known.assign(logit=logits, probability=expit(logits), predicted=baseline.called(known))
                )
                if split == "test":
                    known_logits[name] = pd.Series(logits, index=known.index)
        return entries, known_logits

    def _comparisons(self, test: pd.DataFrame, baselines: Mapping[str, pd.Series[Any]]) -> dict[str, Any]:
        known = {"model": test["logit"], **baselines}
        entries: dict[str, Any] = {}
        for name, (first, second) in _COMPARISONS.items():
            if first not in known or second not in known:
                entries[name] = {"why": f"no baseline {first if first not in known else second} on these patients"}
                continue
            both = known[first].index.intersection(known[second].index)
            labels = classes(test.loc[both])
            if len(set(labels)) < 2:
                entries[name] = {"why": "fewer than two classes among patients whom both know"}
                continue
            pair = (known[one].loc[both].to_numpy(dtype=float) for one in (first, second))
            entries[name] = compare_auroc(labels, *pair, confidence=self.confidence)
        return entries

    def _decision_curves(self, test: pd.DataFrame, learnt: PostProcessing | Folds) -> dict[str, Any]:
        """Curves on the same patients for all strategies: those whose age is known, if age is one."""
        age = learnt.baselines["age"]
        patients, strategies = test, {}
        if not isinstance(age, str) and len(age.known(test)):
            patients = age.known(test)
            strategies["age"] = expit(np.asarray(age.logits(patients), dtype=float))
        labels = classes(patients)
        strategies = {"model": scores(patients, "probability"), **strategies}
        return decision_curves(labels, strategies, resamples=self.resamples(labels))
