"""Whether the network depends on what a map calls important, and how much on each MRI sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from idh_lightning.attribution.maps import logit_difference
from idh_lightning.errors import ExplanationError

_Curve = NDArray[np.float64]

CURVES = ("deletion", "insertion", "random_deletion", "random_insertion")

REACH = 0.04
"""Standard deviation of every blur here, as a share of the volume's width: 2.6 voxels of 65, some 8 mm."""


@dataclass(frozen=True, kw_only=True)
class PerturbationCurves:
    """Score of the predicted class while more and more of the brain is replaced or brought back.

    Attributes:
        fractions: [S], share of the brain's voxels, from 0 to 1; closer together at first, where a tumour is decided.
        deletion: [B, S], after the hottest voxels were replaced.
        insertion: [B, S], after the hottest voxels were brought back into a brain that was replaced throughout.
        random_deletion: [B, S], as `deletion`, with voxels taken in the order of smooth noise.
        random_insertion: [B, S], as `insertion`, in the same order.
    """

    fractions: _Curve
    deletion: _Curve
    insertion: _Curve
    random_deletion: _Curve
    random_insertion: _Curve

    @property
    def areas(self) -> dict[str, _Curve]:
        """Area under each curve by its name, [B]; a faithful map has little deletion and much insertion."""
        return {name: np.trapezoid(getattr(self, name), self.fractions, axis=1) for name in CURVES}

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """Curves of the studies of several batches."""
        both = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in CURVES}
        return cls(fractions=batches[0].fractions, **both)


def deletion_insertion(
    network: nn.Module,
    volumes: Tensor,
    maps: Tensor,
    *,
    replacement: Callable[[Tensor], Tensor] | None = None,
    target: Literal["probability", "margin"] = "probability",
    steps: int = 16,
) -> PerturbationCurves:
    """Return how the prediction changes when voxels of the brain are replaced in the order of a map.

    One step of all studies is in memory at a time. Where a map has the same value at many voxels, they come in the
    order of the smooth noise of the random curves: a map without an opinion scores as they do.

    Args:
        network: From volumes to logits [B, 2]; asked in eval mode and left as it was.
        volumes: [B, C, D, H, W], 0 outside the brain, which stays so.
        maps: [B, D, H, W].
        replacement: From volumes to what replaces them, of the same shape; `inpaint_by_symmetry` by default.
        target: Score of the predicted class: its probability, or how far its logit is above the other, which still
            falls where a sure network's probability stays at 1.
        steps: S, at least 2.

    Raises:
        ExplanationError: If shapes do not fit, a volume has no brain, or there are fewer than 2 steps.

    Source: Petsiuk et al. 2018, arXiv:1806.07421, section 3.2.
    """
    if maps.shape != (len(volumes), *volumes.shape[2:]) or steps < 2:
        raise ExplanationError(
            f"deletion: found maps {tuple(maps.shape)} of volumes {tuple(volumes.shape)} in {steps} steps; expected "
            "one map per volume on its grid and at least 2 steps. Give the maps as the method returned them."
        )
    inside = brain(volumes)
    other = (replacement or inpaint_by_symmetry)(volumes)
    sign = predict_logits(network, volumes).argmax(1) * 2 - 1
    fractions = np.linspace(0, 1, steps) ** 2
    noise = _noise(inside)
    found: dict[str, _Curve] = {}
    for prefix, order in (
        ("", _order(maps, noise, inside)),
        ("random_", _order(torch.zeros_like(noise), noise, inside)),
    ):
        # From below, so that what replaces is brought back as the same voxels are taken.
        for name, first, then in (("deletion", volumes, other), ("insertion", other, volumes)):
            columns = []
            for fraction in fractions:
                taken = (order <= fraction) & inside
                logits = predict_logits(network, torch.where(taken[:, None], then, first) * inside[:, None])
                margin = logit_difference(logits).double() * sign
                columns.append((margin if target == "margin" else margin.sigmoid()).cpu().numpy())
            found[prefix + name] = np.stack(columns, axis=1)
    return PerturbationCurves(fractions=fractions, **found)


def inpaint_by_symmetry(volumes: Tensor) -> Tensor:
    """Return the brain as it might be without a tumour: of each place and its mirror image, the more ordinary one.

    A plain mirror image would have the tumour on the other side. Which of the two is more ordinary is told by the
    distance of the sequences from their medians, blurred, so that no mask and no map has a say. A place without a
    mirror image in the brain is painted in with a blur of the healthy tissue around it. Not for volumes that are cut
    to the tumour, whose middle is not the midline; a tumour that is the same on both sides stays.

    Returns:
        [B, C, D, H, W], 0 outside the brain.

    Source: painting in by normalised convolution, Knutsson & Westin 1993, doi:10.1109/CVPR.1993.341081.
    """
    inside = brain(volumes)[:, None]
    median = volumes.masked_fill(~inside, torch.nan).flatten(2).nanmedian(2).values[..., None, None, None]
    distance = (volumes - median).abs().mean(1, keepdim=True)
    strange = _blurred(distance, inside, torch.zeros_like(distance))
    chosen = torch.where(strange > strange.flip(-1), volumes.flip(-1), volumes)
    paired = inside & inside.flip(-1)
    painted = _blurred(chosen, paired, median.expand_as(chosen))
    return torch.where(paired, chosen, painted) * inside


