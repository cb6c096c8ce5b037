"""`python -m idh_lightning.benchmark [memory | growth] [overrides]`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from idh_lightning.benchmark import growth, memory, ways
from idh_lightning.config import CONF_DIR
from idh_lightning.errors import exits_with_message
from idh_lightning.overrides import reads_text
from idh_lightning.train import quieten

MEASURES = {"ways": ways.run, "memory": memory.run, "growth": growth.run}


@reads_text
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="benchmark")
@exits_with_message
def main(config: DictConfig) -> None:
    """Measure what the command line composes."""
    quieten()
    MEASURES[config.benchmark.measure](config)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in MEASURES:
        sys.argv[1] = f"benchmark.measure={sys.argv[1]}"
    main()
