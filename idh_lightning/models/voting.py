"""Voting network: a tumour segmenter whose dense vote is the prediction, with nothing else to decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.models.locator import segmentation, segmented
from idh_lightning.models.network import NetworkOutput
from idh_lightning.models.segmentation import (
    PRETRAINED,
    TumourSegmenter,
    dense_vote,
    found_tumour,
    load_segmenter,
    tumour_logit,
)
from idh_lightning.models.weights import WeightsOrigin


class VotingNetwork(nn.Module):
    """Tumour segmenter with the interface of a `StemTailNetwork`, which sees a study and its mirror image.

    Its logits are the dense vote, halved and with either sign. There is no frozen stem: what a stem gives here is the
    volumes themselves.
    """

    def __init__(
        self,
        *,
        sequences: Sequence[str] = SEQUENCES,
        locator: TumourSegmenter | str = "pretrained",
        weights: str = "pretrained",
    ) -> None:
        """Build the network.

        Args:
            sequences: Names of the channels of volumes.
            locator: Tumour segmenter, or "pretrained" for that of the package.
            weights: Word for where they are from.

        Raises:
            ModelError: If the weights of the package cannot be read.
        """
        super().__init__()
        self.sequences = tuple(sequences)
        self.locator = locator if isinstance(locator, TumourSegmenter) else load_segmenter()
        self.locator.mirrored = True  # it finds more of a tumour: docs/results/real.md
        self.weights_origin = WeightsOrigin(requested=weights, source=PRETRAINED.name)

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits [B, 2], float32, wildtype and mutant, of volumes [B, C, D, H, W] z-normalised within the brain."""
        return self.answer(volumes).logits

    def stem(self, volumes: Tensor, *, to_train: bool = False) -> Tensor:
        """Volumes as they are, to train or to predict: nothing is frozen before the locator."""
        return volumes

    def tail(self, features: Tensor) -> Tensor:
        """Logits [B, 2] of what `stem` gave."""
        return self.answer(features).logits

    def explainable_forward(self, volumes: Tensor) -> Tensor:
        """Logits as of `forward`, with a graph."""
        return self.answer(volumes).logits

    def answer(self, features: Tensor) -> NetworkOutput:
        """Logits, and the probability of tumour in each voxel, of what `stem` gave."""
        voxels = segmentation(self.locator, features, self.sequences)
        vote = dense_vote(voxels)
        logits = torch.stack([-vote, vote], dim=1) / 2
        return NetworkOutput(logits, torch.sigmoid(tumour_logit(voxels)), (logits,))

    @torch.no_grad()
    def own(self, features: Tensor) -> Tensor:
        """Features [B, F, d, h, w] of the coarsest level of the locator, of what `stem` gave."""
        return segmented(self.locator, features, self.sequences).coarsest

    def tumour_fraction(self, masks: Tensor) -> Tensor:
        """Masks [B, D, H, W] as they are: the tumour map has their grid."""
        return masks

    def parts(self) -> list[nn.Module]:
        """Modules whose weights are of different scales: one."""
        return [self.locator]

    @contextmanager
    def cache_stem(self) -> Iterator[None]:
        """Context of `StemTailNetwork`, in which there is nothing to cache here."""
        yield

    @contextmanager
    def with_stem_features(self, volumes: Tensor, features: Tensor) -> Iterator[None]:
        """Context of `StemTailNetwork`: here the features are the volumes."""
        yield


def tumour_probability(network: nn.Module, volumes: Tensor) -> Tensor | None:
    """Probability [B, D, H, W] of tumour by the `locator` of a network, of volumes [B, C, D, H, W], without specks.

    None where the network has no locator.
    """
    locator, sequences = (getattr(network, name, None) for name in ("locator", "sequences"))
    if locator is None or sequences is None:
        return None
    with torch.no_grad():
        return found_tumour(segmentation(locator, volumes, sequences))