def brain(volumes: Tensor) -> Tensor:
    """Return where any sequence of volumes [B, C, D, H, W] is not 0, [B, D, H, W].

    Raises:
        ExplanationError: If that is nowhere.
    """
    inside = (volumes != 0).any(1)
    empty = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ExplanationError(
            f"volumes {empty} of the batch: found zeros throughout; expected a brain. Leave these studies out."
        )
    return inside


@torch.no_grad()
def predict_logits(network: nn.Module, volumes: Tensor) -> Tensor:
    """Return the logits [B, 2] of a network in eval mode, without a graph; it is left in the mode in which it was."""
    was_training = network.training
    network.eval()
    try:
        logits: Tensor = network(volumes)
    finally:
        network.train(was_training)
    return logits


def _order(maps: Tensor, noise: Tensor, inside: Tensor) -> Tensor:
    """Return [B, D, H, W]: the share of the brain that has been taken once a voxel is; 0 < share <= 1."""
    shares = torch.full(noise.shape, torch.inf, dtype=noise.dtype, device=noise.device)
    for share, cam, chance, head in zip(shares, maps, noise, inside, strict=True):
        by_chance = chance[head].argsort(descending=True)
        taken = by_chance[cam[head][by_chance].argsort(descending=True, stable=True)]
        ranks = torch.empty_like(chance[head])
        ranks[taken] = torch.arange(1, len(taken) + 1, dtype=ranks.dtype, device=ranks.device) / len(taken)
        share[head] = ranks
    return shares


def _noise(inside: Tensor) -> Tensor:
    """Return smooth noise [B, D, H, W], the same for every study of a grid, so that no score depends on its batch."""
    white = np.random.default_rng(0).standard_normal(inside.shape[1:])
    return torch.from_numpy(_gaussian(white)).to(inside.device).expand(inside.shape)


def _blurred(values: Tensor, known: Tensor, otherwise: Tensor) -> Tensor:
    """Return values [B, C, D, H, W] blurred over known places [B, 1, D, H, W]; `otherwise` far away from any."""
    weight = torch.from_numpy(_gaussian(known.float().cpu().numpy())).to(values)
    blurred = torch.from_numpy(_gaussian((values * known).float().cpu().numpy())).to(values)
    return torch.where(weight > 1e-3, blurred / weight.clamp_min(1e-3), otherwise)


def _gaussian(values: NDArray[np.floating]) -> NDArray[np.floating]:
    sigma = REACH * values.shape[-1]
    blurred: NDArray[np.floating] = gaussian_filter(values, sigma, mode="constant", axes=(-3, -2, -1))
    return blurred


def shapley(network: nn.Module, volumes: Tensor, donors: Tensor) -> Tensor:
    """Shapley value of each sequence for the difference of the logits (mutant minus wildtype).

    A coalition of sequences is worth the difference of the logits when the other sequences are those of another
    patient, in the mean over the donors. The values of a study add up to its own difference less the donors' mean.
    All 2^C coalitions are asked: for C sequences and K donors, about 2^C * K forward passes of the batch, one in memory
    at a time. The donors [K, C, D, H, W] are studies of other patients, of both classes, the same for all of the batch.

    Returns:
        [B, C], in logits; above 0 speaks for mutant, below for wildtype.

    Raises:
        ExplanationError: If the donors have another shape.

    Source: Shapley 1953, doi:10.1515/9781400881970-018; of networks, Lundberg & Lee 2017, arXiv:1705.07874, eq. 4.
    """
    if donors.ndim != 5 or not len(donors) or donors.shape[1:] != volumes.shape[1:]:
        raise ExplanationError(
            f"donors: found shape {tuple(donors.shape)} for volumes {tuple(volumes.shape)}; expected at least one "
            "study of the same sequences and grid. Take donors from the same store as the study."
        )
    count = volumes.shape[1]
    coalitions = list(itertools.product([False, True], repeat=count))
    worth = {own: _worth(network, volumes, donors, own) for own in coalitions}
    values = torch.zeros(len(volumes), count, device=volumes.device)
    for own, index in itertools.product(coalitions, range(count)):
        if not own[index]:
            joined = (*own[:index], True, *own[index + 1 :])
            values[:, index] += (worth[joined] - worth[own]) / (count * comb(count - 1, sum(own)))
    return values


def _worth(network: nn.Module, volumes: Tensor, donors: Tensor, own: tuple[bool, ...]) -> Tensor:
    """Return the difference of the logits [B], in the mean over the donors of what is not `own`."""
    if all(own):
        return _difference(network, volumes)
    if not any(own):
        alone = torch.stack([_difference(network, donor[None])[0] for donor in donors])
        return alone.mean().expand(len(volumes))
    kept = torch.tensor(own, device=volumes.device)[:, None, None, None]
    return torch.stack([_difference(network, torch.where(kept, volumes, donor)) for donor in donors]).mean(0)


def _difference(network: nn.Module, volumes: Tensor) -> Tensor:
    return logit_difference(predict_logits(network, volumes))
