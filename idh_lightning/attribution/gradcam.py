"""Class-activation maps of a network with a frozen stem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchcam.methods
from torch import Tensor

from idh_lightning.attribution.maps import explaining, placed, shares_placed, unit_maximum
from idh_lightning.models import StemTailNetwork

Variant = Literal["grad_cam", "grad_cam_pp", "layer_cam"]

FUSION_GAIN = 2.0
"""Of the hyperbolic tangent that lifts maps before they are fused. Source: Jiang et al. 2021, eq. 9."""


class _GradCAMpp(torchcam.methods.GradCAMpp):  # type: ignore[misc]
    """Grad-CAM++ with the pixel weights of its paper.

    torchcam 0.5.0 divides a copy (`alpha[idx][mask].div_`), so that its weights are those of the numerator alone; once
    a release divides in place, this class can go.
    """

    def _get_weights(self, class_idx: Any, scores: Tensor, **kwargs: Any) -> list[Tensor]:
        self._backprop(scores, class_idx, **kwargs)
        weights = []
        for gradient, activation in zip(self.hook_g, self.hook_a, strict=True):
            square, cube = gradient.pow(2), gradient.pow(3)
            across = (cube * activation).flatten(2).sum(2)[..., None, None, None]
            divisor = 2 * square + across
            alpha = torch.where(divisor != 0, square / divisor, torch.zeros_like(square))
            weights.append((alpha * gradient.relu()).flatten(2).sum(2))
        return weights


_VARIANTS: dict[Variant, tuple[str, Any]] = {
    "grad_cam": ("Grad-CAM", torchcam.methods.GradCAM),
    "grad_cam_pp": ("Grad-CAM++", _GradCAMpp),
    "layer_cam": ("LayerCAM", torchcam.methods.LayerCAM),
}


@dataclass(frozen=True, kw_only=True)
class GradCAM:
    """Explains the predicted class of each study by the activations of one layer, or of several, fused.

    Attributes:
        layer: Name of a module of the network, or `entry` for what enters its trainable part, after the locator's gate.
            Its output grid is the resolution of the map: for B7 `entry` and `blocks.4` have 1/16 of the input's edge,
            `blocks.2` has 1/8, `blocks.6` and `conv_head` have 1/32. Of several layers each place gets the largest
            value, after tanh(2 x) of maps with maximum 1.
        variant: How activations are weighted. grad_cam: each channel by its mean gradient. grad_cam_pp: by a mean that
            favours where the gradient is positive. layer_cam: each place of each channel by its own positive gradient,
            which suits early layers.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2; Chattopadhay et al. 2018, arXiv:1710.11063, eq. 10
        and 19; Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eq. 7 to 9. Computed by TorchCAM.
    """

    layer: str | Sequence[str] = "entry"
    variant: Variant = "grad_cam"

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return f"{_VARIANTS[self.variant][0]} of {' and '.join(self.layers)}"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules."""
        return (self.layer,) if isinstance(self.layer, str) else tuple(self.layer)

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies. See `Method`."""
        extractor_of = _VARIANTS[self.variant][1]
        # The hook of `watch` comes before those of TorchCAM, which then see an output that has a gradient.
        with (
            explaining(network),
            network.watch(*self.layers),
            extractor_of(network.network, list(self.layers)) as extractor,
        ):
            in_stem = any(network.in_stem(layer) for layer in self.layers)
            logits = network.explainable_forward(volumes) if in_stem else network(volumes)
            coarse: list[Tensor] = extractor(targets=_margin_of_prediction, scores=logits, normalized=False)
        shape = volumes.shape[2:]
        maps = [
            unit_maximum(placed(cam.detach().float(), shape, [network.sampling(layer, size) for size in shape]))
            for layer, cam in zip(self.layers, coarse, strict=True)
        ]
        if len(maps) == 1:
            return maps[0]
        return unit_maximum(torch.stack([torch.tanh(FUSION_GAIN * cam) for cam in maps]).amax(0))

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Share of tumour in the cells of the finest layer, placed. See `Method`."""
        finest = min(self.layers, key=lambda layer: network.sampling(layer, masks.shape[1])[1])
        return shares_placed(network, finest, masks)


def _margin_of_prediction(logits: Tensor) -> Tensor:
    return (logits[1] - logits[0]).abs()
