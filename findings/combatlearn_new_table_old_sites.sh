#!/usr/bin/env bash
# combatlearn 2.3.0 (PyPI): `ComBat(batch=...)` is told the sites when it is made, and `transform` looks each row's site up by
# its label in the index. New patients who come in a table of their own are numbered from 0 again, as pandas does, and so get
# the correction of the training patients of those numbers: three patients of hospital B are corrected as if they were of A,
# without an error or a warning, and one whose number is beyond the training table raises a KeyError. Expected: a refusal, or
# sites that are given with the new rows. With the labels that the sites were given under, the same rows come out right.
# Seen with combatlearn 2.3.0, numpy 2.3.5, pandas 2.3.3, scikit-learn 1.7.2. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet combatlearn==2.3.0 numpy==2.3.5 pandas==2.3.3 scikit-learn==1.7.2
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import pandas as pd
from combatlearn import ComBat

print({name: importlib.metadata.version(name) for name in ("combatlearn", "numpy", "pandas", "scikit-learn")})
random = np.random.default_rng(0)
hospital = pd.Series(["A"] * 20 + ["B"] * 20)
features = pd.DataFrame(random.normal(size=(40, 5)) + np.where(hospital == "B", 4.0, 0.0)[:, None]).rename(columns=str)
combat = ComBat(batch=hospital, method="johnson").fit(features)

of_b = features.iloc[20:23]
right = combat.transform(of_b)
as_a_table = combat.transform(of_b.reset_index(drop=True))  # what reading the three from a file gives
apart = float(np.abs(as_a_table.to_numpy() - right.to_numpy()).mean())
lines = ComBat(batch=pd.Series(["A"] * 20 + ["B"] * 20), method="johnson").fit(features)
as_of_a = lines.transform(of_b.set_axis([0, 1, 2]))
print(f"three patients of B, under the numbers of training: mean {right.to_numpy().mean():.2f}")
print(f"the same rows, numbered from 0: the same or an error expected, seen {as_a_table.to_numpy().mean():.2f}")
print(f"mean difference of a feature {apart:.2f}, where the hospitals were 4 apart")
sys.exit(0 if apart > 2 and as_a_table.to_numpy().tolist() == as_of_a.to_numpy().tolist() else 1)
PYTHON
