"""From the volume store to batches: TorchIO subjects, the class-balanced sampler, the queue and the data module."""

from idh_lightning.batches.datamodule import IDHDataModule
from idh_lightning.batches.sampler import ClassBalancedSampler, Draw
from idh_lightning.batches.subjects import Batch, SeededSubjects, collate, to_subject

__all__ = ["Batch", "ClassBalancedSampler", "Draw", "IDHDataModule", "SeededSubjects", "collate", "to_subject"]
