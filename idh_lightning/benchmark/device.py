"""The device that a benchmark trains on."""

from __future__ import annotations

import gc

import torch
from omegaconf import DictConfig

from idh_lightning.runs.rehearsal import on_gpu

HALVES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Arithmetic that Lightning's names of precisions stand for."""


def device_of(config: DictConfig) -> str:
    """Device of training, "cuda" or "cpu"."""
    return "cuda" if on_gpu(config.trainer) else "cpu"


def device_name(config: DictConfig) -> str:
    """Name of the GPU that training uses, or "cpu"."""
    return torch.cuda.get_device_name() if device_of(config) == "cuda" else "cpu"


def wait_for_gpu() -> None:
    """Wait until the GPU, if there is one, has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_gpu_peak() -> None:
    """Begin anew to look for the most that is allocated on the GPU, if there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
