"""What a run remembers of its training studies, for its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from idh_lightning.cohort import Fault, Study
from idh_lightning.data import IDHDataModule
from idh_lightning.machine import map_in_threads
from idh_lightning.models import StemTailNetwork
from idh_lightning.ood.descriptor import StudyDescriptor, study_descriptor
from idh_lightning.ood.detector import OutOfDistributionDetector

MOST_STUDIES = 100
"""Training studies that are looked at: a covariance needs no more, and the stem takes time."""


def fit_ood_detector(
    network: StemTailNetwork, data: IDHDataModule, faults: Iterable[Fault]
) -> OutOfDistributionDetector | None:
    """Return what the training studies of a run look like, with limits from its validation studies.

    Args:
        network: With its final stem.
        data: Its studies are prepared.
        faults: Found when they were; they tell whose skull is still there.

    Returns:
        None where there are fewer than two training or validation studies.
    """
    chosen = _evenly(data.studies["train"], MOST_STUDIES)
    validation = _evenly(data.studies["validation"], MOST_STUDIES)
    if min(len(chosen), len(validation)) < 2:
        return None
    with_skull = {fault.study_id for fault in faults if fault.check == "skull_not_stripped"}

    def looks(studies: Sequence[Study]) -> list[StudyDescriptor]:
        return map_in_threads(lambda study: study_descriptor(data.store.open(study), network), studies)

    return OutOfDistributionDetector.learn(
        looks(chosen),
        looks(validation),
        sequences=data.store.sequences,
        stripped=sum(study.study_id not in with_skull for study in chosen) / len(chosen),
    )


def _evenly(studies: Sequence[Study], most: int) -> list[Study]:
    return list(studies[:: max(1, math.ceil(len(studies) / most))])
