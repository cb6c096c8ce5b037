"""Predict the IDH mutation status of a glioma from ordinary MRI."""

import importlib

from idh_lightning.imports import hide_dl_from_gdcm
from idh_lightning.machine import share_freed_memory

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__"]

share_freed_memory()  # here, since libraries start threads when they are imported
hide_dl_from_gdcm()  # likewise, before nibabel is, which takes pydicom along


def __getattr__(name: str) -> object:
    """Return `Predictor`, whose imports take seconds, when it is first asked for."""
    if name == "Predictor":
        return importlib.import_module("idh_lightning.inference").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
