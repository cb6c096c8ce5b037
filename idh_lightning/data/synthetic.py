"""Synthetic gliomas rendered as they are asked for, never the same twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.data.tumours import TumourSample
from idh_lightning.phantom import draw_signs, render_study
from idh_lightning.volumes import Preprocessing
from idh_lightning.volumes.randomisation import Randomisation
from idh_lightning.volumes.reading import Geometry

_Patient = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], int]
"""Image [C, D, H, W], mask and brain [D, H, W], and label."""


@dataclass(kw_only=True, eq=False)
class SyntheticGliomas(Dataset[TumourSample]):
    """Dataset of synthetic gliomas, each item a function of the seed and its index; half are IDH-mutant.

    To render a patient takes longer than to learn from it. So a patient is rendered once, stays for a while among the
    latest `window` ones, and is drawn from these `views` times on average, under another randomisation each time.

    Attributes:
        length: Number of items.
        seed: Of all that is drawn.
        preprocessing: As of real studies.
        randomisation: Of the volumes; None for none.
        views: Items for each patient that is rendered.
        window: Number of the latest patients that an item is drawn from.
        spacing_mm: Voxel size of the images that are rendered.
    """

    length: int
    seed: int
    preprocessing: Preprocessing
    randomisation: Randomisation | None = field(default_factory=Randomisation)
    views: int = 4
    window: int = 64
    spacing_mm: float = 2.0
    _latest: dict[int, _Patient] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TumourSample:
        """Item of an index; the same one whoever asks, and however often."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, 0, index])
        newest = index // self.views
        number = int(rng.integers(max(0, newest - self.window + 1), newest + 1))
        image, mask, brain, label = self._patient(number)
        volume, tumour, inside = (torch.from_numpy(one.astype(np.float32)) for one in (image, mask, brain))
        if self.randomisation is not None:
            volume, tumour, inside = self.randomisation(volume, tumour, inside, rng)
        return TumourSample(volume, tumour, inside, label)

    def _patient(self, number: int) -> _Patient:
        if number not in self._latest:
            if len(self._latest) > 2 * self.window:
                del self._latest[min(self._latest)]
            self._latest[number] = self._rendered(np.random.default_rng([self.seed, 1, number]))
        return self._latest[number]

    def _rendered(self, rng: np.random.Generator) -> _Patient:
        label = int(rng.random() < 0.5)
        signs = draw_signs(label, rng)
        patient, study = (np.random.SeedSequence(int(one)) for one in rng.integers(2**62, size=2))
        images = render_study(signs, spacing_mm=self.spacing_mm, patient_seed=patient, study_seed=study)
        brain = images.sequences["FLAIR"] > 0
        arrays = {name: images.sequences[name].astype(np.float32) for name in SEQUENCES}
        depth, height, width = images.grid.shape
        z, y, x = images.grid.origin_mm
        grid = Geometry((width, height, depth), (self.spacing_mm,) * 3, (x, y, z), tuple(np.eye(3).ravel().tolist()))
        image, mask, inside, _ = self.preprocessing.normalised(arrays, images.labels, brain, grid)
        assert mask is not None
        return image, mask, inside, label
