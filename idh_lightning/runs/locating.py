"""Training of the locator: what pretraining and fine-tuning share, and the stage `locate`, which fine-tunes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset, Subset

from idh_lightning.callbacks import EpochProgressBar, WholeCheckpointIO
from idh_lightning.cohort.study import Study
from idh_lightning.data.tumours import RandomisedStudies, TumourSample, tumour_sample
from idh_lightning.errors import TrainingError
from idh_lightning.files import write_text
from idh_lightning.machine import freed_memory_kept, map_in_threads
from idh_lightning.models.segmentation import (
    TumourSegmenter,
    dense_vote,
    found_tumour,
    load_segmenter,
    save_segmenter,
    tumour_logit,
)
from idh_lightning.module import clip_gradients
from idh_lightning.objectives.segmentation import segmentation_loss
from idh_lightning.runs.state import LOCATOR_WEIGHTS, SEGMENTATION_SCORES
from idh_lightning.volumes import VolumeStore
from idh_lightning.volumes.randomisation import Randomisation

STRETCH = 25
"""Optimizer steps between two states that a fine-tuning can go on from."""

AT_ONCE = 2**21
"""Voxels of volumes that are learnt from at once: of one study at 128^3. Four at the default grid take 0.8 s, and one
by one 2.3 s."""


class LocatorTraining(lightning.LightningModule):
    """Teaches a tumour segmenter by masks and labels, without a mask by the label alone.

    Logs `train/loss`, and of a validation set `val/dice` and `val/vote_accuracy`.
    """

    def __init__(
        self,
        segmenter: TumourSegmenter,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[..., LRScheduler],
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.optimizer = optimizer
        self.scheduler = scheduler

    def training_step(self, batch: TumourSample, batch_index: int) -> Tensor:
        """Loss of a batch."""
        loss = segmentation_loss(self.segmenter(batch.volumes), batch.masks, batch.labels)  # type: ignore[arg-type]
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"train/loss of the locator: not finite in step {self.global_step}; expected a number. Likely cause: "
                "a learning rate that is too high. Give a lower locating.learning_rate, or optimizer.lr where it is "
                "pretrained."
            )
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=True, batch_size=len(batch.volumes))
        return loss

    def validation_step(self, batch: TumourSample, batch_index: int) -> None:
        """Dice coefficient and accuracy of the vote."""
        logits = self.segmenter(batch.volumes)
        right = (dense_vote(logits) > 0) == (batch.labels > 0)
        dice = dice_coefficient(tumour_logit(logits) > 0, batch.masks > 0.5)
        scores = {"val/dice": dice.mean(), "val/vote_accuracy": right.float().mean()}
        self.log_dict(scores, prog_bar=True, batch_size=len(batch.volumes))

    def configure_optimizers(self) -> Any:
        """Optimizer over all weights, and its schedule per step."""
        optimizer = self.optimizer(self.segmenter.parameters())
        schedule = self.scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients, with a fused optimizer on a CPU too."""
        clip_gradients(self, [self.segmenter], optimizer, gradient_clip_val, gradient_clip_algorithm)


