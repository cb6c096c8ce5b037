"""Check a cohort and fill the volume store, without training: `python -m idh_lightning.prepare [overrides]`."""

from idh_lightning.cli.entry import entry

main = entry("prepare", "idh_lightning.commands.preparing:prepare")


if __name__ == "__main__":
    main()
