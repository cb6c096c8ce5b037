"""The term that asks the network to look at the tumour, where masks exist in training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idh_lightning.errors import ObjectiveError


def focus_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Return how far a tumour map is from the masks: cross-entropy and Dice, each cell with its share of tumour.

    Args:
        logits: [B, d, h, w], of tumour.
        shares: [B, d, h, w], of tumour in each cell, in 0..1; NaN in studies without a mask, which do not count.

    Returns:
        Scalar; 0 if no study has a mask. Cross-entropy is the mean over cells in nats, Dice is in 0..1.

    Source: soft Dice, Milletari et al. 2016, arXiv:1606.04797, section 3; its sum with cross-entropy, Isensee et al.
        2021, doi:10.1038/s41592-020-01008-z.
    """
    known = ~torch.isnan(shares).flatten(1).any(dim=1)
    if not bool(known.any()):
        return logits.sum() * 0.0
    found, truth = logits[known].float(), shares[known].float()
    probability = torch.sigmoid(found)
    overlap = (probability * truth).sum((1, 2, 3))
    sizes = (probability.square() + truth.square()).sum((1, 2, 3))
    dice = 1 - 2 * overlap / sizes.clamp_min(1e-6)
    return functional.binary_cross_entropy_with_logits(found, truth) + dice.mean()


def checked_focus(weight: float) -> float:
    """Return the weight of `focus_loss` in an objective.

    Raises:
        ObjectiveError: If it is negative.
    """
    if weight < 0:
        raise ObjectiveError(f"objective.focus: found {weight}; expected a number >= 0. Correct it.")
    return weight
