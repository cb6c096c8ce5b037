"""Post-processing of logits: calibration, operating point, prediction sets and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from idh_lightning.evaluation.baselines import Baseline
from idh_lightning.evaluation.calibration import CalibrationMethod, Calibrator
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.evaluation.records import Record

DECISIONS = ("raw_probability", "probability", "predicted", "prediction_set")
"""Columns that follow from a logit."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing(Record):
    """Post-processing learnt from training and validation patients, never from test patients.

    It goes into the checkpoint as primitives and is used unchanged wherever the network is used after.

    Attributes:
        calibrator: Logits -> probabilities.
        operating_point: Probabilities -> classes.
        conformal: Probabilities -> sets of classes.
        baselines: Name -> baseline, or the reason why there is none.
        method: Of the calibration, for the record.
    """

    calibrator: Calibrator
    operating_point: OperatingPoint
    conformal: ConformalSets
    baselines: Mapping[str, Baseline | str]
    method: CalibrationMethod = "platt"

    def apply(self, logits: npt.ArrayLike) -> pd.DataFrame:
        """Columns raw_probability, probability, predicted and prediction_set of each logit, one row each."""
        probability = self.calibrator(logits)
        raw = expit(np.asarray(logits, dtype=float))
        decided = (raw, probability, self.operating_point(probability), self.conformal.names(probability))
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
