"""predictions.csv: what the model says of every validation and test study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Callback
from scipy.special import expit
from torch import Tensor

from idh_lightning.callbacks.gathering import gathered
from idh_lightning.data import Batch
from idh_lightning.evaluation.predictions import BRANCH_LOGITS
from idh_lightning.files import write_text


class PredictionWriter(Callback):
    """Gathers the logits of the test stage and writes predictions.csv at its end."""

    def __init__(self, *, run_folder: Path, cohort_table: pd.DataFrame) -> None:
        """Remember where to write.

        Args:
            run_folder: Holds the run's files.
            cohort_table: One row per study with study_id, patient_id, split, fold and label.
        """
        self.run_folder = run_folder
        self.cohort_table = cohort_table
        self._logits: dict[str, list[float]] = {}

    def on_test_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget earlier results."""
        self._logits = {}

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the logits of a batch."""
        logits: Tensor = outputs
        self._logits.update(zip(batch.study_ids, logits.double().cpu().tolist(), strict=True))

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Gather what all processes have, and write the table in the order of the cohort."""
        self._logits = dict(gathered(trainer, list(self._logits.items())))
        if not trainer.is_global_zero:
            return
        table = self.cohort_table[self.cohort_table["study_id"].isin(list(self._logits))]
        table = table[["study_id", "patient_id", "split", "fold", "label"]].copy()
        logits = np.array([self._logits[study] for study in table["study_id"]])
        table["logit"], table["probability"] = logits[:, 0], expit(logits[:, 0])
        for column, opinion in zip(BRANCH_LOGITS, logits[:, 1:].T, strict=False):
            table[column] = opinion
        write_text(self.run_folder / "predictions.csv", table.to_csv(index=False))
