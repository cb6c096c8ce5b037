"""Losses on the logits of a batch, and on where the network looks."""

from idh_lightning.objectives.losses import CrossEntropy, FocalLoss, focal_loss, mask_loss

__all__ = ["CrossEntropy", "FocalLoss", "focal_loss", "mask_loss"]
