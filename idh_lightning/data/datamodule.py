"""LightningDataModules over the volume store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import lightning
import torchio as tio
from torch import Tensor
from torch.utils.data import DataLoader

from idh_lightning.cohort import SPLITS, Study
from idh_lightning.data.sampler import ClassBalancedSampler
from idh_lightning.data.subjects import Batch, SeededSubjects, StudyQueue, collate, to_subject, whole_volume
from idh_lightning.data.workers import begin_worker
from idh_lightning.errors import SplitError
from idh_lightning.volumes import VolumeStore


class IDHDataModule(lightning.LightningDataModule):
    """Serves the studies of a cohort, split by patient, as batches of volumes.

    Training studies come out of a TorchIO queue that is filled by worker processes in the order of the class-balanced
    sampler; a new queue is made for every epoch (`trainer.reload_dataloaders_every_n_epochs: 1`), since its order is a
    function of (seed, epoch). Validation and test studies come as they are, in the order of the table.
    """

    needed: ClassVar[tuple[str, ...]] = SPLITS

    def __init__(
        self,
        *,
        studies: Mapping[str, Sequence[Study]],
        store: VolumeStore,
        augmentation: Callable[[tio.Subject], tio.Subject] | None,
        seed: int,
        batch_size: int = 4,
        queue_length: int = 16,
        workers: int = 0,
        mutant_fraction: float = 0.5,
    ) -> None:
        """Hold the settings.

        Args:
            studies: Split name -> studies; the names are train, validation and test.
            store: Already holds every study.
            augmentation: Applied to training subjects by the workers, or None.
            seed: Of the run.
            batch_size: Studies per batch, before gradient accumulation.
            queue_length: Augmented volumes that wait in memory.
            workers: Processes that read and augment; 0 does it in the training process.
            mutant_fraction: Share of mutants among the training draws.

        Raises:
            SplitError: If a split is absent or empty.
        """
        super().__init__()
        absent = [name for name in self.needed if not studies.get(name)]
        if absent:
            raise SplitError(f"split: no studies in {', '.join(absent)}; expected some in each. Change the split.")
        self.studies = {name: tuple(studies.get(name, ())) for name in SPLITS}
        self.store = store
        self.augmentation = augmentation
        self.seed = seed
        self.batch_size = batch_size
        self.queue_length = queue_length
        self.workers = workers
        self.mutant_fraction = mutant_fraction
        self._subjects: dict[str, list[tio.Subject]] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of the trainer's current epoch."""
        return self.training_loader(self.trainer.current_epoch if self.trainer is not None else 0)

    def training_loader(self, epoch: int) -> DataLoader[Any]:
        """Loader of one epoch: the same draws with the same augmentation whenever it is asked for."""
        sampler = self.sampler(epoch)
        queue = StudyQueue(
            SeededSubjects(self.subjects("train"), transform=self.augmentation),
            max_length=self.queue_length,
            samples_per_volume=1,
            sampler=whole_volume,
            subject_sampler=sampler,
            num_workers=self.workers,
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        drop_last = self.leaves_one_over(len(sampler))
        return DataLoader(queue, batch_size=self.batch_size, num_workers=0, collate_fn=collate, drop_last=drop_last)

    def own_share(self, split: str) -> range:
        """Indices of the studies that this process evaluates: over all processes, each study once."""
        rank, world_size = self._rank_and_world_size()
        return range(rank, len(self.studies[split]), world_size)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def sampler(self, epoch: int) -> ClassBalancedSampler:
        """Draws of one epoch for this process."""
        rank, world_size = self._rank_and_world_size()
        return ClassBalancedSampler(
            [study.label for study in self.studies["train"]],
            seed=self.seed,
            epoch=epoch,
            mutant_fraction=self.mutant_fraction,
            rank=rank,
            world_size=world_size,
        )

    def leaves_one_over(self, draws: int) -> bool:
        """Whether the last batch would be a single study, which gives BatchNorm nothing to average over."""
        return draws % self.batch_size == 1 and self.batch_size > 1

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation studies."""
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Validation studies, from which thresholds are chosen, and the test studies, in this order."""
        return [self.evaluation_loader("validation"), self.evaluation_loader("test")]

    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """This process's studies of a split in the order of the table, unaugmented."""
        return DataLoader(
            SeededSubjects(self.subjects(split)),
            sampler=self.own_share(split),
            batch_size=self.batch_size,
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            collate_fn=collate,
        )

    def calibration_batches(self, volumes: int) -> Iterator[Tensor]:
        """Yield unaugmented training volumes, half of them mutant as far as there are any, as [B, C, D, H, W]."""
        sampler = ClassBalancedSampler([study.label for study in self.studies["train"]], seed=self.seed, epoch=0)
        chosen = list(dict.fromkeys(int(draw) for draw in sampler))[:volumes]
        size = max(self.batch_size, 2)
        subjects = SeededSubjects([self.subjects("train")[index] for index in chosen])
        for batch in DataLoader(subjects, batch_size=size, collate_fn=collate, drop_last=len(chosen) % size == 1):
            yield batch.volumes

    def subjects(self, name: str) -> list[tio.Subject]:
        """TorchIO subjects of a split, which read their voxels when they are needed."""
        if name not in self._subjects:
            self._subjects[name] = [to_subject(self.store.open(study), study) for study in self.studies[name]]
        return self._subjects[name]


class ExternalDataModule(IDHDataModule):
    """Serves a cohort that only judges a network: every study is a test study."""

    needed: ClassVar[tuple[str, ...]] = ("test",)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Test studies."""
        return [self.evaluation_loader("test")]
