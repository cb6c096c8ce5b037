"""Write a synthetic cohort and say where: `python -m idh_lightning.phantom cohort.patients=20 cohort.spacing_mm=1`."""

from __future__ import annotations

import sys

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.config import CONF_DIR
from idh_lightning.errors import IDHError
from idh_lightning.overrides import reads_text
from idh_lightning.phantom.cohort import read_signs


@reads_text
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="phantom")
def main(config: DictConfig) -> None:
    """Write the cohort of the configuration, unless it is there already, and say where it is and who is in it."""
    console = Console(soft_wrap=True)
    try:
        folder = instantiate(config.cohort).write()
    except (IDHError, InstantiationException) as error:
        # Hydra wraps what a constructor raises; the error of ours inside it says where, what and how to go on.
        fault = error if isinstance(error, IDHError) else error.__cause__
        if not isinstance(fault, IDHError):
            raise
        Console(stderr=True, soft_wrap=True).print(str(fault), style="red", markup=False)
        sys.exit(2)
    signs = read_signs(folder)
    patients = signs.drop_duplicates("patient_id")
    mutant = int(patients["label"].sum())
    console.print(
        f"{len(patients)} patients ({mutant} mutant), {len(signs)} studies: {folder.resolve()}", highlight=False
    )


if __name__ == "__main__":
    main()
