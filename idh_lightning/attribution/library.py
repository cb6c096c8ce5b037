"""Methods of explanation by the names of their files in conf/explain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from idh_lightning.attribution.dense_vote import DenseVote
from idh_lightning.attribution.evidence import Evidence
from idh_lightning.attribution.gradcam import GradCAM
from idh_lightning.attribution.maps import Method
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError
from idh_lightning.models import StemTailNetwork


def methods_named(names: Sequence[str] | None, network: StemTailNetwork) -> list[Method]:
    """Methods of explanation; None for all that fit the network.

    `evidence` needs a locator, `dense_vote` a tumour segmenter, and Grad-CAM the layers of an EfficientNet.

    Raises:
        ConfigError: If there is no such file.
    """
    methods = [instantiate_section(OmegaConf.load(file)) for file in method_files(names).values()]
    return [method for method in methods if names is not None or _fits(method, network)]


def _fits(method: Method, network: nn.Module) -> bool:
    if isinstance(method, Evidence):
        return getattr(network, "locator_stage", None) is not None
    if isinstance(method, DenseVote):
        return hasattr(network, "segmenter")
    return not isinstance(method, GradCAM) or isinstance(network, StemTailNetwork)


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
