"""Sweeps as Hydra's callback sees them: their recipe when they begin, their report when they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.files import atomic_write


class SweepReport(Callback):
    """Ends a multirun with a table of its runs, pictures of what was varied, and one report of its folds."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the sweep's own configuration, without which it could not be gone on with."""
        with atomic_write(Path(config.hydra.sweep.dir) / "multirun.yaml") as temporary:
            OmegaConf.save(config, temporary)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report the sweep, unless it was refused before its first run began."""
        folder = Path(config.hydra.sweep.dir)
        if not any(folder.glob("*/.hydra")):
            return
        from idh_lightning.commands.reporting import (
            report_multirun,
        )  # here, since every start of a run makes this object

        report_multirun(folder, instantiate_section(config.evaluation))
