"""Callbacks that draw and write; none of them learns."""

from idh_lightning.callbacks.maps import Explanations
from idh_lightning.callbacks.predictions import PredictionWriter
from idh_lightning.callbacks.provenance import Provenance
from idh_lightning.callbacks.tracking import Tracker, finish_tracking, tracking_mode, wandb_logger
from idh_lightning.callbacks.training import BatchSeed, CurveLogger, EpochProgressBar, StopTogether, WholeCheckpointIO

__all__ = [
    "BatchSeed",
    "CurveLogger",
    "EpochProgressBar",
    "Explanations",
    "PredictionWriter",
    "Provenance",
    "StopTogether",
    "Tracker",
    "WholeCheckpointIO",
    "finish_tracking",
    "tracking_mode",
    "wandb_logger",
]
