"""Post-processing of logits: calibration, operating point, prediction sets, and baselines without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit

from idh_lightning.cohort import IDH, Target
from idh_lightning.evaluation.calibration import CalibrationMethod, Calibrator
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint, Rule
from idh_lightning.evaluation.intervals import Floats, Integers
from idh_lightning.records import Record


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """A logistic regression, or a calibrated branch of the network, in primitives, with its own operating point.

    Attributes:
        columns: Columns of the patient table; none: the prevalence, the same for everyone.
        coefficients: One per column, in log-odds per unit of the column.
        intercept: Log-odds.
        fitted_on: The split.
        n: Number of patients it was fitted on: those of the split in whom every column is known.
        operating_point: Chosen on validation patients by the same rule as the network's.
    """

    columns: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    fitted_on: str
    n: int
    operating_point: OperatingPoint

    def known(self, patients: pd.DataFrame) -> pd.DataFrame:
        """Patients to whom it applies: all columns are known."""
        if not set(self.columns) <= set(patients.columns):
            return patients.iloc[:0]
        return patients.dropna(subset=list(self.columns))

    def logits(self, patients: pd.DataFrame) -> Floats:
        """Log-odds of mutant of each patient, [n]."""
        return _linear(patients, self.columns, self.coefficients, self.intercept)

    def called(self, patients: pd.DataFrame) -> Integers:
        """Classes of patients at the operating point, [n]."""
        return self.operating_point(expit(self.logits(patients)))


def fit_baseline(
    patients: pd.DataFrame,
    columns: Sequence[str],
    *,
    fitted_on: str = "train",
    line: Callable[[npt.ArrayLike, npt.ArrayLike], Calibrator] | None = None,
    rule: Rule = "youden",
    target: float | None = None,
) -> Baseline | str:
    """Baseline fitted on one split with its operating point from validation, or the reason why not.

    Columns are standardised and weights ridged with strength 1, which hardly matters for age on a hundred patients
    and keeps a dozen tumour features in bounds.

    Args:
        patients: From `per_patient`; split, label and the columns. No patient of the test split is looked at.
        columns: None of them: the prevalence.
        fitted_on: "train", or "validation" where a column is the network's logit, which is too good on training
            patients.
        line: Of a logit of the network, which is then the one column: calibrator from logits and labels, in place of a
            regression.
        rule: Of the operating point.
        target: See `rule`.
    """
    absent = [column for column in columns if column not in patients or patients[column].isna().all()]
    if absent:
        return f"unknown in this cohort: {', '.join(absent)}"
    known = patients.dropna(subset=list(columns))
    training, validation = known[known["split"] == fitted_on], known[known["split"] == "validation"]
    for name, rows in ((fitted_on, training), ("validation", validation)):
        if rows["label"].nunique() < 2:
            return f"fewer than two classes among the {name} patients in whom {', '.join(columns) or 'it'} is known"
    labels = training["label"].to_numpy(dtype=np.int64)
    coefficients: Floats
    if line is not None:
        (column,) = columns
        drawn = line(training[column], labels)
        coefficients, intercept = np.array([drawn.slope]), drawn.intercept
    elif columns:
        from sklearn.linear_model import LogisticRegression

        x = training[list(columns)].to_numpy(dtype=float)
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread[spread < 1e-12] = 1.0
        model = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / spread, labels)
        coefficients = model.coef_[0] / spread
        intercept = float(model.intercept_[0] - coefficients @ mean)
    else:
        coefficients, intercept = np.zeros(0), float(logit(labels.mean()))
    weights = tuple(float(weight) for weight in coefficients)
    return Baseline(
        columns=tuple(columns),
        coefficients=weights,
        intercept=intercept,
        fitted_on=fitted_on,
        n=len(training),
        operating_point=OperatingPoint.choose(
            validation["label"].to_numpy(dtype=np.int64),
            expit(_linear(validation, tuple(columns), weights, intercept)),
            rule=rule,
            target=target,
        ),
    )


def _linear(
    patients: pd.DataFrame, columns: tuple[str, ...], coefficients: tuple[float, ...], intercept: float
) -> Floats:
    # Summed column by column, so that the constant is exactly the same for everyone: matrix products may differ in
    # the last bit from row to row, which would break ties.
    total = np.full(len(patients), intercept)
    for column, coefficient in zip(columns, coefficients, strict=True):
        total = total + coefficient * patients[column].to_numpy(dtype=float)
    return total


DECISIONS = ("raw_probability", "probability", "predicted", "prediction_set")
"""Columns that follow from a logit."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing(Record):
    """Post-processing learnt from training and validation patients, never from test patients.

    It goes into the checkpoint as primitives and is used unchanged wherever the network is used after. One that names
    no target was stored before there were others than IDH.
    """

    calibrator: Calibrator
    operating_point: OperatingPoint
    conformal: ConformalSets
    baselines: Mapping[str, Baseline | str]
    method: CalibrationMethod = "platt"
    target: Target = IDH

    def apply(self, logits: npt.ArrayLike) -> pd.DataFrame:
        """Columns raw_probability, probability, predicted and prediction_set of each logit, one row each."""
        probability = self.calibrator(logits)
        raw = expit(np.asarray(logits, dtype=float))
        sets = self.conformal.names(probability, self.target.classes)
        decided = (raw, probability, self.operating_point(probability), sets)
        return pd.DataFrame(dict(zip(DECISIONS, decided, strict=True)))

    def decide(self, patients: pd.DataFrame) -> pd.DataFrame:
        """Decisions of `apply` for the column logit, on the index of the patients."""
        return self.apply(patients["logit"]).set_index(patients.index)

    def to_metrics(self) -> dict[str, Any]:
        """Entries of metrics.json that say what was learnt: operating_point, calibration, conformal."""
        return {
            "operating_point": self.operating_point.to_dict(),
            "calibration": {
                "method": self.method,
                **self.calibrator.to_dict(),
                "temperature": 1 / self.calibrator.slope,
                "split": self.operating_point.split,
                "n": self.operating_point.n,
            },
            "conformal": self.conformal.to_dict(),
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Post-processing of a run from its metrics.json, which is smaller than its checkpoint."""
        baselines = {name: found.get("why", found) for name, found in metrics["baselines"].items()}
        calibration = metrics["calibration"]
        return cls.from_dict(
            {**metrics, "calibrator": calibration, "baselines": baselines, "method": calibration["method"]}
        )
