"""Focal loss, and plain cross-entropy as its alternative."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idh_lightning.errors import ObjectiveError
from idh_lightning.objectives.mask import checked_focus


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Return the mean focal loss of a batch: cross-entropy that fades on patients already right.

    Args:
        logits: [B, 2], unnormalised class scores.
        labels: [B], 0 wildtype, 1 mutant.
        gamma: Focusing exponent, >= 0; at 0 this is cross-entropy.
        alpha: Weight of the mutant class in (0, 1), the wildtype class having 1 - alpha; None for no class weight.

    Returns:
        Scalar, nats.

    Raises:
        ObjectiveError: If gamma or alpha is out of range.

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 5.
    """
    _check(gamma, alpha)
    log_probability = functional.log_softmax(logits.float(), dim=1).gather(1, labels.long()[:, None]).squeeze(1)
    # 1 - p as -expm1(log p): exact for p close to 1, where the difference of two floats loses all its digits.
    weight = (-torch.expm1(log_probability)).clamp_min(torch.finfo(torch.float32).tiny) ** gamma
    if alpha is not None:
        weight = weight * torch.where(labels == 1, alpha, 1.0 - alpha)
    return -(weight * log_probability).mean()


class FocalLoss(nn.Module):
    """`focal_loss` with fixed parameters."""

    def __init__(self, *, gamma: float = 2.0, alpha: float | None = None, focus: float = 0.0) -> None:
        """Fix the focusing exponent, the weight of the mutant class, and that of `focus_loss` where there are masks.

        Raises:
            ObjectiveError: If gamma, alpha or focus is out of range.
        """
        super().__init__()
        _check(gamma, alpha)
        self.focus = checked_focus(focus)
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits [B, 2] and labels [B], in nats."""
        return focal_loss(logits, labels, gamma=self.gamma, alpha=self.alpha)


class CrossEntropy(nn.Module):
    """Cross-entropy with optional label smoothing."""

    def __init__(self, *, label_smoothing: float = 0.0, focus: float = 0.0) -> None:
        """Fix the smoothing, and the weight of `focus_loss` where there are masks.

        Raises:
            ObjectiveError: If the smoothing is not in [0, 1) or the weight is negative.
        """
        super().__init__()
        self.focus = checked_focus(focus)
        if not 0.0 <= label_smoothing < 1.0:
            raise ObjectiveError(
                f"objective.label_smoothing: found {label_smoothing}; expected a number in [0, 1). Correct it."
            )
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits [B, 2] and labels [B], in nats."""
        return functional.cross_entropy(logits.float(), labels.long(), label_smoothing=self.label_smoothing)


def _check(gamma: float, alpha: float | None) -> None:
    if gamma < 0:
        raise ObjectiveError(f"objective.gamma: found {gamma}; expected a number >= 0. Correct it.")
    if alpha is not None and not 0.0 < alpha < 1.0:
        raise ObjectiveError(f"objective.alpha: found {alpha}; expected null or a number in (0, 1). Correct it.")
