"""Fit of the out-of-distribution detector on the training studies of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from idh_lightning.cohort import Study
from idh_lightning.machine import map_in_threads
from idh_lightning.models import StemTailNetwork
from idh_lightning.ood.descriptor import StudyDescriptor, study_descriptor
from idh_lightning.ood.detector import OutOfDistributionDetector
from idh_lightning.volumes import VolumeStore

MOST_STUDIES = 100
"""Training studies that are looked at: a covariance needs no more, and the stem takes time."""


def fit_ood_detector(
    network: StemTailNetwork, store: VolumeStore, studies: Mapping[str, Sequence[Study]]
) -> OutOfDistributionDetector | None:
    """Out-of-distribution detector of the training studies, with limits from the validation studies.

    Args:
        network: With its final stem.
        store: Holds the studies.
        studies: Of train and validation.

    Returns:
        None where there are fewer than two training or validation studies.
    """
    chosen = _evenly(studies["train"], MOST_STUDIES)
    validation = _evenly(studies["validation"], MOST_STUDIES)
    if min(len(chosen), len(validation)) < 2:
        return None

    def looks(studies: Sequence[Study]) -> list[StudyDescriptor]:
        return map_in_threads(lambda study: study_descriptor(store.open(study), network), studies)

    return OutOfDistributionDetector.learn(
        looks(chosen),
        looks(validation),
        sequences=store.sequences,
    )


def _evenly(studies: Sequence[Study], most: int) -> list[Study]:
    return list(studies[:: max(1, math.ceil(len(studies) / most))])
