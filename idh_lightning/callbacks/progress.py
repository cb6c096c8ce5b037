"""Progress bar of a training."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class EpochProgressBar(RichProgressBar):
    """Lightning's progress bar with epochs counted from 1, as in figures and messages."""

    def _get_train_description(self, current_epoch: int) -> str:
        # lightning 2.6.6 counts from 0 ("Epoch 0/14") and has no public name for this.
        last = self.trainer.max_epochs
        words = f"Epoch {current_epoch + 1}" + ("" if last is None or last < 0 else f"/{last}")
        return words.ljust(len(self.validation_description))  # so that the bar does not move at validation
