"""Dense vote: the contributions of voxels whose sum is the vote, as the network itself adds them up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining, unit_maximum
from idh_lightning.config.checks import NEEDS_LOCATOR
from idh_lightning.errors import ModelError
from idh_lightning.models import StemTailNetwork, VotingNetwork
from idh_lightning.models.locator import segmentation
from idh_lightning.models.segmentation import vote_contributions


@dataclass(frozen=True, kw_only=True)
class DenseVote:
    """Explains the predicted class of a network with a locator by what each voxel adds to the dense vote.

    Nothing is estimated: the vote is the sum of these contributions. The map is what speaks for the predicted class in
    them; what deep layers and radiomics head decide by is not in it.
    """

    name = "Dense vote"

    def __call__(self, network: StemTailNetwork | VotingNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies, by a network with a locator; zero where no voxel votes for the class. See `Method`."""
        contributions = self.contributions(network, volumes)
        with explaining(network), torch.no_grad():
            logits = network(volumes)
            sign = torch.sign(logits[:, 1] - logits[:, 0])
            if (head := getattr(network, "vote", None)) is not None:
                sign = sign * torch.sign(head.scale)
        return unit_maximum((contributions * sign[:, None, None, None]).relu())

    def contributions(self, network: StemTailNetwork | VotingNetwork, volumes: Tensor) -> Tensor:
        """Signed contribution of each voxel to the dense vote, [B, D, H, W]: above 0 for mutant, below for wildtype.

        Over a study they add up to the dense vote.

        Raises:
            ModelError: If the network has no locator.
        """
        locator = getattr(network, "locator", None)
        if locator is None:
            raise ModelError(NEEDS_LOCATOR)
        with torch.no_grad():
            each = (segmentation(locator, volume, network.sequences) for volume in torch.split(volumes, 1))
            return torch.cat([vote_contributions(logits) for logits in each])

    def reference(self, network: StemTailNetwork | VotingNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Masks as they are: the cells are the voxels. See `Method`."""
        return masks
