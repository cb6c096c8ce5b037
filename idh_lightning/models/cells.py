"""Grids of cells: means over them, and a fine grid as channels of a coarse one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

GridPosition = tuple[float, float]
"""Offset and step, in voxels: cell i of a grid lies at voxel offset + i * step."""


def space_to_depth(fine: Tensor, coarse: Sequence[int], ratio: int) -> Tensor:
    """Features of a fine grid as more channels of a coarse one, so that both are one tensor.

    No value is moved: which coarse cell holds what of the fine grid means nothing.

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
    # `len` of a tensor is a constant to `torch.export`, which would hold the exported network to one batch size.
    return padded.reshape(fine.shape[0], -1, *coarse)


def depth_to_space(coarse: Tensor, ratio: int) -> Tensor:
    """Inverse of `space_to_depth`, with the zeros beyond its end: [B, F, ratio * d, ratio * h, ratio * w]."""
    return coarse.reshape(coarse.shape[0], -1, *(edge * ratio for edge in coarse.shape[2:]))


def coarsen(gate: Tensor, ratio: int) -> Tensor:
    """Largest gate in and around each coarse cell, [B, d, h, w] of [B, ratio * d, ratio * h, ratio * w]."""
    if ratio == 1:
        return gate
    return functional.max_pool3d(gate[:, None], ratio + 1, ratio, ratio // 2)[:, 0]


def cell_means(masks: Tensor, places: Sequence[GridPosition], cells: Sequence[int]) -> Tensor:
    """Fraction of tumour around each cell of a grid.

    Args:
        masks: [B, D, H, W]; nothing outside of it counts as tumour. NaN throughout gives NaN throughout.
        places: Of the grid's cells along D, H and W.
        cells: Their number along D, H and W.

    Returns:
        [B, *cells], the mean over a box around each cell that reaches half a step to either side.
    """
    means = masks
    for axis, (place, count) in enumerate(zip(places, cells, strict=True), start=1):  # a box is a product of intervals
        means = _interval_means(means, axis, place, count)
    return means


def _interval_means(values: Tensor, axis: int, place: GridPosition, count: int) -> Tensor:
    """Mean around each of `count` cells along one axis; zeros beyond its ends count."""
    offset, step = place
    stride, size = round(step), values.shape[axis]
    edge = stride + 1 - stride % 2
    firsts = [index * stride - edge // 2 + round(offset) for index in range(count)]
    whole = [first for first in firsts if 0 <= first <= size - edge]
    parts = []
    for first in firsts:
        if first not in whole:
            start, stop = max(first, 0), min(first + edge, size)
            parts.append(values.narrow(axis, min(start, size), max(stop - start, 0)).sum(axis, keepdim=True))
        elif first == whole[0]:
            inside = values.narrow(axis, first, whole[-1] + edge - first)
            parts.append(inside.unfold(axis, edge, stride).sum(-1))
    return torch.cat(parts, axis).div_(edge)
