"""`python -m idh_lightning.benchmark [memory | growth] [overrides]`."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from idh_lightning.benchmark import growth, memory, pipelines
from idh_lightning.cli.entry import entry

MEASURES = {
    "pipelines": pipelines.measure_pipelines,
    "memory": memory.measure_memory,
    "growth": growth.measure_growth,
}


@entry("benchmark")
def main(config: DictConfig) -> None:
    """Measure what the command line composes."""
    MEASURES[config.benchmark.measure](config)


def command() -> None:
    """Take a first word for the measure, then do what the command line says."""
    if len(sys.argv) > 1 and sys.argv[1] in MEASURES:
        sys.argv[1] = f"benchmark.measure={sys.argv[1]}"
    main()


if __name__ == "__main__":
    command()
