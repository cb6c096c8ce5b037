"""Write a synthetic cohort and say where: `python -m idh_lightning.phantom cohort.patients=20 cohort.spacing_mm=1`."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.cli.entry import entry
from idh_lightning.phantom.cohort import read_signs


@entry("phantom")
def main(config: DictConfig) -> None:
    """Write the cohort of the configuration, unless it is there already, and say where it is and who is in it."""
    folder = instantiate(config.cohort).write()
    signs = read_signs(folder)
    patients = signs.drop_duplicates("patient_id")
    mutant = int(patients["label"].sum())
    Console(soft_wrap=True).print(
        f"{len(patients)} patients ({mutant} mutant), {len(signs)} studies: {folder.resolve()}", highlight=False
    )


if __name__ == "__main__":
    main()
