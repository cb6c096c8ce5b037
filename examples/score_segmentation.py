"""How well the network in the package finds tumours: Dice coefficient and pointing game of each study of a table.

python examples/score_segmentation.py [TABLE] [DEPTH,HEIGHT,WIDTH], by default some synthetic patients on the grid that
it has learnt on.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import Table
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.phantom import PhantomCohort
from idh_lightning.runs.locating import write_segmentation_scores
from idh_lightning.volumes import VolumeStore


def main() -> None:
    """Prepare the studies, segment each, compare with its mask on one grid, and print a summary."""
    checkpoint = Checkpoint.read("pretrained")
    network, preprocessing = checkpoint.network(), instantiate_section(checkpoint.recipe["preprocessing"])
    if len(sys.argv) > 2:
        preprocessing = replace(preprocessing, grid=[int(length) for length in sys.argv[2].split(",")])
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            studies = Table(table=Path(sys.argv[1]), missing="zero").read().studies
        else:
            studies = PhantomCohort(folder, patients=10, spacing_mm=4.0, workers=1).read().studies
        store = VolumeStore(Path(folder) / "store", preprocessing, checkpoint.sequences)
        store.prepare(studies)
        table = write_segmentation_scores(Path(folder), network.locator, {"test": studies}, store)
    print(table[["study_id", "dice", "pointing"]].to_string(index=False, float_format="%.2f"))
    dice, interval = table["dice"], bootstrap([table["dice"]], np.median, rng=0).confidence_interval
    print(
        f"{len(table)} studies: median Dice {dice.median():.3f} ({interval.low:.3f} to {interval.high:.3f}), "
        f"mean {dice.mean():.3f}, least {dice.min():.2f}; pointing game {table['pointing'].mean():.3f}"
    )


if __name__ == "__main__":
    main()
