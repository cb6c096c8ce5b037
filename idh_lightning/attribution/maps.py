"""Interface of explanation methods, and maps brought from the cells of a layer to voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from idh_lightning.models import StemTailNetwork


class Method(Protocol):
    """From a network and volumes [B, C, D, H, W] to maps [B, D, H, W] with values 0..1."""

    @property
    def name(self) -> str:
        """Name of the method in tables."""

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study."""

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Return the maps [B, D, H, W] of one that knows the tumour and has no finer cells than the method.

        In each cell they hold the share of tumour, and they are placed on the voxels as the method's maps are. How
        they score is what a map of its cells gets for the share of tumour in each; a sharper map can exceed it.

        Args:
            network: Whose layers make the cells.
            volumes: [B, C, D, H, W].
            masks: [B, D, H, W], float, 1 in the tumour.
        """


@contextmanager
def explaining(network: StemTailNetwork) -> Iterator[None]:
    """Have a network in eval mode and gradients on, but none for its weights, and leave it as it was."""
    was_training, learning = network.training, [weight for weight in network.parameters() if weight.requires_grad]
    network.eval()
    try:
        for weight in learning:
            weight.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)
        network.train(was_training)


def logit_difference(logits: Tensor) -> Tensor:
    """Logit of mutant less that of wildtype, [B], of logits [B, 2]."""
    return logits[:, 1] - logits[:, 0]


def margins(logits: Tensor, mutant: Tensor) -> Tensor:
    """Margin of a class: by how much its logit exceeds that of the other, [B].

    What is explained is this margin of the predicted class, so that evidence for wildtype has a map as well.

    Args:
        logits: [B, 2].
        mutant: [B], True where the class is mutant, False where it is wildtype.
    """
    difference = logit_difference(logits)
    return torch.where(mutant, difference, -difference)


def shares_placed(network: StemTailNetwork, layer: str, masks: Tensor) -> Tensor:
    """Return the share of tumour in each cell of a layer, placed as a map of that layer is: [B, D, H, W]."""
    shape = masks.shape[1:]
    return placed(network.tumour_fraction(masks, layer), shape, [network.sampling(layer, size) for size in shape])


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
