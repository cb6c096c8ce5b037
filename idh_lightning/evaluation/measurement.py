"""Statistics of one group of patients, and the settings they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from idh_lightning.evaluation.calibration import calibration, reliability_curve
from idh_lightning.evaluation.discrimination import confusion, discrimination
from idh_lightning.evaluation.intervals import Bootstrap, Statistic


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Settings of every statistic of an evaluation.

    Attributes:
        bins: Of the reliability curve and the expected calibration error.
        bootstrap: Number of resamples.
        confidence: Of every interval.
        seed: Of the resamples.
        minimum_group: The fewest patients that a statistic of a subgroup may rest on.
    """

    bins: int = 5
    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 0
    minimum_group: int = 5

    def measured(self, patients: pd.DataFrame) -> dict[str, Statistic]:
        """Every statistic of `discrimination` and of `calibration`.

        Args:
            patients: One row each: label (both classes), logit, probability, predicted.
        """
        labels, predicted = (patients[name].to_numpy(dtype=np.int64) for name in ("label", "predicted"))
        logits, probabilities = (patients[name].to_numpy(dtype=float) for name in ("logit", "probability"))
        resamples = self.resamples(labels)
        return {
            **discrimination(labels, logits, predicted, resamples=resamples),
            **calibration(labels, probabilities, bins=self.bins, resamples=resamples),
        }

    def resamples(self, strata: npt.ArrayLike, people: npt.ArrayLike | None = None) -> Bootstrap:
        """Resamples of rows, stratified; rows of one of `people` stay together."""
        return Bootstrap.draw(
            strata, resamples=self.bootstrap, seed=self.seed, confidence=self.confidence, patients=people
        )

    def raw_calibration(self, patients: pd.DataFrame) -> dict[str, Statistic]:
        """Calibration statistics of the probabilities before calibration."""
        labels = patients["label"].to_numpy(dtype=np.int64)
        raw = patients["raw_probability"].to_numpy(dtype=float)
        return calibration(labels, raw, bins=self.bins, resamples=self.resamples(labels))

    def curves(self, patients: pd.DataFrame) -> dict[str, Any]:
        """ROC, precision-recall and reliability curves of patients."""
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


def count_patients(studies: pd.DataFrame) -> dict[str, int]:
    """Numbers of patients, of mutants among them and of studies."""
    mutants = studies.loc[studies["label"] == 1, "patient_id"]
    return {"n": studies["patient_id"].nunique(), "n_mutant": mutants.nunique(), "studies": len(studies)}


def confusion_counts(patients: pd.DataFrame) -> dict[str, int]:
    """Confusion matrix of patients: `tn`, `fp`, `fn`, `tp`."""
    labels, predicted = (patients[name].to_numpy(dtype=np.int64) for name in ("label", "predicted"))
    counts = confusion(labels, predicted, np.ones((1, len(labels))))
    return {cell: round(float(count[0])) for cell, count in counts.items()}
