"""Train, test and explain: `python -m idh_lightning.train [overrides]`."""

import sys

from idh_lightning.cli.entry import entry
from idh_lightning.errors import exits_with_message
from idh_lightning.runs.resuming import expanded

main = entry("train", "idh_lightning.commands.training:train_for_score")


@exits_with_message
def command() -> None:
    """Read `--rerun` and `--resume`, then do what the command line says."""
    sys.argv[1:] = expanded(sys.argv[1:])
    main()


if __name__ == "__main__":
    command()
