"""What an explanation method is; from the cells of a layer to the voxels of the volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from idh_lightning.models import StemTailNetwork


class Method(Protocol):
    """From a network and volumes [B, C, D, H, W] to maps [B, D, H, W] with values 0..1."""

    @property
    def name(self) -> str:
        """What the method is called in tables."""

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study."""


def placed(maps: Tensor, shape: torch.Size, places: Sequence[tuple[float, float]]) -> Tensor:
    """Return maps [B, d, h, w] interpolated linearly to [B, D, H, W], each cell in its place (offset and step)."""
    axes = []
    for cells, size, (offset, step) in zip(maps.shape[1:], shape, places, strict=True):
        cell = (torch.arange(size, device=maps.device) - offset) / step
        axes.append(2 * cell / max(cells - 1, 1) - 1 if cells > 1 else torch.zeros_like(cell))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).to(maps.dtype)
    enlarged = functional.grid_sample(
        maps[:, None], grid.expand(len(maps), *grid.shape), padding_mode="border", align_corners=True
    )
    return enlarged[:, 0]


def unit_maximum(maps: Tensor) -> Tensor:
    """Return maps [B, D, H, W] divided by their largest value; those that are zero throughout stay so."""
    largest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))
