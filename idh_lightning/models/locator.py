"""The frozen locator in a network: a segmentation network, and what is kept of its answer in the cells of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.models.cells import cell_means
from idh_lightning.models.radiomics import intensities
from idh_lightning.models.segmentation import TumourSegmenter, dense_vote, tumour_logit

TUMOUR = "tumour"
"""Name of the grid of the tumour map: a cell at every second voxel, whatever the backbone."""

CELL = 2
"""Voxels from one of its cells to the next."""


def tumour_cells(size: int) -> tuple[float, float, int]:
    """Offset and step, in voxels, of the cells of the tumour map along an axis of `size` voxels, and their number."""
    return 0.0, float(CELL), -(-size // CELL)


class Segmented(NamedTuple):
    """Volumes [B, C, D, H, W] and what a locator made of them: logits [B, 3, D, H, W], coarsest features."""

    volumes: Tensor
    logits: Tensor
    coarsest: Tensor


_KNOWN: ContextVar[dict[TumourSegmenter, Segmented] | None] = ContextVar("known", default=None)


@contextmanager
def segmenting_once() -> Iterator[None]:
    """Context in which each locator segments the same volumes once, however often it is asked, where no graph is made.

    A new patient's tumour, map, descriptor and number all begin with it, and it is most of their time.
    """
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def segmentation(
    locator: TumourSegmenter, volumes: Tensor, sequences: Sequence[str], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits [B, 3, D, H, W], as float32, of volumes [B, C, D, H, W] of C sequences; those that are absent are 0.

    Computed in float32, or in bfloat16, which is faster on some CPUs (see `precision_on_cpu`).
    """
    if _KNOWN.get() is not None and not torch.is_grad_enabled() and dtype == torch.float32:
        return segmented(locator, volumes, sequences).logits
    return _logits(locator, volumes, sequences, dtype)


@torch.no_grad()
def segmented(locator: TumourSegmenter, volumes: Tensor, sequences: Sequence[str]) -> Segmented:
    """Logits as of `segmentation`, and coarsest features; within `segmenting_once`, those that are known already."""
    known = _KNOWN.get()
    found = known.get(locator) if known is not None else None
    if found is not None and found.volumes.shape == volumes.shape and torch.equal(found.volumes, volumes):
        return found
    kept: list[Tensor] = []
    with locator.down[-1].register_forward_hook(lambda _module, _inputs, output: kept.append(output)):
        logits = _logits(locator, volumes, sequences)
    made = Segmented(volumes, logits, kept[0])
    if known is not None and len(volumes) == 1:
        known[locator] = made
    return made


def _logits(
    locator: TumourSegmenter, volumes: Tensor, sequences: Sequence[str], dtype: torch.dtype = torch.float32
) -> Tensor:
    channels = dict(zip(sequences, volumes.float().unbind(1), strict=True))
    nothing = torch.zeros_like(volumes[:, 0], dtype=torch.float32)
    with torch.autocast(volumes.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits: Tensor = locator(torch.stack([channels.get(name, nothing) for name in SEQUENCES], dim=1))
    return logits.float()


def located(volumes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers that the stem keeps of the logits of a segmentation.

    Returns:
        [B, 1 + 4 C, d, h, w], tumour and `intensities` in the cells of the tumour map; [B], the dense vote. A cell
        holds the mean over its voxels of the probability of tumour: unlike that of a logit, its 0 beyond the end of a
        grid says that there is none.
    """
    axes = [tumour_cells(size) for size in volumes.shape[2:]]
    places, cells = [each[:2] for each in axes], [each[2] for each in axes]
    tumour = cell_means(torch.sigmoid(tumour_logit(logits)), places, cells)
    return torch.cat([tumour[:, None], intensities(volumes, places, cells)], dim=1), dense_vote(logits)
