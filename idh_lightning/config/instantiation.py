"""Sections of the configuration to objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from idh_lightning.config.checks import CONF_DIR


def instantiate_section(section: Any) -> Any:
    """Object that a section of the configuration describes."""
    return instantiate(section, _convert_="all")


def factory(section: Any) -> Callable[..., Any]:
    """Constructor of a section with its settings filled in.

    What is not a setting goes to the constructor directly: Hydra would turn data classes among its keyword arguments
    into configuration.
    """
    made: Callable[..., Any] = instantiate({**section, "_partial_": True}, _convert_="all")
    return made


def optimizer_settings(name: str) -> dict[str, Any]:
    """Settings in a file of conf/optimizer."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "optimizer" / f"{name}.yaml"))
    settings: dict[str, Any] = content.get("optimizer", content)
    return settings