class LocatorData(lightning.LightningDataModule):
    """Batches of samples: an epoch is a stretch of one long sequence that never repeats."""

    def __init__(
        self, *, samples: Dataset[TumourSample], validation: Dataset[TumourSample] | None, batch_size: int, workers: int
    ) -> None:
        """Hold the settings; `workers` is 0 or 1, the number of processes that make samples."""
        super().__init__()
        self.samples, self.validation = samples, validation
        self.batch_size, self.workers = batch_size, workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Stretch of the present epoch."""
        assert self.trainer is not None
        size = len(self.samples) // int(self.trainer.max_epochs or 1)  # type: ignore[arg-type]
        first = self.trainer.current_epoch * size
        return self._loader(Subset(self.samples, range(first, first + size)), min(self.workers, 1))

    def val_dataloader(self) -> DataLoader[Any]:
        """Patients that nothing is learnt from."""
        return self._loader(self.validation, 0)

    def _loader(self, dataset: Any, workers: int) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=workers)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fine-tuning of a locator on training patients: their masks teach it, and without a mask their labels.

    A step adds up the gradients of as many studies at once as have `AT_ONCE` voxels, so that it fits into memory.

    Attributes:
        steps: Of the optimizer; rounded up to a multiple of 25.
        batch_size: Studies per step, half of them mutant.
        learning_rate: Peak of the one-cycle schedule of AdamW.
        weight_decay: Of AdamW.
        randomisation: Of the volumes.
    """

    steps: int = 150
    batch_size: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    randomisation: Randomisation = field(default_factory=Randomisation)

    def __call__(
        self,
        segmenter: TumourSegmenter,
        studies: Sequence[Study],
        store: VolumeStore,
        *,
        seed: int,
        folder: Path,
        make_trainer: Callable[..., lightning.Trainer],
    ) -> TumourSegmenter:
        """Fine-tuned copy of a segmenter, in half precision as it is written to `LOCATOR_WEIGHTS` in a folder.

        `checkpoints/locator.ckpt` holds the state that it goes on from after it was stopped; it is removed at the end.

        Args:
            segmenter: With the weights to begin with.
            studies: Of training.
            store: Holds them.
            seed: Of the draws and the randomisation.
            folder: Of the run.
            make_trainer: From settings to a trainer of the run's device.
        """
        epochs, at_once = -(-self.steps // STRETCH), self.studies_at_once(store)
        state = folder / "checkpoints" / "locator.ckpt"
        trainer = make_trainer(
            max_epochs=epochs,
            max_steps=-1,
            accumulate_grad_batches=self.batch_size // at_once,
            limit_val_batches=0,
            precision="32-true",
            devices=1,
            strategy="auto",
            callbacks=[
                ModelCheckpoint(dirpath=state.parent, filename=state.stem, enable_version_counter=False),
                EpochProgressBar(),
            ],
            logger=False,
            plugins=[WholeCheckpointIO(), LightningEnvironment()],
        )
        model = LocatorTraining(
            copy.deepcopy(segmenter).requires_grad_(True).train(),
            optimizer=partial(AdamW, lr=self.learning_rate, weight_decay=self.weight_decay),
            scheduler=partial(OneCycleLR, max_lr=self.learning_rate, pct_start=0.2),
        )
        if model.segmenter.voxels_in_one(store.preprocessing.shape) == 1:  # else it sees those that it knows
            model.segmenter.learnt_on = store.preprocessing.shape
        data = LocatorData(
            samples=RandomisedStudies(
                studies,
                store,
                length=epochs * STRETCH * self.batch_size,
                seed=seed,
                randomisation=self.randomisation,
            ),
            validation=None,
            batch_size=at_once,
            workers=0,
        )
        with freed_memory_kept():
            trainer.fit(model, datamodule=data, ckpt_path=state if state.is_file() else None, weights_only=True)
        save_segmenter(model.segmenter, folder / LOCATOR_WEIGHTS, {})
        state.unlink(missing_ok=True)
        return load_segmenter(folder / LOCATOR_WEIGHTS)

    def studies_at_once(self, store: VolumeStore) -> int:
        """Number of studies of a store that a part of a step learns from."""
        fit = max(1, AT_ONCE // math.prod(store.preprocessing.shape))
        return max(size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0 and size <= fit)


def write_segmentation_scores(
    folder: Path, segmenter: TumourSegmenter, studies: Mapping[str, Sequence[Study]], store: VolumeStore
) -> pd.DataFrame:
    """Write `SEGMENTATION_SCORES` of the validation and test studies that have a mask into a folder, and return it.

    Its columns are study_id, patient_id, split, dice, the coefficient of the tumour, and pointing, 1 where the voxel
    that is tumour most likely lies in the mask, else 0; both are on the grid of the volumes.
    """

    def row(item: tuple[str, Study]) -> dict[str, Any] | None:
        split, study = item
        sample = tumour_sample(store.open(study), study, store.sequences)
        if torch.isnan(sample.masks).any() or not sample.masks.any():
            return None
        with torch.no_grad():
            found = found_tumour(segmenter(sample.volumes[None]))[0]
        inside = sample.masks > 0.5
        return {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "split": split,
            "dice": float(dice_coefficient(found[None] > 0.5, inside[None])[0]),
            "pointing": int(inside.flatten()[found.argmax()]),
        }

    items = [(split, study) for split in ("validation", "test") for study in studies.get(split, ())]
    rows = [one for one in map_in_threads(row, items) if one is not None]
    table = pd.DataFrame(rows, columns=["study_id", "patient_id", "split", "dice", "pointing"])
    write_text(folder / SEGMENTATION_SCORES, table.to_csv(index=False))
    return table


def dice_coefficient(found: Tensor, truth: Tensor) -> Tensor:
    """Dice coefficient [B] of two sets of voxels, [B, ...], true or false; 0 where both are empty.

    Source: Dice 1945, doi:10.2307/1932409.
    """
    found, truth = found.flatten(1), truth.flatten(1)
    return 2 * (found & truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp_min(1)
