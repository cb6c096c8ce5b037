"""Predict the IDH mutation status of a glioma from ordinary MRI."""

import importlib
import os

# torch then asks Linux for large pages of memory: to add 1 to 33 MB takes 3 ms on one core instead of 11.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> object:
    """Return `Predictor`, whose imports take seconds, when it is first asked for."""
    if name == "Predictor":
        return importlib.import_module("idh_lightning.inference").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
