"""A small voting network, written as the one in the package is, of made-up heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from idh_lightning.cohort import Study
from idh_lightning.models.segmentation import TumourSegmenter
from idh_lightning.runs.pretrained import DrawnStudy, _preprocessing, write_pretrained
from idh_lightning.volumes import Preprocessing


def drawn_heads(cohort: Sequence[Study]) -> list[DrawnStudy]:
    """Heads as they would be drawn, on the grid of the shipped network."""
    settings = {key: value for key, value in _preprocessing().items() if key != "_target_"}
    volumes = [Preprocessing(**settings)(study) for study in cohort]
    spacing_mm = 200 / 65
    return [
        DrawnStudy(
            image=volume.image,
            mask=volume.mask,
            brain=volume.brain,
            label=index % 2,
            spacing_mm=(spacing_mm,) * 3,
            native_spacing_mm=volume.native.spacing_mm,
        )
        for index, volume in enumerate(volumes)
    ]


def small_segmenter(*, tumour: float = -2.0, seed: int = 0) -> TumourSegmenter:
    """Untrained segmenter that takes voxels for tumour here and there, the more the higher `tumour` is."""
    torch.manual_seed(seed)
    segmenter = TumourSegmenter(widths=(4, 8))
    nn.init.normal_(segmenter.leave.weight, std=1.0)
    with torch.no_grad():
        segmenter.leave.bias[:8] = -tumour  # eight voxels of a cube: not tumour, wildtype, mutant
    return segmenter.eval()


def write_tiny(folder: Path, drawn: Sequence[DrawnStudy], *, tumour: float = -2.0) -> Path:
    """Write such a network into a folder, and return that."""
    write_pretrained(folder, small_segmenter(tumour=tumour), drawn, card="# A tiny card\n")
    return folder
