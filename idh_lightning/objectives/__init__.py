"""Losses on the logits of a batch."""

from idh_lightning.objectives.losses import CrossEntropy, FocalLoss, focal_loss

__all__ = ["CrossEntropy", "FocalLoss", "focal_loss"]
