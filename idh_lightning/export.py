"""Write a checkpoint's network for other programs: `python -m idh_lightning.export checkpoint=RUN format=onnx`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.cli.entry import entry
from idh_lightning.inference.exported import export


@entry("export")
def main(config: DictConfig) -> None:
    """Export what the command line names."""
    path = export(Path(config.checkpoint), Path(config.output) if config.output else None, form=config.format)
    Console().print(f"{path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
