"""How much each MRI sequence of a study speaks for IDH-mutant or IDH-wildtype."""

from __future__ import annotations

import itertools
from math import comb

import torch
from torch import Tensor, nn

from idh_lightning.attribution.faithfulness import predict_logits
from idh_lightning.attribution.maps import logit_difference
from idh_lightning.errors import ExplanationError


def shapley(network: nn.Module, volumes: Tensor, donors: Tensor) -> Tensor:
    """Shapley value of each sequence for the difference of the logits (mutant minus wildtype).

    A coalition of sequences is worth the difference of the logits when the other sequences are those of another
    patient, in the mean over the donors. The values of a study add up to its own difference less the donors' mean.
    All 2^C coalitions are asked: for C sequences and K donors, about 2^C * K forward passes of the batch, one in memory
    at a time.

    Args:
        network: From volumes to logits [B, 2]; asked in eval mode and left as it was.
        volumes: [B, C, D, H, W].
        donors: [K, C, D, H, W], studies of other patients of the cohort, on the same grid, of both classes; the same K
            for every study of the batch.

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
