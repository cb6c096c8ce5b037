"""`python -m idh_lightning.benchmark [memory | growth | startup] [overrides]`."""

import sys

from idh_lightning.cli.entry import entry
from idh_lightning.config.checks import MEASURES

main = entry("benchmark", "idh_lightning.benchmark.measuring:measure")


def command() -> None:
    """Take a first word for the measure, then do what the command line says."""
    if len(sys.argv) > 1 and sys.argv[1] in MEASURES:
        sys.argv[1] = f"benchmark.measure={sys.argv[1]}"
    main()


if __name__ == "__main__":
    command()
