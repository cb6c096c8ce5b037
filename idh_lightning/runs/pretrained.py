"""The network in the package: weights learnt from synthetic patients, and all else that a checkpoint of it holds."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from idh_lightning.checkpoint import CHECKPOINT_FORMAT, DESCRIPTION, Checkpoint
from idh_lightning.cohort import SEQUENCES, DevelopmentPatients, Study
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import EvaluationError, ModelError
from idh_lightning.evaluation import Calibrator, DevelopmentCohort, PostProcessing, covariate_summary
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.evaluation.shift import study_covariates
from idh_lightning.files import write_text
from idh_lightning.inference import line_covariance
from idh_lightning.machine import map_in_threads
from idh_lightning.models import VotingNetwork
from idh_lightning.models.segmentation import PRETRAINED, TumourSegmenter, load_segmenter, save_segmenter
from idh_lightning.ood import OutOfDistributionDetector, StudyDescriptor, volume_descriptor

LEAST_DRAWN = 20
"""Synthetic studies with all sequences that the detector is fitted on, at least: half of them set its limits."""

LEAST_CALIBRATING = 10
"""Real patients that a calibration line is fitted on, at least."""

COVERAGE = 0.9

ONE_OF = ("FLAIR", "T2")
"""Sequences of which one was always there in training: oedema is hardly seen on the others."""

_DIGITS = 6
_NO_BASELINE = "not known of a network that learnt from synthetic patients"


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnStudy:
    """Synthetic study as the segmenter was taught by: randomised, on the grid of the network.

    Attributes:
        image: [C, D, H, W], z-scores within the brain, 0 outside it and in a missing sequence.
        mask: [D, H, W], non-zero in the tumour.
        brain: [D, H, W], non-zero in the brain.
        label: 0 wildtype, 1 mutant.
        spacing_mm: Voxel size of the grid along D, H, W.
        native_spacing_mm: Voxel size that its images came with.
    """

    image: NDArray[np.floating]
    mask: NDArray[np.integer]
    brain: NDArray[np.integer]
    label: int
    spacing_mm: Sequence[float]
    native_spacing_mm: Sequence[float]

    @property
    def complete(self) -> bool:
        """Whether every sequence is there."""
        return all(np.any(channel) for channel in self.image)


def write_pretrained(
    folder: Path,
    segmenter: TumourSegmenter,
    drawn: Sequence[DrawnStudy],
    *,
    card: str,
) -> None:
    """Write the weights and the description of a shipped network, which `Checkpoint.pretrained` reads.

    Args:
        folder: For locator.safetensors and pretrained.json; in the package it is `PRETRAINED.parent`.
        segmenter: With its final weights.
        drawn: Some hundred synthetic studies, drawn as those that taught it.
        card: Text of its model card.

    Raises:
        ModelError: If too few studies are drawn.
    """
    file = folder / PRETRAINED.name
    save_segmenter(segmenter, file, {})
    content = describe_pretrained(load_segmenter(file), drawn, card=card)  # as it predicts, in half precision
    content["weights_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    _write(folder, content)


def describe_pretrained(segmenter: TumourSegmenter, drawn: Sequence[DrawnStudy], *, card: str) -> dict[str, Any]:
    """Content of pretrained.json but for the checksum of the weights: not calibrated, threshold 0.5.

    The out-of-distribution detector is fitted on every other study that has all sequences, its limits on the others.

    Raises:
        ModelError: If too few studies are drawn.
    """
    whole = [study for study in drawn if study.complete]
    if len(whole) < LEAST_DRAWN:
        raise ModelError(
            f"pretrained: found {len(whole)} synthetic studies with all sequences; expected at least {LEAST_DRAWN} to "
            "fit the out-of-distribution detector on. Draw more."
        )
    network = VotingNetwork(locator=segmenter.eval())

    def looks(studies: Sequence[DrawnStudy]) -> list[StudyDescriptor]:
        return map_in_threads(lambda study: _descriptor(study, network), studies)

    detector = OutOfDistributionDetector.learn(looks(whole[::2]), looks(whole[1::2]), sequences=SEQUENCES)
    post_processing = PostProcessing(
        calibrator=Calibrator(),
        operating_point=OperatingPoint(
            threshold=0.5, rule="fixed", target=None, sensitivity=None, specificity=None, n=0, split="no"
        ),
        conformal=ConformalSets(coverage=COVERAGE, wildtype=None, mutant=None, n_wildtype=0, n_mutant=0),
        baselines=dict.fromkeys(("age", "age_sex", "features", "model_age"), _NO_BASELINE),
        method="none",
    )
    return {
        "format": CHECKPOINT_FORMAT,
        "recipe": {
            "model": {"_target_": "idh_lightning.models.VotingNetwork"},
            "objective": {"_target_": "idh_lightning.objectives.CrossEntropy"},
            "preprocessing": _preprocessing(),
            "explain": {"_target_": "idh_lightning.attribution.DenseVote"},
            "sequences": list(SEQUENCES),
            "one_of": list(ONE_OF),
            "cohort": "synthetic patients",
            "weights": {"requested": "pretrained", "source": PRETRAINED.name, "note": _notice("")},
            "seed": 0,
            "fold": 0,
        },
        "ood_detector": detector.to_dict(),
        "post_processing": post_processing.to_dict(),
        "calibration_covariance": np.zeros((2, 2)).tolist(),
        "development": _development(drawn).to_dict(),
        "model_card": card,
        "notice": _notice(""),
    }


def calibrate_pretrained(folder: Path, predictions: Path, named: str) -> None:
    """Fit calibration, threshold and prediction sets of a written network on real patients, and write them beside it.

    Args:
        folder: As `write_pretrained` left it.
        predictions: predictions.csv of `evaluate checkpoint=pretrained`: study_id, patient_id, label, logit.
        named: Where these patients are from, for people.

    Raises:
        CheckpointError: If there is no such network.
        EvaluationError: If the table lacks a column, has too few patients or one class.
    """
    Checkpoint.pretrained(folder)  # which refuses a damaged one
    content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    patients = _patients(predictions)
    labels, logits = patients["label"].to_numpy(dtype=np.int64), patients["logit"].to_numpy(dtype=float)
    calibrator = Calibrator.fit(logits, labels)
    probabilities = calibrator(logits)
    point = OperatingPoint.choose(labels, probabilities).to_dict() | {"split": "calibration"}
    content["post_processing"] |= {
        "calibrator": calibrator.to_dict(),
        "operating_point": point,
        "conformal": ConformalSets.fit(labels, probabilities, coverage=COVERAGE).to_dict(),
        "method": "platt",
    }
    content["calibration_covariance"] = line_covariance(logits, labels, calibrator)
    content["development"]["seen"] = _seen(list(patients.index)).to_dict()
    content["notice"] = _notice(f"{len(patients)} real patients ({named or predictions.name})")
    content["recipe"]["weights"]["note"] = content["notice"]
    _write(folder, content)


def _notice(calibrated_on: str) -> str:
    calibrated = f"calibrated on {calibrated_on}" if calibrated_on else "not calibrated on real ones"
    return f"Learnt from synthetic patients only; {calibrated}."


def _patients(predictions: Path) -> pd.DataFrame:
    """Label and mean logit of each patient, on patient_id."""
    table = pd.read_csv(predictions, dtype={"study_id": str, "patient_id": str})
    absent = [name for name in ("patient_id", "label", "logit") if name not in table]
    if absent:
        raise EvaluationError(
            f"{predictions}: has no column {', '.join(absent)}; expected the predictions.csv of a labelled cohort. "
            "Make it: python -m idh_lightning.evaluate checkpoint=pretrained cohort=table cohort.table=TABLE"
        )
    patients = table.groupby("patient_id")[["label", "logit"]].mean()
    if len(patients) < LEAST_CALIBRATING or patients["label"].value_counts().reindex([0, 1]).fillna(0).min() < 2:
        raise EvaluationError(
            f"{predictions}: {len(patients)} patients, {int(patients['label'].sum())} of them mutant; expected at "
            f"least {LEAST_CALIBRATING}, and two of either kind, to calibrate on. Give a larger table."
        )
    return patients


def _descriptor(study: DrawnStudy, network: VotingNetwork) -> StudyDescriptor:
    return volume_descriptor(
        np.asarray(study.image, dtype=np.float16).astype(np.float32),  # as volumes are stored
        np.asarray(study.brain) > 0,
        network,
        spacing_mm=study.spacing_mm,
        native_spacing_mm=study.native_spacing_mm,
    )


def _development(drawn: Sequence[DrawnStudy]) -> DevelopmentCohort:
    rows = [
        study_covariates(
            np.asarray(study.image),
            np.asarray(study.brain),
            np.asarray(study.mask),
            sequences=SEQUENCES,
            spacing_mm=study.spacing_mm,
            native_spacing_mm=study.native_spacing_mm,
        )
        for study in drawn
    ]
    names = [f"drawn-{index}" for index in range(len(drawn))]
    cohort = pd.DataFrame({"study_id": names, "patient_id": names, "label": [study.label for study in drawn]})
    return DevelopmentCohort(
        cohort="synthetic patients",
        seen=_seen([]),
        covariates=covariate_summary(cohort, pd.DataFrame(rows).assign(study_id=names)),
        confidence=0.95,
        test={},
    )


def _seen(patients: Sequence[str]) -> DevelopmentPatients:
    """Patients of the calibration, known by their identifiers alone: as validation patients, who decide no weight."""
    if not patients:
        return DevelopmentPatients(salt=secrets.token_hex(16), patients={}, images={})
    studies = [Study(study_id=name, patient_id=name, label=0, files={}) for name in patients]
    return DevelopmentPatients.of(studies, dict.fromkeys(patients, "validation"), dict.fromkeys(patients, ()))


def _preprocessing() -> dict[str, Any]:
    """Settings of conf/data/volumes.yaml, where a sequence may be missing."""
    data = OmegaConf.load(CONF_DIR / "data" / "volumes.yaml")
    config = OmegaConf.merge(OmegaConf.create({"data": data}), {"data": {"missing": "zero"}})
    plain: dict[str, Any] = OmegaConf.to_container(config.data.preprocessing, resolve=True)  # type: ignore[assignment]
    return plain


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write pretrained.json, one line for each part."""
    lines = [f"{json.dumps(name)}: {json.dumps(_rounded(part), allow_nan=False)}" for name, part in content.items()]
    write_text(folder / DESCRIPTION, "{\n" + ",\n".join(lines) + "\n}\n")


def _rounded(value: Any) -> Any:
    """Primitives of tensors, numbers and containers, to six digits."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{_DIGITS}g}")
    return value
