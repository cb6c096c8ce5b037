"""TorchIO subjects that read from the volume store, and how they become batches."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import DataLoader

from idh_lightning.cohort import Study
from idh_lightning.data.workers import begin_worker
from idh_lightning.machine import map_in_threads
from idh_lightning.volumes import StoredVolume

_DRAWING = threading.Lock()


class Batch(NamedTuple):
    """Input of the network.

    Attributes:
        volumes: [B, C, D, H, W], float32, z-normalised within the brain; D to superior, H to posterior, W to left.
        labels: [B], int64; 0 wildtype, 1 mutant.
        study_ids: B names.
    """

    volumes: Tensor
    labels: Tensor
    study_ids: list[str]


class _StoredImage(tio.ScalarImage):  # type: ignore[misc]
    """The sequences of a study, which stay in memory as their reader gives them.

    TorchIO's own way to load turns the axes over in memory, and every batch turns them back: 0.15 s a study at 128^3.
    """

    def load(self) -> None:
        """Read the image, once."""
        if not self._loaded:
            data, self.affine = self.read_and_check(self.path)
            self.set_data(data)


def whole_volume(subject: tio.Subject) -> Iterator[tio.Subject]:
    """Sampler of a queue: yields the subject itself, once, and no copy of it."""
    yield subject


class SeededSubjects(tio.SubjectsDataset):  # type: ignore[misc]  # TorchIO has no type information
    """TorchIO's data set, with the random numbers of each item fixed by the draw that asks for it."""

    def __getitem__(self, index: int) -> tio.Subject:
        """Return a subject; where the index carries a seed, its augmentation is a function of that seed.

        May be called from several threads. Random numbers belong to the whole process, so that one at a time draws.
        """
        seed, transform = getattr(index, "seed", None), self._transform
        if seed is None or transform is None:
            return super().__getitem__(index)
        subject = copy.deepcopy(self._subjects[index])
        subject.load()
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if not getattr(transform, "fused", False):
                return transform(subject)
            change = transform.drawn(subject)
        return change(subject)


class StudyQueue(tio.Queue):  # type: ignore[misc]
    """TorchIO's queue; without worker processes, each core of this one reads and augments a study."""

    def _get_subjects_iterable(self) -> Iterator[tio.Subject]:
        self._num_sampled_subjects = 0
        if self.num_workers:
            loader = DataLoader(
                self.subjects_dataset,
                sampler=self.subject_sampler,
                collate_fn=self._get_first_item,
                num_workers=self.num_workers,
                worker_init_fn=begin_worker,
            )
            return iter(loader)
        return self._by_threads()

    def _by_threads(self) -> Iterator[tio.Subject]:
        draws = iter(self.subject_sampler)
        while some := list(islice(draws, torch.get_num_threads())):
            yield from map_in_threads(self.subjects_dataset.__getitem__, some)


def to_subject(stored: StoredVolume, study: Study) -> tio.Subject:
    """TorchIO subject of a study, whose voxels are read when needed."""
    reader = partial(_read_stored, affine_ras=np.asarray(stored.affine_ras))
    image = _StoredImage(path=cast(np.memmap[Any, Any], stored.image).filename, reader=reader)
    return tio.Subject(image=image, label=study.label, study_id=study.study_id)


def collate(subjects: Sequence[tio.Subject]) -> Batch:
    """Stack subjects into a batch, back in the order [D, H, W]."""
    volumes = torch.stack([_from_torchio(one["image"].data) for one in subjects])
    labels = torch.tensor([int(one["label"]) for one in subjects], dtype=torch.int64)
    return Batch(volumes, labels, [str(one["study_id"]) for one in subjects])


def _read_stored(path: Path, *, affine_ras: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Read the image of the store as TorchIO wants it: [C, W, H, D], float32, and the affine in RAS."""
    # "c" for a private copy of what is changed, which nothing is.
    return torch.from_numpy(np.load(path, mmap_mode="c")).float().permute(0, 3, 2, 1), affine_ras


def _from_torchio(data: Any) -> Tensor:
    return torch.as_tensor(data).permute(0, 3, 2, 1).float().contiguous()
