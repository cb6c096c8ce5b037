"""Where the tumour is, learnt from masks, so that what the classifier sees comes from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GAIN = 64.0
"""How much faster the locator learns than its weights, as stored, would: it starts from nothing, at the learning rate
of a tail that may be pretrained. Source: the equalised learning rate of Karras et al. 2018, arXiv:1710.10196, 4.1."""

RARE = -3.0
"""Logit of tumour that an untrained locator begins with: 5 % of the cells."""

READER_GAIN = 128.0
"""As `GAIN`, for the weights of the reader, which start from zero."""

Place = tuple[float, float]
"""Offset and step, in voxels: cell i of a grid lies at voxel offset + i * step."""


class TumourLocator(nn.Module):
    """Three convolutions from features of an early stage to a logit of tumour in every cell."""

    def __init__(self, channels: int, *, hidden: int = 32) -> None:
        """Build them with few hidden channels, since a training cohort has few tumours."""
        super().__init__()
        self.norm = nn.BatchNorm3d(channels, affine=False)
        # Fewer channels for the convolution that takes the time: 0.13 instead of 0.23 s for a step of 16 studies.
        self.narrow = nn.Conv3d(channels, hidden // 2, 1, bias=False)
        self.look = nn.Conv3d(hidden // 2, hidden, 3, padding=1)
        self.tell = nn.Conv3d(hidden, 1, 1)
        nn.init.orthogonal_(self.narrow.weight)
        nn.init.zeros_(self.look.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.tell.bias, RARE / GAIN)  # type: ignore[arg-type]
        with torch.no_grad():
            for convolution in (self.narrow, self.look, self.tell):
                convolution.weight.div_(GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, d, h, w] of features [B, F, d, h, w]."""
        return self.locate(self.norm(features))

    def locate(self, features: Tensor) -> Tensor:
        """Return logits [B, d, h, w] of normalised features [B, F, d, h, w]."""
        hidden = functional.silu(self.look(self.narrow(features) * GAIN) * GAIN)
        logits: Tensor = self.tell(hidden)[:, 0] * GAIN
        return logits


class TissueReader(nn.Module):
    """A linear classifier on what a radiologist would note of a tumour, in the cells that a locator points at.

    Of each feature: its mean, its spread, and its roughness, which is how much neighbouring cells differ. Of the
    tumour: how high and how far back it lies, how far it extends along each axis, and its size. So few weights can be
    learnt from a few hundred patients. It reads cells that are tumour rather than not, in proportion to how much, and
    says nothing where there are none.
    """

    def __init__(self, channels: int) -> None:
        """Begin with no opinion."""
        super().__init__()
        self.weigh = nn.Linear(3 * channels + PLACES, 1)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, tissue: Tensor, gate: Tensor) -> Tensor:
        """Return by how much the logit of mutant exceeds that of wildtype, [B]. See `notes`."""
        opinion: Tensor = self.weigh(self.notes(tissue, gate))[:, 0] * READER_GAIN
        return torch.where((gate > 0.5).flatten(1).any(1), opinion, 0.0)

    def notes(self, tissue: Tensor, gate: Tensor) -> Tensor:
        """Return what is noted of a tumour, [B, 3 F + 6].

        Args:
            tissue: [B, F, d, h, w], normalised over voxels; d to superior, h to posterior.
            gate: [B, d, h, w], probability of tumour.
        """
        weight = (2 * gate - 1).clamp_min(0)
        total = weight.sum((1, 2, 3))
        share = weight / total.clamp_min(1e-6)[:, None, None, None]
        mean = (tissue * share[:, None]).sum((2, 3, 4))
        apart = (tissue - mean[..., None, None, None]).square()
        spread = (apart * share[:, None]).sum((2, 3, 4)).add(1e-4).sqrt()
        return torch.cat([mean, spread, _roughness(tissue, share), _place(share, total)], 1)


PLACES = 6
"""What `_place` returns of a study."""


