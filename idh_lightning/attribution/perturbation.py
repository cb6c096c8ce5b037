"""Perturbation methods: a part of the brain is replaced by its mirror image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining, margins, unit_maximum
from idh_lightning.models import StemTailNetwork

PROXIMITY = 2.0
"""How much distance counts beside intensity (z-scores of all sequences) when supervoxels form: at this weight half the
edge of a supervoxel counts as much as one standard deviation in one sequence."""

ITERATIONS = 5
"""In which supervoxels form."""


def mirrored(volumes: Tensor) -> Tensor:
    """Mirror image that replaces tissue, [..., D, H, W]: the other hemisphere, left and right exchanged.

    It is tissue of the same patient and sequences, so that the network is not asked about volumes that do not occur.
    Where the mirror image lies outside the brain it is 0, the brain's mean. A tumour across the midline is replaced by
    itself in part.
    """
    return volumes.flip(-1)


def margin_lost(network: StemTailNetwork, volume: Tensor) -> Callable[[Tensor], Tensor]:
    """Function that measures by how much the margin of the predicted class falls when voxels are replaced.

    Args:
        network: In eval mode.
        volume: [C, D, H, W]. What is returned takes regions of it, [R, D, H, W], and gives [R], negative where the
            margin grows.
    """
    logits = network(volume[None])
    mutant = logits.argmax(1) == 1
    before, other = margins(logits, mutant), mirrored(volume)

    def lost(regions: Tensor) -> Tensor:
        replaced = torch.where(regions[:, None], other, volume)
        return before - margins(network(replaced), mutant.expand(len(regions)))

    return lost


@dataclass(frozen=True, kw_only=True)
class _Perturbation(ABC):
    """Explains the predicted class by how far its margin falls when one region after another is replaced.

    Attributes:
        per_edge: Regions along each edge of the volume; its cube, less what lies outside the brain, is the number of
            times that the network is asked.
        batch_size: Replaced volumes that the network sees at once.
    """

    per_edge: int = 8
    batch_size: int = 4

    @abstractmethod
    def regions(self, volume: Tensor) -> Iterator[Tensor]:
        """Yield regions of the brain of one study [C, D, H, W] as masks [D, H, W]."""

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies. See `Method`.

        A voxel has the mean effect of the regions that hold it; regions without which the margin grows count as 0.
        """
        with explaining(network), torch.no_grad():
            maps = [self._painted(volume, margin_lost(network, volume)) for volume in volumes]
        return unit_maximum(torch.stack(maps).float())

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Share of tumour in each region, painted as effects are. See `Method`."""

        def shares_of(mask: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda regions: (regions * mask).sum((1, 2, 3)) / regions.sum((1, 2, 3))

        painted = [self._painted(volume, shares_of(mask)) for volume, mask in zip(volumes, masks, strict=True)]
        return torch.stack(painted)

    def _painted(self, volume: Tensor, values_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean in each voxel of the positive values of the regions that hold it, [D, H, W]."""
        total = volume.new_zeros(volume.shape[1:])
        held = torch.zeros_like(total)
        regions = self.regions(volume)
        while chunk := list(islice(regions, self.batch_size)):
            masks = torch.stack(chunk)
            values = values_of(masks).relu().to(total.dtype)
            total += torch.einsum("r,rdhw->dhw", values, masks.to(total.dtype))
            held += masks.sum(0)
        return total / held.clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class Occlusion(_Perturbation):
    """Replaces cubes that overlap by half. See `_Perturbation`.

    Source: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, there with grey squares.
    """

    name = "Occlusion"

    def regions(self, volume: Tensor) -> Iterator[Tensor]:
        """Yield cubes, as far as they are brain."""
        brain = volume.ne(0).any(0)
        # Of 2 / per_edge of the volume's edge, centred on cells of 1 / per_edge.
        bounds = [
            [
                slice(max(round((cell - 0.5) * size / self.per_edge), 0), round((cell + 1.5) * size / self.per_edge))
                for cell in range(self.per_edge)
            ]
            for size in brain.shape
        ]
        for cube in product(*bounds):
            if brain[cube].any():
                mask = torch.zeros_like(brain)
                mask[cube] = brain[cube]
                yield mask


@dataclass(frozen=True, kw_only=True)
class Supervoxels(_Perturbation):
    """Replaces connected pieces of like tissue, whose borders follow those of the image. See `_Perturbation`.

    Source: SLIC, Achanta et al. 2012, doi:10.1109/TPAMI.2012.120, computed by SimpleITK.
    """

    name = "Supervoxels"

    def regions(self, volume: Tensor) -> Iterator[Tensor]:
        """Yield supervoxels, as far as they are brain."""
        brain = volume.ne(0).any(0)
        labels = torch.from_numpy(supervoxels(volume.float().cpu().numpy(), self.per_edge)).to(volume.device)
        for label in torch.unique(labels[brain]).tolist():
            yield (labels == label) & brain


def supervoxels(volume: np.ndarray, per_edge: int) -> np.ndarray:
    """Number of the supervoxel of each voxel, [D, H, W], about `per_edge` along each edge."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(volume, 0, -1)), isVector=True)
    steps = [max(round(size / per_edge), 1) for size in reversed(volume.shape[1:])]
    found = sitk.SLIC(
        image, superGridSize=steps, spatialProximityWeight=PROXIMITY, maximumNumberOfIterations=ITERATIONS
    )
    return np.asarray(sitk.GetArrayFromImage(found)).astype(np.int64)
