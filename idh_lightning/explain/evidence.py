"""What a network with a locator decided by, and where."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idh_lightning.config import NEEDS_LOCATOR
from idh_lightning.errors import ModelError
from idh_lightning.explain.maps import explaining, placed, shares_placed, unit_maximum
from idh_lightning.models import StemTailNetwork


@dataclass(frozen=True)
class Evidence:
    """Explains a network with a locator by the product of two maps.

    - The gate: what share of each place the locator lets through to the classifier, on the locator's grid.
    - The evidence: how much each coarse place, as the deep layers saw it, and each cell, as the reader read it, moved
      the difference of the two logits, for either class: the sum over channels of the magnitude of gradient times
      input. What the reader makes of the tumour's place and size is not in it.

    Where the gate is shut the classifier has seen nothing; where the evidence is nothing it has not cared.
    """

    @property
    def name(self) -> str:
        """What the method is called in tables."""
        return "Evidence"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Return one map per study, on the grid of the volumes.

        Args:
            network: With a locator. Left as it was, in eval or training mode; explained in eval mode.
            volumes: [B, C, D, H, W].

        Returns:
            [B, D, H, W], float32, each map between 0 and 1 with its maximum at 1.

        Raises:
            ModelError: If the network has no locator.
        """
        if network.focus is None:
            raise ModelError(NEEDS_LOCATOR)
        with explaining(network):
            entry = network.entry(network.stem(volumes))
            assert entry.tissue is not None
            assert entry.tumour is not None
            deep, tissue = entry.deep.detach().requires_grad_(True), entry.tissue.detach().requires_grad_(True)
            logits = network.classify(entry._replace(deep=deep, tissue=tissue)).logits
            gradients = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), (deep, tissue))
        seen, read = (
            (gradient * features.detach()).abs().sum(1).float()
            for gradient, features in zip(gradients, (deep, tissue), strict=True)
        )
        gate = torch.sigmoid(entry.tumour.detach())
        shape = volumes.shape[2:]
        coarse = placed(seen, shape, [network.sampling(network.entry_layer, size) for size in shape])
        finer = [network.sampling(network.focus, size) for size in shape]
        # A coarse place is as many fine ones, over which its evidence is spread.
        evidence = coarse * (seen[0].numel() / gate[0].numel()) + placed(read, shape, finer)
        return unit_maximum(evidence * placed(gate, shape, finer))

    def ceiling(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Return the share of tumour in the cells of the locator, placed. See `Method`."""
        assert network.focus is not None
        return shares_placed(network, network.focus, masks)