def _roughness(tissue: Tensor, share: Tensor) -> Tensor:
    """Return the mean difference [B, F] of neighbouring cells in the tumour, summed over the three axes."""
    steps = [tissue.diff(dim=axis).abs() for axis in (2, 3, 4)]
    between = [torch.minimum(*_neighbours(share, axis)) for axis in (1, 2, 3)]
    return sum((step * both[:, None]).sum((2, 3, 4)) for step, both in zip(steps, between, strict=True))


def _neighbours(cells: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    count = cells.shape[axis]
    return cells.narrow(axis, 0, count - 1), cells.narrow(axis, 1, count - 1)


def _place(share: Tensor, total: Tensor) -> Tensor:
    """Return centre along D and H, extent along D, H and W, and size, [B, 6], scaled so that patients differ by 1."""
    centres, extents = [], []
    for axis in (1, 2, 3):
        along = share.sum([other for other in (1, 2, 3) if other != axis])
        place = torch.linspace(-0.5, 0.5, along.shape[1], device=share.device)
        centre = (along * place).sum(1)
        centres.append(8 * centre)
        extents.append(16 * (along * (place - centre[:, None]).square()).sum(1).add(1e-6).sqrt())
    size = torch.log(100 * total / share[0].numel() + 1e-2)
    return torch.stack([*centres[:2], *extents, size], 1)


def fold(fine: Tensor, coarse: Sequence[int], ratio: int) -> Tensor:
    """Return features of a fine grid as more channels of a coarse one, so that both are one tensor.

    Args:
        fine: [B, F, d, h, w].
        coarse: Cells of the coarse grid along each axis; `ratio` times as many hold the fine grid, with zeros beyond
            its end.
        ratio: Fine cells per coarse cell and axis.

    Returns:
        [B, F * ratio^3, *coarse].
    """
    room = [edge * ratio - length for edge, length in zip(coarse, fine.shape[2:], strict=True)]
    padded = functional.pad(fine, [0, room[2], 0, room[1], 0, room[0]])
    batch, channels = padded.shape[:2]
    split = padded.view(batch, channels, coarse[0], ratio, coarse[1], ratio, coarse[2], ratio)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * ratio**3, *coarse)


def unfold(folded: Tensor, ratio: int) -> Tensor:
    """Return what `fold` was given, with the zeros beyond its end: [B, F, ratio * d, ratio * h, ratio * w]."""
    batch, channels, *coarse = folded.shape
    split = folded.view(batch, channels // ratio**3, ratio, ratio, ratio, *coarse)
    edges = [edge * ratio for edge in coarse]
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // ratio**3, *edges)


def coarsen(gate: Tensor, ratio: int) -> Tensor:
    """Return the largest gate in and around each coarse cell, [B, d, h, w] of [B, ratio * d, ratio * h, ratio * w]."""
    if ratio == 1:
        return gate
    return functional.max_pool3d(gate[:, None], ratio + 1, ratio, ratio // 2)[:, 0]


def cell_means(masks: Tensor, places: Sequence[Place], cells: Sequence[int]) -> Tensor:
    """Return the share of tumour around each cell of a grid.

    Args:
        masks: [B, D, H, W]; nothing outside of it counts as tumour. NaN throughout gives NaN throughout.
        places: Of the grid's cells along D, H and W.
        cells: Their number along D, H and W.

    Returns:
        [B, *cells], the mean over a box around each cell that reaches half a step to either side.
    """
    padding: list[int] = []
    edges = []
    for size, count, (offset, step) in zip(masks.shape[1:], cells, places, strict=True):
        stride = round(step)
        edge = stride + 1 - stride % 2
        before = edge // 2 - round(offset)
        padding = [before, (count - 1) * stride + edge - before - size, *padding]
        edges.append((edge, stride))
    box, strides = zip(*edges, strict=True)
    return functional.avg_pool3d(functional.pad(masks[:, None], padding), box, strides)[:, 0]
