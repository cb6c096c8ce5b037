"""How sure a probability is: the spread of members and views, and the uncertainty of the calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, logit, ndtri
from torch import Tensor
from torch.nn import functional

from idh_lightning.evaluation import Calibrator

_EDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class MemberLogits:
    """Logits of one study by one checkpoint.

    Attributes:
        plain: Logit of the study as it is, mutant minus wildtype.
        views: Logits of the moved and mirrored study; may be empty.
        calibrator: Of this checkpoint.
        covariance: [2, 2], of the calibrator's slope and intercept.
    """

    plain: float
    views: Sequence[float]
    calibrator: Calibrator
    covariance: npt.NDArray[np.float64]

    @property
    def probability(self) -> float:
        """The calibrated probability of the study as it is."""
        return float(self.calibrator(self.plain))


def combined(members: Sequence[MemberLogits], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the probability of an ensemble (the mean over members) with an interval around it.

    What the interval is: on the logit scale, the probability plus and minus a normal quantile of the root of three
    variances: between members (other folds or seeds give another answer), between views of the study that mean the
    same (mirrored, turned by a few degrees, moved by a voxel; mean over members), and of the calibration line, which
    was fitted to few validation patients (mean over members). It answers: how far would this number move had we
    trained once more, laid the patient a little differently, or calibrated on other patients of the same kind?

    What it is not: it does not hold the truth of this patient, who is mutant or not, with 95% probability; it knows
    nothing of patients unlike the training ones, nor of a mistake that all members share; with one member the part
    of training is missing and the interval is too narrow. The conformal set is the statement with a guarantee.

    Args:
        members: One or more.
        confidence: Of the normal quantile.

    Returns:
        Probability, lower and upper end.
    """
    probability = float(np.mean([member.probability for member in members]))
    etas = np.array([member.calibrator.slope * member.plain + member.calibrator.intercept for member in members])
    between = float(etas.var(ddof=1)) if len(etas) > 1 else 0.0
    views = np.mean([_view_variance(member) for member in members])
    line = np.mean([_line_variance(member) for member in members])
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(between + views + line)
    centre = float(logit(np.clip(probability, _EDGE, 1 - _EDGE)))
    return probability, float(expit(centre - reach)), float(expit(centre + reach))


def line_covariance(logits: npt.ArrayLike, labels: npt.ArrayLike, calibrator: Calibrator) -> list[list[float]]:
    """Return the covariance of a fitted calibration line, [2, 2]: slope, intercept.

    Args:
        logits: [n], of the validation patients it was fitted to.
        labels: [n]; only their number matters beside the fit.
        calibrator: The line.

    Source: inverse Fisher information of logistic regression, with a normal prior of standard deviation 10 standardised
    units, which keeps it finite where validation patients are separated perfectly.
    """
    x = np.asarray(logits, dtype=float)
    scale, centre = max(float(x.std()), 1e-9), float(x.mean())
    design = np.stack([(x - centre) / scale, np.ones_like(x)], axis=1)
    probability = calibrator(x)
    information = design.T @ (design * (probability * (1 - probability))[:, None]) + np.eye(2) / 100
    # Back from the standardised logit: slope = a / scale, intercept = b - a * centre / scale.
    back = np.array([[1 / scale, 0.0], [-centre / scale, 1.0]])
    covariance: list[list[float]] = (back @ np.linalg.inv(information) @ back.T).tolist()
    return covariance


def views_of(volume: Tensor, count: int) -> Tensor:
    """Return views of a study that mean the same: every other one mirrored, each turned and moved a little.

    Always the same for the same study, so that the answer is.

    Args:
        volume: [C, D, H, W].
        count: Number of views.

    Returns:
        [count, C, D, H, W].
    """
    made = []
    for index in range(count):
        angle = math.radians((4.0, -4.0, 2.0, -2.0)[index % 4] * (1 if index < 4 else 0.5))
        size = (0.98, 1.02, 1.0, 1.03)[index % 4]
        step = [(1.0, -1.0)[(index >> axis) & 1] / max(edge, 1) for axis, edge in enumerate(volume.shape[:0:-1])]
        turn = torch.tensor(
            [
                [size * math.cos(angle), -size * math.sin(angle), 0.0, step[0]],
                [size * math.sin(angle), size * math.cos(angle), 0.0, step[1]],
                [0.0, 0.0, size, step[2]],
            ]
        )
        grid = functional.affine_grid(turn[None], [1, *volume.shape], align_corners=False)
        view = functional.grid_sample(volume[None], grid, align_corners=False)[0]
        made.append(view.flip(-1) if index % 2 == 0 else view)
    return torch.stack(made) if made else volume.new_empty((0, *volume.shape))


def _view_variance(member: MemberLogits) -> float:
    if not member.views:
        return 0.0
    moved = member.calibrator.slope * (np.asarray(member.views) - member.plain)
    return float(np.mean(moved**2))


def _line_variance(member: MemberLogits) -> float:
    point = np.array([member.plain, 1.0])
    return float(max(point @ member.covariance @ point, 0.0))
