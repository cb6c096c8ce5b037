"""Sections and settings of the configuration to objects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.places import in_source
from idh_lightning.errors import ConfigError

if TYPE_CHECKING:
    import torch

NO_GPU = "and torch finds no such GPU on this machine; expected one that `nvidia-smi` lists and this torch can use."


def instantiate_section(section: Any, **settings: Any) -> Any:
    """Object that a section of the configuration describes, with further settings.

    What is wrong with a source of a combined cohort is told of the settings of that source.

    With `_partial_=True`, its constructor: what is no primitive goes there directly, since Hydra would turn data
    classes among its keyword arguments into configuration.
    """
    with warnings.catch_warnings():
        silence_hydra()
        sources = section.get("readers") if isinstance(section, Mapping) else None
        for source, reader in (sources or {}).items():
            try:
                instantiate(reader, _convert_="all")
            except ConfigError as error:
                raise ConfigError(in_source(str(error), source)) from error
        return instantiate(section, _convert_="all", **settings)


def silence_hydra() -> None:
    """Hide what Hydra 1.4 says of calls that Hydra 1.3 needs as they are."""
    for message in (
        "The version_base parameter is deprecated",
        r"register_new_resolver\(\) is deprecated",
        r"hydra\.utils\.instantiate\(\) resolved _target_=",
    ):
        warnings.filterwarnings("ignore", message=rf"\s*{message}")


def optimizer_settings(name: str) -> dict[str, Any]:
    """Settings in a file of conf/optimizer."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "optimizer" / f"{name}.yaml"))
    settings: dict[str, Any] = content.get("optimizer", content)
    return settings


def torch_device(wanted: str) -> torch.device:
    """Device of a setting, a GPU where there is one for "auto"; a ConfigError if there is no such device."""
    import torch  # here, since processes that write the synthetic cohort make their sections without it

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(wanted)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: found {wanted}; expected auto, cpu, cuda or cuda:N. Correct it.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: found {wanted}, {NO_GPU} Set device=auto.")
    return found
