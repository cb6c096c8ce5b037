"""Write a checkpoint's network for other programs: `python -m idh_lightning.export checkpoint=RUN format=onnx`."""

from idh_lightning.cli.entry import entry

main = entry("export", "idh_lightning.inference.exported:export_checkpoint")


if __name__ == "__main__":
    main()
