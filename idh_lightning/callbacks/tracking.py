"""Weights & Biases, offline unless the user is logged in or says so."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import WandbLogger

logger = logging.getLogger(__name__)


def wandb_logger(
    *,
    save_dir: str,
    project: str = "idh_lightning",
    name: str | None = None,
    group: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> WandbLogger:
    """Return a logger that uploads only if the user asked for it.

    Args:
        save_dir: Where the run's files go; `wandb sync` can upload them later.
        project: Name of the W&B project.
        name: Of the run.
        group: Of the run, for sweeps.
        mode: "auto" is online if an API key is set or stored by `wandb login`, else offline.
    """
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
        logger.info("Weights & Biases is %s.", mode)
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=save_dir, project=project, name=name, group=group, mode=mode, log_model=False)


def _logged_in() -> bool:
    """Return whether an API key is at hand, without asking the network or the user."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
