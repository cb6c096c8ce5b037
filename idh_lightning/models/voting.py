"""Voting network: a tumour segmenter whose dense vote is the prediction, with nothing else to decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from idh_lightning.models.network import NetworkOutput
from idh_lightning.models.segmentation import (
    PRETRAINED,
    WIDTHS,
    TumourSegmenter,
    dense_vote,
    load_segmenter,
    tumour_logit,
)
from idh_lightning.models.weights import LATER, WeightsOrigin


class VotingNetwork(nn.Module):
    """Tumour segmenter with the interface of a `StemTailNetwork`.

    Its logits are the dense vote, halved and with either sign. There is no frozen stem: what a stem gives here is the
    volumes themselves.
    """

    locator_stage: str | None = None
    """Stage from which a locator sees the tumour: none, since this network sees it as it is."""

    def __init__(self, *, in_channels: int = 4, weights: str = "pretrained", widths: Sequence[int] = WIDTHS) -> None:
        """Build the network.

        Args:
            in_channels: Number of MRI sequences.
            weights: "pretrained" for those of the package, "none", or "later": the caller fills them in.
            widths: Channels of the levels of the segmenter.

        Raises:
            ModelError: If the weights of the package cannot be read.
        """
        super().__init__()
        self.segmenter = load_segmenter() if weights == "pretrained" else TumourSegmenter(in_channels, widths)
        source = "none" if weights in ("none", LATER) else PRETRAINED.name
        self.weights_origin = WeightsOrigin(requested=weights, source=source)

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits [B, 2], float32, wildtype and mutant, of volumes [B, C, D, H, W] z-normalised within the brain."""
        return self.answer(volumes).logits

    def stem(self, volumes: Tensor) -> Tensor:
        """Volumes as they are: nothing is frozen before the segmenter."""
        return volumes

    def tail(self, features: Tensor) -> Tensor:
        """Logits [B, 2] of what `stem` gave."""
        return self.answer(features).logits

    def explainable_forward(self, volumes: Tensor) -> Tensor:
        """Logits as of `forward`, with a graph."""
        return self.answer(volumes).logits

    def answer(self, features: Tensor) -> NetworkOutput:
        """Logits, and the logit of tumour in each voxel, of what `stem` gave."""
        voxels = self.segmenter(features)
        vote = dense_vote(voxels)
        logits = torch.stack([-vote, vote], dim=1) / 2
        return NetworkOutput(logits, tumour_logit(voxels), (logits,))

    @torch.no_grad()
    def own(self, features: Tensor) -> Tensor:
        """Features [B, F, d, h, w] of the coarsest level of the segmenter, of what `stem` gave."""
        kept: list[Tensor] = []
        with _hooked(self.segmenter.down[-1], kept):
            self.segmenter(features)
        return kept[0]

    def tumour_fraction(self, masks: Tensor) -> Tensor:
        """Masks [B, D, H, W] as they are: the tumour map has their grid."""
        return masks

    def parts(self) -> list[nn.Module]:
        """Modules whose weights are of different scales: one."""
        return [self.segmenter]

    @contextmanager
    def cache_stem(self) -> Iterator[None]:
        """Context of `StemTailNetwork`, in which there is nothing to cache here."""
        yield

    @contextmanager
    def with_stem_features(self, volumes: Tensor, features: Tensor) -> Iterator[None]:
        """Context of `StemTailNetwork`: here the features are the volumes."""
        yield


def tumour_probability(network: nn.Module, volumes: Tensor) -> Tensor | None:
    """Probability [B, D, H, W] of tumour by the `segmenter` of a network, of volumes [B, C, D, H, W].

    None where the network has no segmenter.
    """
    segmenter = getattr(network, "segmenter", None)
    if segmenter is None:
        return None
    with torch.no_grad():
        return torch.sigmoid(tumour_logit(segmenter(volumes)))


@contextmanager
def _hooked(module: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield
    finally:
        handle.remove()
