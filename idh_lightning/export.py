"""Write a checkpoint's network for other programs: `python -m idh_lightning.export checkpoint=RUN format=onnx`."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.config import CONF_DIR
from idh_lightning.errors import exits_with_message
from idh_lightning.inference.exported import export
from idh_lightning.overrides import reads_text


@reads_text
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="export")
@exits_with_message
def main(config: DictConfig) -> None:
    """Export what the command line names."""
    path = export(Path(config.checkpoint), Path(config.output) if config.output else None, form=config.format)
    Console().print(f"{path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
