"""Loss of a tumour segmentation whose voxels also vote on the IDH status."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idh_lightning.models.segmentation import dense_vote


def segmentation_loss(logits: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over three classes of a voxel plus soft Dice loss of the tumour, of its right kind too.

    Where a study has no mask, its label still teaches: the loss is then the cross-entropy of its dense vote.

    Args:
        logits: [B, 3, D, H, W]: not tumour, wildtype tumour, mutant tumour.
        masks: [B, D, H, W], 1 in tumour, else 0; NaN throughout in a study without a mask.
        labels: [B], 0 wildtype, 1 mutant.

    Returns:
        Scalar, the mean over studies. Cross-entropy is in nats; Dice is in 0..1, the mean of that over both kinds of
        tumour together and that over each, so that a tumour of the wrong kind is better than none.

    Source: soft Dice, Milletari et al. 2016, arXiv:1606.04797, section 3; its sum with cross-entropy, Isensee et al.
        2021, doi:10.1038/s41592-020-01008-z.
    """
    logits, known = logits.float(), ~torch.isnan(masks).flatten(1).any(dim=1)
    total = logits.sum() * 0.0
    if bool(known.any()):
        of_known, of_labels = logits[known], labels[known].long()
        truth = (masks[known] > 0.5).long() * (1 + of_labels)[:, None, None, None]
        probability = torch.softmax(of_known, dim=1)[:, 1:]
        kinds = torch.stack([truth == 1, truth == 2], dim=1).float()
        whole = soft_dice(probability.sum(1), kinds.sum(1))
        each = soft_dice(probability.flatten(1, 2), kinds.flatten(1, 2))
        total = total + len(truth) * (functional.cross_entropy(of_known, truth) + 1 - (whole + each).mean() / 2)
    if not bool(known.all()):
        vote, expected = dense_vote(logits[~known]), labels[~known].float()
        total = total + functional.binary_cross_entropy_with_logits(vote, expected, reduction="sum")
    return total / len(labels)


def soft_dice(found: Tensor, truth: Tensor, *, smooth: float = 10.0) -> Tensor:
    """Soft Dice coefficient [B] of probabilities and truth, both [B, ...]; `smooth` voxels of agreement are given."""
    overlap = (found * truth).flatten(1).sum(1)
    sizes = (found.square() + truth.square()).flatten(1).sum(1)
    return (2 * overlap + smooth) / (sizes + smooth)
