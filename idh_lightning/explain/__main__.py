"""`python -m idh_lightning.explain`: see `idh_lightning.explanation`."""

from idh_lightning.explanation import main

if __name__ == "__main__":
    main()
