"""Focal loss, and cross-entropy as its alternative."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idh_lightning.errors import ObjectiveError


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Mean focal loss of a batch: cross-entropy that fades on patients already right.

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

    def __init__(self, *, gamma: float = 2.0, alpha: float | None = None) -> None:
        """Fix the parameters; ObjectiveError if one is out of range."""
        super().__init__()
        _check(gamma, alpha)
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits [B, 2] and labels [B], in nats."""
        return focal_loss(logits, labels, gamma=self.gamma, alpha=self.alpha)


class CrossEntropy(nn.Module):
    """Cross-entropy with optional label smoothing."""

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Fix the parameters; ObjectiveError if one is out of range."""
        super().__init__()
        _check(label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits [B, 2] and labels [B], in nats."""
        return functional.cross_entropy(logits.float(), labels.long(), label_smoothing=self.label_smoothing)


def _check(gamma: float = 0.0, alpha: float | None = None, *, label_smoothing: float = 0.0) -> None:
    for name, value, sound, expected in (
        ("gamma", gamma, gamma >= 0, "a number >= 0"),
        ("alpha", alpha, alpha is None or 0.0 < alpha < 1.0, "null or a number in (0, 1)"),
        ("label_smoothing", label_smoothing, 0.0 <= label_smoothing < 1.0, "a number in [0, 1)"),
    ):
        if not sound:
            raise ObjectiveError(f"objective.{name}: found {value}; expected {expected}. Correct it.")
