#!/usr/bin/env bash
# neuroHarmonize 2.5.2 (PyPI): a model of ComBat that has learnt three sites cannot be applied to new patients of two of
# them, or of one: `harmonizationApply` counts the sites among the patients that it is given and takes that for the number
# of sites of the model. It ends in an IndexError or a ValueError about shapes that names neither site nor table. With one
# more patient, of the third site, the very same rows come out right. So a single new patient, or a test set in
# which one hospital happens to have nobody, is refused until patients of the other sites are added to it.
# Seen with neuroHarmonize 2.5.2, neuroCombat 0.2.12, numpy 1.26.4, pandas 2.3.3. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet neuroHarmonize==2.5.2 neuroCombat==0.2.12 numpy==1.26.4 pandas==2.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import pandas as pd
from neuroHarmonize import harmonizationApply, harmonizationLearn

print({name: importlib.metadata.version(name) for name in ("neuroHarmonize", "neuroCombat", "numpy", "pandas")})
random = np.random.default_rng(0)
site = np.repeat(["A", "B", "C"], 30)
features = random.normal(size=(90, 6)) + np.repeat([0, 2, 5], 30)[:, None]
model, harmonised = harmonizationLearn(features, pd.DataFrame({"SITE": site}))


def applied(rows, site_names):
    try:
        found = harmonizationApply(features[rows], pd.DataFrame({"SITE": site_names}), model)
    except (IndexError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return float(np.abs(found - harmonised[rows])[:4].max())  # of the first four patients, of A and B


of_two = applied([0, 1, 30, 31], ["A", "A", "B", "B"])
of_one = applied([0, 1, 2, 3], ["A"] * 4)
with_third = applied([0, 1, 30, 31, 60], ["A", "A", "B", "B", "C"])
print(f"four patients of A and B: the values of learning expected (differs by 0), seen {of_two}")
print(f"four patients of A: the same expected, seen {of_one}")
print(f"the four of A and B and one of C: the same expected, differs by {with_third}")
raised = isinstance(of_two, str) and isinstance(of_one, str)
sys.exit(0 if raised and with_third < 1e-6 else 1)
PYTHON
