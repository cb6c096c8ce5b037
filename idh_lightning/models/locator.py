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
        hidden = functional.silu(self.look(self.narrow(self.norm(features)) * GAIN) * GAIN)
        logits: Tensor = self.tell(hidden)[:, 0] * GAIN
        return logits


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
    batch, _, height, width = masks.shape
    along_d, along_h, along_w = (
        _boxes(size, count, place).to(masks) for size, count, place in zip(masks.shape[1:], cells, places, strict=True)
    )
    # A box is the product of three, and so are the sums over it: three small matrix products.
    with torch.autocast(masks.device.type, enabled=False):
        means = torch.bmm(along_d.expand(batch, -1, -1), masks.flatten(2))
        means = torch.bmm(along_h.expand(means[..., 0].numel(), -1, -1), means.view(-1, height, width))
        return (means @ along_w.t()).view(batch, *cells)


def _boxes(size: int, count: int, place: Place) -> Tensor:
    """Return how much of each voxel of an axis counts in the mean of each cell: [count, size]."""
    offset, step = place
    stride = round(step)
    edge = stride + 1 - stride % 2
    first = torch.arange(count)[:, None] * stride - edge // 2 + round(offset)
    voxels = torch.arange(size)
    return ((voxels >= first) & (voxels < first + edge)) / edge
