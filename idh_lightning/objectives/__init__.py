"""Losses on the logits of a batch, and on where the network looks."""

from idh_lightning.objectives.focal import CrossEntropy, FocalLoss, focal_loss
from idh_lightning.objectives.mask import focus_loss

__all__ = ["CrossEntropy", "FocalLoss", "focal_loss", "focus_loss"]
