"""Grad-CAM of a network with a frozen stem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchcam.methods
from torch import Tensor

from idh_lightning.explain.maps import placed, unit_maximum
from idh_lightning.models import StemTailNetwork


@dataclass(frozen=True, kw_only=True)
class GradCAM:
    """Explains the predicted class of each study by the activations of one layer.

    Attributes:
        layer: Name of a module of the network, or `entry` for what enters its trainable part, after the locator's gate.
            Its output grid is the resolution of the map: for B7 `entry` and `blocks.4` have 1/16 of the input's edge,
            `blocks.2` has 1/8, `blocks.6` and `conv_head` have 1/32.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2, computed by TorchCAM.
    """

    layer: str = "entry"

    @property
    def name(self) -> str:
        """What the method is called in tables."""
        return f"Grad-CAM of {self.layer}"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study, on the grid of the volumes.

        What is explained is the difference between the logit of the predicted class and that of the other, so that
        evidence for wildtype has a map as well.

        Args:
            network: Left as it was, in eval or training mode; explained in eval mode.
            volumes: [B, C, D, H, W].

        Returns:
            [B, D, H, W], float32, each map between 0 and 1 with its maximum at 1; all zero where no activation of
            the layer speaks for the predicted class.

        Raises:
            ModelError: If the network has no such layer.
        """
        was_training = network.training
        network.eval()
        try:
            # The hook of `watch` comes before those of TorchCAM, which then see an output that has a gradient.
            with torch.enable_grad(), network.watch(self.layer), self._extractor(network) as extractor:
                run = network.explainable_forward if network.in_stem(self.layer) else network
                logits = run(volumes)
                coarse: Tensor = extractor(targets=_margin_of_prediction, scores=logits, normalized=False)[0]
        finally:
            network.train(was_training)
        places = [network.sampling(self.layer, size) for size in volumes.shape[2:]]
        return unit_maximum(placed(coarse.detach().float(), volumes.shape[2:], places))

    def _extractor(self, network: StemTailNetwork) -> torchcam.methods.GradCAM:
        return torchcam.methods.GradCAM(network.network, self.layer)


def _margin_of_prediction(logits: Tensor) -> Tensor:
    return (logits[1] - logits[0]).abs()
