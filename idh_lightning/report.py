"""Pool folds or compare runs in one report: `python -m idh_lightning.report runs=[RUN,RUN,...]`."""

from idh_lightning.cli.entry import entry

main = entry("report", "idh_lightning.commands.reporting:report")


if __name__ == "__main__":
    main()
