"""From the volume store to batches: TorchIO subjects, the class-balanced sampler, the queue, the data modules."""

from idh_lightning.data.datamodule import ExternalDataModule, IDHDataModule
from idh_lightning.data.feature_bank import BankReport, FeatureBankDataModule, FeatureBatch
from idh_lightning.data.sampler import ClassBalancedSampler, Draw
from idh_lightning.data.subjects import Batch, SeededSubjects, collate, to_subject

__all__ = [
    "BankReport",
    "Batch",
    "ClassBalancedSampler",
    "Draw",
    "ExternalDataModule",
    "FeatureBankDataModule",
    "FeatureBatch",
    "IDHDataModule",
    "SeededSubjects",
    "collate",
    "to_subject",
]
