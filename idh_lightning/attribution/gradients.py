"""Integrated gradients: what each voxel contributes on the way from nothing to the study."""

from __future__ import annotations

from dataclasses import dataclass

import captum.attr
import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining, margins, unit_maximum
from idh_lightning.models import StemTailNetwork


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """Explains the predicted class of each study by its voxels, through the whole network.

    The way begins at a volume of zeros, the mean of the brain in every voxel. Contributions of the sequences are added;
    the map is what speaks for the predicted class.

    Attributes:
        steps: Points on the way at which the gradient is taken.
        batch_size: Of them at once: memory grows with it, not with the steps.

    Source: Sundararajan et al. 2017, arXiv:1703.01365, computed by captum.
    """

    steps: int = 8
    batch_size: int = 4

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return "Integrated gradients"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study, [B, D, H, W], float32, each between 0 and 1 with its maximum at 1.

        Args:
            network: Left as it was, in eval or training mode; explained in eval mode.
            volumes: [B, C, D, H, W].
        """
        return unit_maximum(self.contributions(network, volumes).sum(1).relu())

    def contributions(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Contribution of each voxel to the margin of the predicted class, [B, C, D, H, W].

        Over a study they add up to its margin minus that of a volume of zeros, as far as the steps allow.
        """

        def margin(volume: Tensor, mutant: Tensor) -> Tensor:
            return margins(network.explainable_forward(volume), mutant)

        found = []
        with explaining(network):
            for volume in torch.split(volumes, 1):
                with torch.no_grad():
                    mutant = network(volume).argmax(1) == 1
                found.append(
                    captum.attr.IntegratedGradients(margin).attribute(
                        volume,
                        additional_forward_args=(mutant,),
                        n_steps=self.steps,
                        internal_batch_size=self.batch_size,
                    )
                )
        return torch.cat(found).float()

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Return the masks: the cells are the voxels. See `Method`."""
        return masks
