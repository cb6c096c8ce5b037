"""Covariates of studies, and the development cohort of a network, as its checkpoint carries it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import SimpleITK as sitk

from idh_lightning.cohort import DevelopmentPatients, Study
from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation.shift import covariate_summary, study_covariates
from idh_lightning.machine import map_in_threads
from idh_lightning.records import Record
from idh_lightning.volumes import StoredVolume, VolumeStore


def tumour_features(
    images: npt.NDArray[np.floating],
    mask: npt.NDArray[np.integer],
    *,
    sequences: Sequence[str],
    spacing_mm: Sequence[float],
) -> dict[str, float]:
    """First-order and shape features of the tumour of one study.

    Args:
        images: [C, D, H, W], normalised within the brain, so that intensities compare between patients.
        mask: [D, H, W] on the same grid; any non-zero voxel is tumour.
        sequences: [C], names of the channels.
        spacing_mm: Voxel size along D, H, W.

    Returns:
        `volume_ml`; `roundness` (area of the sphere of the same volume over that of the tumour, 1 for a sphere),
        `elongation` and `flatness` (ratios of principal axes, >= 1); `foci` (connected parts of at least 0.1 mL, at
        least 1); and for each sequence the mean, standard deviation, 10th and 90th percentile of the tumour.

    Raises:
        EvaluationError: If the mask is empty or the shapes do not fit.

    Source: SimpleITK's LabelShapeStatisticsImageFilter (Lehmann 2007, Insight Journal).
    """
    inside = np.asarray(mask) != 0
    if images.shape != (len(sequences), *inside.shape):
        raise EvaluationError(
            f"tumour features: images are {images.shape} with a mask of {inside.shape}; expected "
            f"{(len(sequences), *inside.shape)}. Give both on one grid, one channel per sequence."
        )
    if not inside.any():
        raise EvaluationError(
            "tumour features: the mask is empty; expected a tumour. Correct the mask or leave the study out."
        )
    tumour = sitk.GetImageFromArray(inside.astype(np.uint8))
    tumour.SetSpacing([float(size) for size in reversed(spacing_mm)])
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(tumour)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    parts = sitk.RelabelComponent(
        sitk.ConnectedComponent(tumour, True), minimumObjectSize=max(1, int(np.ceil(0.1 / voxel_ml)))
    )
    features = {
        "volume_ml": float(inside.sum()) * voxel_ml,
        "roundness": float(shape.GetRoundness(1)),
        "elongation": float(shape.GetElongation(1)),
        "flatness": float(shape.GetFlatness(1)),
        "foci": float(max(1, sitk.GetArrayViewFromImage(parts).max())),
    }
    for name, image in zip(sequences, images, strict=True):
        values = image[inside].astype(float)
        low, high = np.percentile(values, [10, 90])
        features |= {
            f"{name}_mean": float(values.mean()),
            f"{name}_sd": float(values.std()),
            f"{name}_p10": float(low),
            f"{name}_p90": float(high),
        }
    # A tumour of one slice or one voxel has no flatness; a ratio of 1 leaves it in the middle of the others.
    return {name: value if np.isfinite(value) else 1.0 for name, value in features.items()}


logger = logging.getLogger(__name__)


class ImageCovariates(NamedTuple):
    """Covariates of some studies, from their images and without a network.

    Attributes:
        features: study_id and the tumour features, of the studies with a mask that holds a tumour.
        covariates: study_id and what `study_covariates` gives, of every study.
        fingerprints: study_id -> hashes of the voxels of its images.
    """

    features: pd.DataFrame
    covariates: pd.DataFrame
    fingerprints: dict[str, list[str]]


def image_covariates(studies: Iterable[Study], store: VolumeStore) -> ImageCovariates:
    """Tumour features, covariates and fingerprints of some studies, from the volumes of a store."""
    listed = list(studies)
    found = map_in_threads(lambda study: _described(study, store), listed)
    features = [one.features for one in found if one.features]
    return ImageCovariates(
        features=pd.DataFrame(features, columns=None if features else ["study_id"]),
        covariates=pd.DataFrame([one.covariates for one in found]),
        fingerprints={study.study_id: one.fingerprints for study, one in zip(listed, found, strict=True)},
    )


class _DescribedStudy(NamedTuple):
    features: dict[str, Any]
    covariates: dict[str, Any]
    fingerprints: list[str]


def _described(study: Study, store: VolumeStore) -> _DescribedStudy:
    stored = store.open(study)
    image = np.asarray(stored.image, dtype=np.float32)
    mask = None if stored.mask is None else np.asarray(stored.mask)
    covariates = study_covariates(
        image,
        np.asarray(stored.brain),
        mask,
        sequences=store.sequences,
        spacing_mm=stored.spacing_mm,
        native_spacing_mm=stored.geometry.spacing_mm,
    )
    features: dict[str, Any] = {}
    if mask is not None and mask.any():
        features = {"study_id": study.study_id, **_features(stored, image, mask, store.sequences)}
    elif mask is not None:
        logger.warning("Study %s: no tumour is left of its mask on the grid; it has no features.", study.study_id)
    return _DescribedStudy(features, {"study_id": study.study_id, **covariates}, list(stored.fingerprints.values()))


@dataclass(frozen=True, kw_only=True)
class DevelopmentCohort(Record):
    """The patients that a network was developed on, and how well it did there.

    Attributes:
        cohort: Its name.
        seen: Who they were, in hashes.
        covariates: Of the training patients, from `covariate_summary`.
        confidence: Of the intervals of `test`.
        test: metric -> statistic of the internal test patients.
    """

    cohort: str
    seen: DevelopmentPatients
    covariates: Mapping[str, Any]
    confidence: float
    test: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        studies: Sequence[Study],
        table: pd.DataFrame,
        described: ImageCovariates,
        metrics: Mapping[str, Any],
    ) -> Self:
        """Development cohort of a finished run."""
        splits = dict(zip(table["study_id"], table["split"], strict=True))
        return cls(
            cohort=name,
            seen=DevelopmentPatients.of(studies, splits, described.fingerprints),
            covariates=covariate_summary(table[table["split"] == "train"], described.covariates),
            confidence=float(metrics["settings"]["confidence"]),
            test=metrics["test"],
        )


def _features(stored: StoredVolume, image: Any, mask: Any, sequences: Sequence[str]) -> dict[str, float]:
    """Features; those of a missing sequence are unknown, not 0."""
    there = [channel for channel, present in enumerate(stored.presence) if present]
    return tumour_features(
        image[there], mask, sequences=[sequences[channel] for channel in there], spacing_mm=stored.spacing_mm
    )
