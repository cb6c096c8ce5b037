"""Methods of explanation by the names of their files in conf/explain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from idh_lightning.attribution.maps import Method
from idh_lightning.config.checks import CONF_DIR, LOCATOR_METHODS
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError
from idh_lightning.models import StemTailNetwork


def methods_named(names: Sequence[str] | None, network: StemTailNetwork) -> list[Method]:
    """Methods of explanation; None for all that fit the network: some need a locator.

    Raises:
        ConfigError: If there is no such file.
    """
    if names is None:
        names = [name for name in method_files(None) if network.locator is not None or name not in LOCATOR_METHODS]
    return [instantiate_section(OmegaConf.load(file)) for file in method_files(names).values()]


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
