"""All that an evaluation learns, and a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from idh_lightning.evaluation.baselines import Baseline
from idh_lightning.evaluation.calibration import CalibrationMethod, Calibrator
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint

DECISIONS = ("raw_probability", "probability", "predicted", "prediction_set")
"""Columns that follow from a logit."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """All that an evaluation learns: from training and validation patients, never from test patients.

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
        """Return raw_probability, probability, predicted and prediction_set of each logit, one row each."""
        probability = self.calibrator(logits)
        raw = expit(np.asarray(logits, dtype=float))
        decided = (raw, probability, self.operating_point(probability), self.conformal.names(probability))
        return pd.DataFrame(dict(zip(DECISIONS, decided, strict=True)))

    def decide(self, patients: pd.DataFrame) -> pd.DataFrame:
        """Return what `apply` says of the column logit, on the index of the patients."""
        return self.apply(patients["logit"]).set_index(patients.index)

    def to_metrics(self) -> dict[str, Any]:
        """Return the entries of metrics.json that say what was learnt: operating_point, calibration, conformal."""
        return {
            "operating_point": self.operating_point.to_dict(),
            "calibration": {
                "method": self.method,
                **self.calibrator.to_dict(),
                "temperature": 1 / self.calibrator.slope,
                "split": "validation",
                "n": self.operating_point.n,
            },
            "conformal": self.conformal.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return primitives, for a checkpoint."""
        return {
            "calibrator": self.calibrator.to_dict(),
            "operating_point": self.operating_point.to_dict(),
            "conformal": self.conformal.to_dict(),
            "baselines": {
                name: found if isinstance(found, str) else found.to_dict() for name, found in self.baselines.items()
            },
            "method": self.method,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described."""
        return cls(
            calibrator=Calibrator.from_dict(state["calibrator"]),
            operating_point=OperatingPoint.from_dict(state["operating_point"]),
            conformal=ConformalSets.from_dict(state["conformal"]),
            baselines={
                name: found if isinstance(found, str) else Baseline.from_dict(found)
                for name, found in state["baselines"].items()
            },
            method=state.get("method", "platt"),
        )

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Return what a run learnt from its metrics.json, which is smaller than its checkpoint."""
        conformal = metrics["conformal"]
        return cls(
            calibrator=Calibrator.from_dict(metrics["calibration"]),
            operating_point=OperatingPoint.from_dict(
                {field.name: metrics["operating_point"][field.name] for field in fields(OperatingPoint)}
            ),
            conformal=ConformalSets.from_dict({field.name: conformal[field.name] for field in fields(ConformalSets)}),
            baselines={
                name: found["why"] if "why" in found else Baseline.from_dict(found)
                for name, found in metrics["baselines"].items()
            },
            method=metrics["calibration"]["method"],
        )
