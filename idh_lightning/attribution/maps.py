"""Interface of explanation methods, the methods by name, and maps brought from the cells of a layer to voxels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError
from idh_lightning.models import StemTailNetwork, VotingNetwork

logger = logging.getLogger(__name__)

_SLOW = (".Occlusion", ".Supervoxels")
"""Methods that ask the network once for each of some hundred regions of a study."""


class Method(Protocol):
    """From a network and volumes [B, C, D, H, W] to maps [B, D, H, W] with values 0..1."""

    @property
    def name(self) -> str:
        """Name of the method in tables."""

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        """Maps of studies, each with its maximum at 1, or zero where nothing speaks for the predicted class.

        Explained is by how much the logit of the predicted class exceeds that of the other, so that evidence for
        wildtype has a map as well.

        Args:
            network: Left as it was, in eval or training mode; explained in eval mode.
            volumes: [B, C, D, H, W].

        Returns:
            [B, D, H, W], float32, on the grid of the volumes.

        Raises:
            ModelError: If the network lacks the layer or the locator that the method explains by.
        """

    def reference(self, network: StemTailNetwork, volumes: Tensor, masks: Tensor) -> Tensor:
        """Maps [B, D, H, W] of one that knows the tumour and has no finer cells than the method.

        In each cell they hold the share of tumour, and they are placed on the voxels as the method's maps are. How
        they score is what a map of its cells gets for the share of tumour in each; a sharper map can exceed it.

        Args:
            network: Whose layers make the cells.
            volumes: [B, C, D, H, W].
            masks: [B, D, H, W], float, 1 in the tumour.
        """


def methods_named(names: Sequence[str] | None, network: nn.Module) -> list[Method]:
    """Methods of explanation; None for all that fit the network and do not ask it hundreds of times per study.

    `evidence` needs a locator, `dense_vote` as well, and Grad-CAM the layers of an EfficientNet. A line says which ones
    are left out for their time.

    Raises:
        ConfigError: If there is no such file, or a network is not of the kind that a named one explains.
    """
    settings = {name: OmegaConf.load(file) for name, file in method_files(names).items()}
    if unfit := [name for name, one in settings.items() if names and not _fits(str(one._target_), network)]:
        every = {name: OmegaConf.load(file) for name, file in method_files(None).items()}
        fit = ",".join(name for name, one in every.items() if _fits(str(one._target_), network))
        raise ConfigError(
            f"methods: found {', '.join(unfit)}; expected methods that explain this network, which lacks the layers or "
            f"the locator that they read. Give some of methods=[{fit}]."
        )
    if names is None:
        settings = {name: one for name, one in settings.items() if _fits(str(one._target_), network)}
        slow = [name for name, one in settings.items() if str(one._target_).endswith(_SLOW)]
        logger.info("Left out unless named, since they take hundreds of times as long: methods=[%s]", ",".join(slow))
        settings = {name: one for name, one in settings.items() if name not in slow}
    return [instantiate_section(one) for one in settings.values()]


def _fits(target: str, network: nn.Module) -> bool:
    if target.endswith(".Evidence"):
        return isinstance(network, StemTailNetwork) and network.locator is not None
    if target.endswith(".DenseVote"):
        return getattr(network, "locator", None) is not None
    return not target.endswith(".GradCAM") or isinstance(network, StemTailNetwork)


def method_files(names: Sequence[str] | None) -> dict[str, Path]:
    """Name -> file in conf/explain; None for all.

    Raises:
        ConfigError: If there is no such file, or no name.
    """
    files = {path.stem: path for path in sorted((CONF_DIR / "explain").glob("*.yaml"))}
    unknown = [name for name in names or () if name not in files]
    if unknown or (names is not None and not names):
        raise ConfigError(
            f"methods: found {', '.join(unknown) or 'none'}; expected names of files in conf/explain: "
            f"{', '.join(files)}. Correct the names, or write a file for a method of your own."
        )
    return {name: files[name] for name in (files if names is None else names)}


@contextmanager
def explaining(network: StemTailNetwork | VotingNetwork) -> Iterator[None]:
    """Have a network in eval mode and gradients on, but none for its weights, and leave it as it was."""
    was_training, learning = network.training, [weight for weight in network.parameters() if weight.requires_grad]
    network.eval()
    try:
        for weight in learning:
            weight.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)
        network.train(was_training)


def logit_difference(logits: Tensor) -> Tensor:
    """Logit of mutant less that of wildtype, [B], of logits [B, 2]."""
    return logits[:, 1] - logits[:, 0]


def margins(logits: Tensor, mutant: Tensor) -> Tensor:
    """Margin of a class: by how much its logit exceeds that of the other, [B].

    What is explained is this margin of the predicted class, so that evidence for wildtype has a map as well.

    Args:
        logits: [B, 2].
        mutant: [B], True where the class is mutant, False where it is wildtype.
    """
    difference = logit_difference(logits)
    return torch.where(mutant, difference, -difference)


def shares_placed(network: StemTailNetwork, layer: str, masks: Tensor) -> Tensor:
    """Share of tumour in each cell of a layer, placed as a map of that layer is: [B, D, H, W]."""
    shape = masks.shape[1:]
    return placed(network.tumour_fraction(masks, layer), shape, [network.sampling(layer, size) for size in shape])


def placed(maps: Tensor, shape: torch.Size, places: Sequence[tuple[float, float]]) -> Tensor:
    """Maps [B, d, h, w] interpolated linearly to [B, D, H, W], each cell in its place (offset and step)."""
    axes = []
    for cells, size, (offset, step) in zip(maps.shape[1:], shape, places, strict=True):
        cell = (torch.arange(size, device=maps.device) - offset) / step
        axes.append(2 * cell / max(cells - 1, 1) - 1 if cells > 1 else torch.zeros_like(cell))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).to(maps.dtype)
    enlarged = functional.grid_sample(
        maps[:, None], grid.expand(len(maps), *grid.shape), padding_mode="border", align_corners=True
    )
    return enlarged[:, 0]


def unit_maximum(maps: Tensor) -> Tensor:
    """Maps [B, D, H, W] divided by their largest value; those that are zero throughout stay so."""
    largest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))
