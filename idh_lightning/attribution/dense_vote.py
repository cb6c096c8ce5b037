"""Dense vote map: what each voxel adds to the dense vote of the locator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining, unit_maximum
from idh_lightning.config.checks import NEEDS_LOCATOR
from idh_lightning.errors import ModelError
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.locator import segmentation
from idh_lightning.models.segmentation import vote_contributions


@dataclass(frozen=True, kw_only=True)
class DenseVote:
    """Explains the predicted class of a network with a locator by what each voxel adds to the dense vote.

    Nothing is estimated: the vote is the sum of these contributions. The map is what speaks for the predicted class in
    them; what deep layers and radiomics head decide by is not in it.
    """

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return "Dense vote"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study, [B, D, H, W], float32, each between 0 and 1 with its maximum at 1.

        It is zero throughout where no voxel votes for the predicted class.

        Args:
            network: With a locator. Left as it was, in eval or training mode; explained in eval mode.
            volumes: [B, C, D, H, W].

        Raises:
            ModelError: If the network has no locator.
        """
        contributions = self.contributions(network, volumes)
        with explaining(network), torch.no_grad():
            entry = network.entry(network.stem(volumes))
            mutant = network.classify(entry).logits.argmax(1) == 1
            assert network.vote is not None
            sign = torch.where(mutant, 1.0, -1.0) * torch.sign(network.vote.scale)
        return unit_maximum((contributions * sign[:, None, None, None]).relu())

    def contributions(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Signed contribution of each voxel to the dense vote, [B, D, H, W]: above 0 for mutant, below for wildtype.

        Over a study they add up to the dense vote, which enters the network's branch of that name.

        Raises:
            ModelError: If the network has no locator.
        """
        if network.locator is None:
            raise ModelError(NEEDS_LOCATOR)
        with torch.no_grad():
            each = (segmentation(network.locator, volume, network.sequences) for volume in torch.split(volumes, 1))
            return torch.cat([vote_contributions(logits) for logits in each])

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Return the masks: the cells are the voxels. See `Method`."""
        return masks
