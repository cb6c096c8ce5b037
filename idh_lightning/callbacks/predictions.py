"""predictions.csv: the logits of every validation and test study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from scipy.special import expit

from idh_lightning.data import Batch
from idh_lightning.evaluation.predictions import BRANCH_LOGITS
from idh_lightning.files import write_text

_T = TypeVar("_T")


def gathered(trainer: Trainer, own: Sequence[_T]) -> list[_T]:
    """Items of all processes, in the order of the processes; each process must call it with its own, picklable ones."""
    if trainer.world_size == 1:
        return list(own)
    parts: list[Sequence[_T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, list(own))
    return [item for part in parts for item in part]


class PredictionWriter(Callback):
    """Gathers the logits of the test stage and writes predictions.csv at its end."""

    def __init__(self, *, run_folder: Path, cohort_table: pd.DataFrame, target: str = "idh") -> None:
        """Take the run's folder, a table with study_id, patient_id, split, fold and label of each study, its target."""
        self.run_folder = run_folder
        self.cohort_table = cohort_table.assign(target=target)
        self._logits: dict[str, list[float]] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier results."""
        self._logits = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the logits of a batch."""
        self._logits.update(zip(batch.study_ids, outputs.double().cpu().tolist(), strict=True))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather what all processes have, and write the table in the order of the cohort."""
        self._logits = dict(gathered(trainer, list(self._logits.items())))
        if not trainer.is_global_zero:
            return
        known = self.cohort_table["study_id"].isin(list(self._logits))
        table = self.cohort_table.loc[known, ["study_id", "patient_id", "split", "fold", "target", "label"]].copy()
        logits = np.array([self._logits[study] for study in table["study_id"]])
        table["logit"], table["probability"] = logits[:, 0], expit(logits[:, 0])
        for column, opinion in zip(BRANCH_LOGITS, logits[:, 1:].T, strict=False):
            table[column] = opinion
        write_text(self.run_folder / "predictions.csv", table.to_csv(index=False))
