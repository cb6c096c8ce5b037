"""Prediction for one study, and the tables of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from idh_lightning.cohort import IDH, Target
from idh_lightning.files import write_json, write_text
from idh_lightning.inference.ensemble import Ensemble

Status = Literal["answered", "flagged", "withheld", "failed"]

COLUMNS = (
    "study_id", "status", "probability", "low", "high", "decision", "prediction_set", "tumour_ml", "unlike", "reason",
    "warnings", "map", "tumour", "page", "elapsed_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StudyPrediction:
    """Prediction for one study.

    Attributes:
        study_id: Its name.
        status: "answered"; "flagged" where a warning says that it is unlike the training studies; "withheld" where
            it is so far from them, or so doubtful, that no number is given; "failed" where its files cannot be used.
        target: What is predicted.
        probability: Calibrated, of the positive class; None where withheld or failed, as all of the following.
        low: Lower end of the interval; see `combined`.
        high: Upper end.
        decision: Name of a class, such as "mutant" or "wildtype", at the operating point of the checkpoint.
        prediction_set: Name of a class, "both" (not certain) or "none" (unlike either); None where `unlike` is not
            empty, since such a set covers only studies like those that it was calibrated on.
        unlike: The checks by which it is unlike the training studies, or could not be compared with them.
        reasons: Why there is no answer.
        warnings: What to know about the answer.
        members: Probability by each checkpoint.
        tumour_ml: Volume of the tumour as the network found it, also where the number is withheld; None where no member
            of the ensemble segments.
        map_file: NIfTI on the grid of the study's own FLAIR, or None.
        tumour_file: The tumour found, 0 and 1, on the same grid, or None.
        page: study.html, or None.
        files: Sequence -> image that the network has seen.
        elapsed_s: Wall clock, with its share of the preparation.
    """

    study_id: str
    status: Status
    target: Target = IDH
    probability: float | None = None
    low: float | None = None
    high: float | None = None
    decision: str | None = None
    prediction_set: str | None = None
    unlike: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    members: tuple[float, ...] = ()
    tumour_ml: float | None = None
    map_file: Path | None = None
    tumour_file: Path | None = None
    page: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def given(self) -> bool:
        """Whether there is a number."""
        return self.probability is not None


def write_tables(answers: Sequence[StudyPrediction], ensemble: Ensemble, confidence: float, output: Path) -> None:
    """Write predictions.csv, for people, and predictions.json, for machines."""

    def name(path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(output))

    rows = [
        {
            "study_id": one.study_id,
            "status": one.status,
            "probability": one.probability,
            "low": one.low,
            "high": one.high,
            "decision": one.decision,
            "prediction_set": one.prediction_set,
            "tumour_ml": None if one.tumour_ml is None else round(one.tumour_ml, 2),
            "unlike": list(one.unlike),
            "reason": list(one.reasons),
            "warnings": list(one.warnings),
            "map": name(one.map_file),
            "tumour": name(one.tumour_file),
            "page": name(one.page),
            "elapsed_s": round(one.elapsed_s, 3),
        }
        for one in answers
    ]
    table = pd.DataFrame(rows)
    for column in ("unlike", "reason", "warnings"):
        table[column] = table[column].map(" | ".join)
    write_text(output / "predictions.csv", table.reindex(columns=list(COLUMNS)).to_csv(index=False))
    content = {
        "checkpoints": [str(member.file) for member in ensemble.members],
        "notices": ensemble.notices,
        "target": ensemble.target.to_dict(),
        "sequences": list(ensemble.sequences),
        "threshold": ensemble.threshold,
        "confidence": confidence,
        "coverage": ensemble.coverage,
        "studies": [
            {**row, "members": list(one.members), "files": {name: str(file) for name, file in one.files.items()}}
            for row, one in zip(rows, answers, strict=True)
        ],
    }
    write_json(output / "predictions.json", content)
