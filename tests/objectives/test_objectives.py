from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from idh_lightning.errors import ObjectiveError
from idh_lightning.objectives import CrossEntropy, FocalLoss, focal_loss

LOGITS = torch.tensor([[2.0, -1.0], [0.3, 0.1], [-4.0, 5.0], [1.0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_gamma_zero_is_cross_entropy() -> None:
    torch.testing.assert_close(focal_loss(LOGITS, LABELS, gamma=0.0), functional.cross_entropy(LOGITS, LABELS))


def test_agrees_with_a_numpy_loop_over_the_formula() -> None:
    expected = []
    for row, label in zip(LOGITS.numpy(), LABELS.numpy(), strict=True):
        p = np.exp(row[label]) / np.exp(row).sum()
        weight = 0.7 if label == 1 else 0.3
        expected.append(-weight * (1 - p) ** 2.5 * np.log(p))
    assert focal_loss(LOGITS, LABELS, gamma=2.5, alpha=0.7).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_right_patients_fade_faster_than_wrong_ones() -> None:
    right, wrong = torch.tensor([[3.0, -3.0]]), torch.tensor([[-3.0, 3.0]])
    label = torch.tensor([0])
    ratio = focal_loss(wrong, label) / focal_loss(right, label)
    assert ratio > 1000 * functional.cross_entropy(wrong, label) / functional.cross_entropy(right, label)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_value_and_gradient_are_finite_for_any_confidence(size: float, gamma: float) -> None:
    logits = torch.tensor([[size, -size], [-size, size]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_cross_entropy_is_that_of_torch() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1)(LOGITS, LABELS), expected)


@pytest.mark.parametrize(
    ("settings", "name"), [({"gamma": -1.0}, "gamma"), ({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha")]
)
def test_parameters_out_of_range_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ObjectiveError, match=rf"objective\.{name}: found"):
        FocalLoss(**settings)
    with pytest.raises(ObjectiveError, match="label_smoothing: found"):
        CrossEntropy(label_smoothing=1.0)
