"""Where the configuration lives, the run-level keys, and the cross-checks that Hydra cannot express."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from idh_lightning.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR: Path = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The folder of the YAML files: inside the package when installed from a wheel, beside it in a checkout."""

STAGES: tuple[str, ...] = ("fit", "test", "report")
