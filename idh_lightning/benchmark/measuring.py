"""Measurements of `python -m idh_lightning.benchmark`, by the word that names each."""

from __future__ import annotations

from omegaconf import DictConfig

from idh_lightning.benchmark import growth, memory, pipelines, startup

_FUNCTIONS = {
    "pipelines": pipelines.measure_pipelines,
    "memory": memory.measure_memory,
    "growth": growth.measure_growth,
    "startup": startup.measure_startup,
}


def measure(config: DictConfig) -> None:
    """Measure what the configuration names."""
    _FUNCTIONS[config.benchmark.measure](config)
