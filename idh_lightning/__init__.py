"""Predict the IDH mutation status of a glioma from ordinary MRI."""

import importlib

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> object:
    """Return `Predictor`, whose imports take seconds, when it is first asked for."""
    if name == "Predictor":
        return importlib.import_module("idh_lightning.inference").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
