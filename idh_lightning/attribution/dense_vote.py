"""Dense vote: the contributions of voxels whose sum is the logit, as the network itself adds them up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idh_lightning.attribution.maps import unit_maximum
from idh_lightning.errors import ModelError
from idh_lightning.models.segmentation import vote_contributions


@dataclass(frozen=True, kw_only=True)
class DenseVote:
    """Explains the dense vote of a network with a tumour segmenter by what each voxel adds to it.

    Nothing is estimated: the vote is the sum of these contributions. The map is what speaks for the class that the vote
    is for.
    """

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return "Dense vote"

    def __call__(self, network: nn.Module, volumes: Tensor) -> Tensor:
        """Return one map per study, [B, D, H, W], float32, each between 0 and 1 with its maximum at 1.

        Args:
            network: With a segmenter. Left as it was, in eval or training mode.
            volumes: [B, C, D, H, W].

        Raises:
            ModelError: If the network has no segmenter.
        """
        signed = self.contributions(network, volumes)
        towards = torch.where(signed.sum((1, 2, 3), keepdim=True) > 0, signed, -signed)
        return unit_maximum(towards.relu())

    def contributions(self, network: nn.Module, volumes: Tensor) -> Tensor:
        """Contribution of each voxel to the dense vote, mutant minus wildtype, [B, D, H, W]; their sum is the vote.

        Raises:
            ModelError: If the network has no segmenter.
        """
        segmenter = getattr(network, "segmenter", None)
        if segmenter is None:
            raise ModelError(
                "explain: 'dense_vote' needs a network with a tumour segmenter; expected one. Choose another method: "
                "explain=grad_cam, or methods=[grad_cam,occlusion]."
            )
        with torch.no_grad():
            return vote_contributions(segmenter(volumes))

    def reference(self, network: nn.Module, volumes: Tensor, masks: Tensor) -> Tensor:
        """Return the masks: the cells are the voxels. See `Method`."""
        return masks
