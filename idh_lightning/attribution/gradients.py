"""Integrated gradients: of the voxels of a study, and of what enters the tail of a network with a locator."""

from __future__ import annotations

from dataclasses import dataclass

import captum.attr
import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining, margins, placed, shares_placed, unit_maximum
from idh_lightning.config.checks import NEEDS_LOCATOR
from idh_lightning.errors import ModelError
from idh_lightning.models import StemTailNetwork, TailInput
from idh_lightning.models.cells import coarsen
from idh_lightning.models.locator import TUMOUR
from idh_lightning.models.radiomics import INTENSITY_STATISTICS

SHUT = 1e-6
"""A gate below this is taken to be shut."""


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

    name = "Integrated gradients"
    steps: int = 8
    batch_size: int = 4

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies. See `Method`."""
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
        """Masks as they are: the cells are the voxels. See `Method`."""
        return masks


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Explains the predicted class of a network with a locator by integrated gradients of what enters its tail.

    - What each coarse place says to the deep layers, on the way from a shut gate to the study, is spread over its
      voxels as the gate lets them through, whether it speaks for the class or against it.
    - What the reader reads in each cell of the tumour map, on the way from what is ordinary in this brain, is added
      where it speaks for the class. Spread and skewness of a tumour are read from cells together, so that a cell which
      speaks against it may only stand beside one that speaks for it.

    The map is what then speaks for the class. What the reader makes of the tumour's place and size, and the dense vote
    (see `DenseVote`), are not in it.

    Attributes:
        steps: Points on the way at which the gradient is taken.
    """

    name = "Evidence"
    steps: int = 4

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies, by a network with a locator. See `Method`."""
        seen, read, gate = self.contributions(network, volumes)
        shape = volumes.shape[2:]
        coarse = [network.sampling(network.entry_layer, size) for size in shape]
        fine = [network.sampling(TUMOUR, size) for size in shape]
        ratio = gate.shape[-1] // seen.shape[-1]
        # A coarse place, as wide open as the gate is anywhere in it, is ratio^3 cells.
        evenly = placed(seen / coarsen(gate, ratio).clamp_min(SHUT), shape, coarse) / ratio**3
        return unit_maximum((evenly * placed(gate, shape, fine) + placed(read.relu(), shape, fine)).relu())

    def contributions(self, network: StemTailNetwork, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contributions of coarse positions and cells to the margin of the predicted class, and the gate.

        Over a study both add up to its margin minus that of a shut gate and ordinary tissue, as far as the steps allow.

        Returns:
            [B, d, h, w] on the grid of the deep layers' input; [B, e, f, g] on that of the tumour map; the probability
            of tumour there, [B, e, f, g].

        Raises:
            ModelError: If the network has no locator.
        """
        if network.locator is None:
            raise ModelError(NEEDS_LOCATOR)

        def margin(deep: Tensor, tissue: Tensor, tumour: Tensor, vote: Tensor, mutant: Tensor) -> Tensor:
            return margins(network.classify(TailInput(deep, tissue, tumour, vote)).logits, mutant)

        with explaining(network):
            with torch.no_grad():
                entry = network.entry(network.stem(volumes))
                mutant = network.classify(entry).logits.argmax(1) == 1
            deep, tissue, tumour, vote = entry
            assert tissue is not None
            assert tumour is not None
            found = captum.attr.IntegratedGradients(margin).attribute(
                (deep, tissue),
                baselines=(torch.zeros_like(deep), _ordinary(tissue, tumour)),
                additional_forward_args=(tumour, vote, mutant),
                n_steps=self.steps,
                internal_batch_size=len(volumes),
            )
        seen, read = (contributions.sum(1).float() for contributions in found)
        return seen, read, tumour

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Share of tumour in the cells of the tumour map, placed. See `Method`."""
        return shares_placed(network, TUMOUR, masks)


def _ordinary(tissue: Tensor, tumour: Tensor) -> Tensor:
    """Tissue of an average cell of the brain outside the tumour, in every cell of [B, G, e, f, g]."""
    varied = torch.chunk(tissue, INTENSITY_STATISTICS, dim=1)[1].sum(1) > 0  # which it is nowhere outside the brain
    weight = ((1 - tumour) * varied)[:, None]
    mean = (tissue * weight).sum((2, 3, 4), keepdim=True) / weight.sum((2, 3, 4), keepdim=True).clamp_min(SHUT)
    return mean.expand_as(tissue)
