"""Loss of a tumour segmentation whose voxels also vote on the IDH status."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def segmentation_loss(logits: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over three classes of a voxel plus soft Dice loss of the tumour of the right kind.

    Args:
        logits: [B, 3, D, H, W]: not tumour, wildtype tumour, mutant tumour.
        masks: [B, D, H, W], 1 in tumour, else 0.
        labels: [B], 0 wildtype, 1 mutant.

    Returns:
        Scalar. Cross-entropy is the mean over voxels in nats; Dice is in 0..1, the mean of that over both kinds of
        tumour together and that over each, so that a tumour of the wrong kind is better than none.

    Source: soft Dice, Milletari et al. 2016, arXiv:1606.04797, section 3; its sum with cross-entropy, Isensee et al.
        2021, doi:10.1038/s41592-020-01008-z.
    """
    truth = (masks > 0.5).long() * (1 + labels.long())[:, None, None, None]
    logits = logits.float()
    probability = torch.softmax(logits, dim=1)[:, 1:]
    kinds = torch.stack([truth == 1, truth == 2], dim=1).float()
    whole = soft_dice(probability.sum(1), kinds.sum(1))
    each = soft_dice(probability.flatten(1, 2), kinds.flatten(1, 2))
    return functional.cross_entropy(logits, truth) + 1 - (whole + each).mean() / 2


def soft_dice(found: Tensor, truth: Tensor, *, smooth: float = 10.0) -> Tensor:
    """Soft Dice coefficient [B] of probabilities and truth, both [B, ...]; `smooth` voxels of agreement are given."""
    overlap = (found * truth).flatten(1).sum(1)
    sizes = (found.square() + truth.square()).flatten(1).sum(1)
    return (2 * overlap + smooth) / (sizes + smooth)
