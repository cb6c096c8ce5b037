"""Radiomics head: a linear classifier of the tumour's intensities, position and size."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from idh_lightning.cohort.study import Study
from idh_lightning.models.cells import GridPosition, cell_means

RADIOMICS_GAIN = 4096.0
"""How much faster the head learns than its weights, as stored, would: a linear classifier of two dozen numbers near
one may take steps of a tenth, where deep layers that may be pretrained take steps of 3e-5."""

INTENSITY_STATISTICS = 4
"""Numbers that `intensities` gives of each sequence in each cell."""

SHAPE_FEATURES = 6
"""Numbers that say where the tumour lies and how large it is."""

SiteChanges = Mapping[str, Sequence[Sequence[float]]]
"""Site -> scale and shift of each radiomic feature."""

_LARGEST_SKEWNESS = 3.0
"""Largest skewness that counts, in either direction."""


class RadiomicsHead(nn.Module):
    """A linear classifier on what a radiologist would note of a tumour, in the cells that a locator points at.

    Of each sequence: how bright the tumour is, how varied, how lopsided its intensities are, and how rough it is. Of
    the tumour: how high and how far back it lies, how far it extends along each axis, and how large it is. Two dozen
    weights can be learnt from few patients, and each can be looked at. It reads cells that are tumour rather than not,
    in proportion to how much, and says nothing where there are none.
    """

    _changes: Tensor

    def __init__(self, sequences: int, sites: SiteChanges | None = None) -> None:
        """Begin with weights of zero, and with the scale and shift of each feature at each site."""
        super().__init__()
        self.weigh = nn.Linear(INTENSITY_STATISTICS * sequences + SHAPE_FEATURES, 1)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)
        self._here: Tensor | None = None
        self.harmonise(sites or {})

    def harmonise(self, sites: SiteChanges) -> None:
        """Take over the scale and shift of each feature at each site, which are not among the weights."""
        size = self.weigh.in_features
        self.sites = tuple(sites)
        unknown = [[1.0] * size, [0.0] * size]
        self.register_buffer("_changes", torch.tensor([*sites.values(), unknown]), persistent=False)

    @contextmanager
    def at(self, sites: Sequence[str]) -> Iterator[None]:
        """Context in which the studies of each batch are from these sites; of one that is not known, none is changed.

        Where all are from one site, batches may be of any size.
        """
        rows = [self.sites.index(site) if site in self.sites else len(self.sites) for site in sites]
        before, self._here = self._here, torch.tensor(rows[:1] if len(set(rows)) == 1 else rows)
        try:
            yield
        finally:
            self._here = before

    def forward(self, tissue: Tensor, gate: Tensor) -> Tensor:
        """Logit of mutant minus that of wildtype, [B]; see `features` for the arguments."""
        difference: Tensor = self.weigh(self.features(tissue, gate))[:, 0] * RADIOMICS_GAIN
        return torch.where((gate > 0.5).flatten(1).any(1), difference, 0.0)

    def features(self, tissue: Tensor, gate: Tensor) -> Tensor:
        """Radiomic features of each tumour, [B, 4 C + 6].

        Brightness, spread, skewness and roughness of the C sequences, kind by kind; centre along D and H, extent along
        D, H and W, and size, so scaled that patients differ by about one; harmonised where their site is known.

        Args:
            tissue: [B, 4 C, d, h, w], of `intensities`.
            gate: [B, d, h, w], probability of tumour.
        """
        weight = (2 * gate - 1).clamp_min(0)
        total = weight.sum((1, 2, 3))
        share = weight / total.clamp_min(1e-6)[:, None, None, None]
        mean, variance, third, roughness = torch.chunk(tissue, INTENSITY_STATISTICS, dim=1)
        brightness = _over(share, mean)
        apart = mean - brightness[..., None, None, None]
        spread = (_over(share, variance + apart.square()) + 1e-3).sqrt()
        skewness = _over(share, third + 3 * variance * apart + apart**3) / spread**3
        skewness = skewness.clamp(-_LARGEST_SKEWNESS, _LARGEST_SKEWNESS)
        found = torch.cat([brightness, spread, skewness, _over(share, roughness), _where(share, total)], 1)
        if self._here is None:
            return found
        scale, shift = self._changes[self._here.to(found.device)].unbind(1)
        return found * scale + shift


def sites_of(network: nn.Module, studies: Sequence[Study]) -> list[str]:
    """Sites of studies, by the column that a network harmonises; "" where it is not known, or none is harmonised."""
    column = getattr(network, "harmonise", None)
    return [str(study.carried.get(column) or "").strip() if column else "" for study in studies]


def at_sites(network: nn.Module, sites: Sequence[str]) -> AbstractContextManager[None]:
    """Context in which the studies of each batch that a network sees are from these sites; see `RadiomicsHead.at`."""
    head = getattr(network, "radiomics", None)
    return nullcontext() if head is None or not head.sites else head.at(sites)


def intensities(volumes: Tensor, places: Sequence[GridPosition], cells: Sequence[int]) -> Tensor:
    """Statistics of the intensities of the voxels around each cell.

    Args:
        volumes: [B, C, D, H, W].
        places: Of the cells along D, H and W.
        cells: Their number along D, H and W.

    Returns:
        [B, 4 C, *cells], float32: mean, variance and third central moment of each sequence, and how much neighbouring
        voxels differ, summed over the three axes.
    """
    around = functools.partial(cell_means, places=places, cells=cells)
    kinds = []
    for volume in volumes.float().unbind(1):  # one after the other, since what is made of one fits into a CPU's cache
        square = volume.square()
        mean, mean_square, mean_cube = around(volume), around(square), around(square.mul_(volume))
        steps = torch.zeros_like(volume)
        for axis in (1, 2, 3):
            steps.narrow(axis, 0, volume.shape[axis] - 1).add_(volume.diff(dim=axis).abs_())
        variance = (mean_square - mean.square()).clamp_min(0)
        third = mean_cube - 3 * mean * mean_square + 2 * mean**3
        kinds.append(torch.stack([mean, variance, third, around(steps)], 1))
    return torch.stack(kinds, 2).flatten(1, 2)


def _over(share: Tensor, values: Tensor) -> Tensor:
    """Mean [B, C] of values [B, C, d, h, w] over cells with shares [B, d, h, w] of the whole."""
    return (values * share[:, None]).sum((2, 3, 4))


def _where(share: Tensor, total: Tensor) -> Tensor:
    centres, extents = [], []
    for axis in (1, 2, 3):
        along = share.sum([other for other in (1, 2, 3) if other != axis])
        place = torch.linspace(-0.5, 0.5, along.shape[1], device=share.device)
        centre = (along * place).sum(1)
        centres.append(8 * centre)
        extents.append(16 * ((along * (place - centre[:, None]).square()).sum(1) + 1e-6).sqrt())
    size = torch.log(100 * total / share[0].numel() + 1e-2)
    return torch.stack([*centres[:2], *extents, size], 1)
