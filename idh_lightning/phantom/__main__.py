"""Write a synthetic cohort and say where: `python -m idh_lightning.phantom cohort.patients=20 cohort.spacing_mm=1`."""

from idh_lightning.cli.entry import entry

main = entry("phantom", "idh_lightning.phantom.cohort:write_configured")


if __name__ == "__main__":
    main()
