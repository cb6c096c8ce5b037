"""Judge a checkpoint on a labelled cohort: `python -m idh_lightning.evaluate checkpoint=... cohort=...`."""

from idh_lightning.cli.entry import entry

main = entry("evaluate", "idh_lightning.commands.evaluating:evaluate")


if __name__ == "__main__":
    main()
