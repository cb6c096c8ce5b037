"""Predict the IDH mutation status of a glioma from ordinary MRI."""

__version__ = "0.1.0"
