"""How often the images themselves warn of exchanged sequences: python examples/score_content.py COHORT.csv ..."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from idh_lightning.inference.content import doubts_of_content

PAIRS = (("T1", "T1c"), ("FLAIR", "T2"))


def main(tables: list[str]) -> None:
    """Count the studies that are warned of as they are, and with the two files exchanged."""
    counts = {pair: [0, 0, 0] for pair in PAIRS}
    for table in map(Path, tables):
        for row in pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records"):
            for pair in PAIRS:
                names = [row.get(name, "") for name in pair]
                if all(names):
                    files = [table.parent / name for name in names]
                    as_is = any(doubts_of_content(dict(zip(pair, files, strict=True))))
                    exchanged = any(doubts_of_content(dict(zip(pair, reversed(files), strict=True))))
                    counts[pair] = [a + b for a, b in zip(counts[pair], (1, as_is, exchanged), strict=True)]
    for pair, (studies, as_is, exchanged) in counts.items():
        print(f"{' and '.join(pair)}: of {studies} studies {as_is} warned of, {exchanged} with the two exchanged")


if __name__ == "__main__":
    main(sys.argv[1:])
