"""Compare methods of explanation on some studies: `python -m idh_lightning.explain checkpoint=... output=DIR`."""

from idh_lightning.cli.entry import entry

main = entry("explain", "idh_lightning.commands.explaining:explain_checkpoint")


if __name__ == "__main__":
    main()
