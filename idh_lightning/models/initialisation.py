"""Initialisation of an untrained EfficientNet whose stem stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idh_lightning.models.fast.fused import last_norm
from idh_lightning.models.timm3d import InvertedResidual, SqueezeExcite

SMOOTH_SHARE = 0.9
"""Share of the power of a spatial kernel that is smooth after `steady_initialisation`."""

SHARP_MODULES = ("conv_stem", "blocks.0.", "blocks.1.")
"""Modules whose spatial kernels `steady_initialisation` leaves narrow."""

BENT_STAGES = 3
"""Number of stages whose activations `steady_initialisation` lets bend; those after them begin nearly linear."""

LINEAR_OFFSET = 2.0
"""In standard deviations: at two, SiLU of most of the signal is close to a straight line."""


def steady_initialisation(network: nn.Module) -> None:
    """Initialise an untrained EfficientNet so that similar volumes have similar features.

    With timm's initialisation B7 is chaotic in 3D: its 38 residual blocks of the stem amplify any difference, so that
    noise of a tenth of the signal moves the features of a study as far as another patient would, and nothing can be
    learnt from a stem that stays as it is. These changes undo that:

    - each residual branch begins switched off, as the last BatchNorm of the branch has scale 0; in the frozen stem it
      stays so, in the tail it learns;
    - spatial kernels are mostly smooth: a Gaussian plus noise, rather than noise alone. Its standard deviation is an
      eighth of the kernel's edge in the first two stages, so that what is a voxel or two wide, such as an enhancing
      ring, is still there when the first activations bend, and a quarter of the edge after them;
    - 1 x 1 x 1 convolutions are orthogonal, so that they lose as little as their width allows;
    - squeeze-and-excitation begins neutral, the same for every channel and study;
    - in the first three stages, what each channel responds to is spread over the range of its input by random offsets
      before the activation, so that averages of channels keep the shape of the distribution: how much bright tissue
      there is, not only how bright the tissue is on average;
    - after them, offsets put the activations where they are nearly linear: at that depth random bends lose more of
      what the first stages found than they add. The tail bends them as it learns.

    Args:
        network: A timm_3d EfficientNet, changed in place.

    Source: switched-off branches, Goyal et al. 2017, arXiv:1706.02677, section 5.1; orthogonal weights, Saxe et al.
        2014, arXiv:1312.6120.
    """
    nn.init.normal_(network.bn1.bias)  # type: ignore[arg-type, union-attr]
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and module.bias is None:
            if module.kernel_size == (1, 1, 1):
                nn.init.orthogonal_(module.weight)
            else:
                _smooth_(module.weight, width=1 / 8 if name.startswith(SHARP_MODULES) else 1 / 4)
        if isinstance(module, SqueezeExcite):
            nn.init.zeros_(module.conv_expand.weight)
            nn.init.zeros_(module.conv_expand.bias)
        if isinstance(module, InvertedResidual):
            if int(name.split(".")[1]) < BENT_STAGES:
                nn.init.normal_(module.bn1.bias)
            else:
                nn.init.constant_(module.bn1.bias, LINEAR_OFFSET)
                nn.init.constant_(module.bn2.bias, LINEAR_OFFSET)
        if getattr(module, "has_skip", False):
            nn.init.zeros_(last_norm(module).weight)


@torch.no_grad()
def _smooth_(weight: Tensor, *, width: float) -> None:
    """Replace a spatial kernel [O, I, k, k, k] by random amounts of a Gaussian of `width` edges, with some noise."""
    outputs, inputs, edge = weight.shape[:3]
    offset = torch.arange(edge) - (edge - 1) / 2
    profile = torch.exp(-(offset**2) / (2 * (edge * width) ** 2))
    gaussian = profile[:, None, None] * profile[None, :, None] * profile[None, None, :]
    noise = torch.randn_like(weight)
    amount = torch.randn(outputs, inputs, 1, 1, 1) if inputs > 1 else torch.ones(outputs, 1, 1, 1, 1)
    smooth = gaussian / gaussian.norm()
    noise = noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    weight.copy_(amount * smooth * SMOOTH_SHARE**0.5 + noise * (1 - SMOOTH_SHARE) ** 0.5)
