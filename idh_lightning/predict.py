"""Answer for new, unlabelled studies: `python -m idh_lightning.predict input=FOLDER [checkpoint=RUN]`."""

from idh_lightning.cli.entry import entry

main = entry("predict", "idh_lightning.commands.predicting:predict_or_tell")


if __name__ == "__main__":
    main()
