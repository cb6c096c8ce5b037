"""Studies with what is known of their tumours, for the locator: drawn in balance, randomised, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.data.sampler import ClassBalancedSampler
from idh_lightning.volumes import StoredVolume, VolumeStore
from idh_lightning.volumes.randomisation import Randomisation


class TumourSample(NamedTuple):
    """Volumes, masks and labels for the training of a locator, of one study or a batch of them.

    Attributes:
        volumes: [4, D, H, W], z-scores within the brain, float32 like all but the labels; absent sequences are 0.
        masks: [D, H, W], 1 in tumour; NaN throughout where there is no mask.
        brains: [D, H, W], 1 in the brain.
        labels: 0 wildtype, 1 mutant.
    """

    volumes: Tensor
    masks: Tensor
    brains: Tensor
    labels: int | Tensor


class RandomisedStudies(Dataset[TumourSample]):
    """Dataset of studies of a store, half of the draws IDH-mutant, each item a function of the seed and its index."""

    def __init__(
        self, studies: Sequence[Study], store: VolumeStore, *, length: int, seed: int, randomisation: Randomisation
    ) -> None:
        """Draw `length` studies; which ones is a `ClassBalancedSampler`'s choice, epoch after epoch."""
        self.studies, self.store, self.seed, self.randomisation = studies, store, seed, randomisation
        labels = [study.label for study in studies]
        epochs = (ClassBalancedSampler(labels, seed=seed, epoch=epoch) for epoch in count())
        self.draws = list(islice((int(draw) for epoch in epochs for draw in epoch), length))

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> TumourSample:
        """Study of a draw under a randomisation of its own."""
        study = self.studies[self.draws[index]]
        volume, mask, brain, label = tumour_sample(self.store.open(study), study, self.store.sequences)
        known = not torch.isnan(mask).any()
        rng = np.random.default_rng([self.seed, index])
        volume, moved, brain = self.randomisation(volume, torch.nan_to_num(mask), brain, rng)
        return TumourSample(volume, moved if known else torch.full_like(moved, torch.nan), brain, label)


def tumour_sample(stored: StoredVolume, study: Study, sequences: Sequence[str]) -> TumourSample:
    """Sample of a stored study as it is."""
    volume = torch.zeros(len(SEQUENCES), *stored.brain.shape)
    for name, channel in zip(sequences, np.asarray(stored.image, dtype=np.float32), strict=True):
        volume[SEQUENCES.index(name)] = torch.from_numpy(channel)
    brain = torch.from_numpy(np.asarray(stored.brain, dtype=np.float32))
    mask = torch.full_like(brain, torch.nan)
    if stored.mask is not None:
        mask = torch.from_numpy((np.asarray(stored.mask) > 0).astype(np.float32))
    return TumourSample(volume, mask, brain, study.label)
