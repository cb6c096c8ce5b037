"""How often the description of a series alone tells its sequence: python examples/score_descriptions.py TABLE.csv.

The table has the columns `description` and `truth`: FLAIR, T1, T1c, T2, other, or T2 (dual echo) of PD and T2 in one
series, where T2 is right, since the echo of the longer time is taken.
"""

from __future__ import annotations

import argparse

import pandas as pd

from idh_lightning.inference.sequence_guess import UNSTATED, guess_sequence


def main(file: str) -> None:
    """Print what is guessed beside what is true, and the T1c that are called T1 without a doubt."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    guesses = [guess_sequence(description) for description in table["description"]]
    table["guess"] = [guess or "other" for guess, _ in guesses]
    table["doubted"] = [UNSTATED in why for _, why in guesses]
    print(pd.crosstab(table["truth"], table["guess"]))
    right = (table["truth"].replace("T2 (dual echo)", "T2") == table["guess"]).sum()
    print(f"{right} of {len(table)} right")
    missed = table.query("truth == 'T1c' and guess == 'T1' and not doubted")
    print(f"T1c called T1 without a doubt: {len(missed)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", metavar="TABLE.csv")
    main(parser.parse_args().table)
