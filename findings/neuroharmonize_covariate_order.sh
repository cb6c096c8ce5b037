#!/usr/bin/env bash
# neuroHarmonize 2.5.2 (PyPI): a table of covariates is read by the names of its columns when a model of ComBat is learnt,
# in whatever order they stand, and by their places when the model is applied. `harmonizationLearn` gives the same for
# SITE, SEX, AGE and for SITE, AGE, SEX; `harmonizationApply` of the second table, with the model of the first, takes the
# years for the sex and the sex for the years, and says nothing. So the features of new patients, whose table was written
# by someone else, are moved by many standard deviations, and nothing shows it but the numbers.
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
site, sex = np.repeat(["A", "B"], 40), np.tile([0.0, 1.0], 40)
age = random.uniform(20, 80, 80)
features = random.normal(size=(80, 6)) + 2 * (site == "B")[:, None] + 0.1 * age[:, None] + sex[:, None]
learnt_on = pd.DataFrame({"SITE": site, "SEX": sex, "AGE": age})
other_order = learnt_on[["SITE", "AGE", "SEX"]]

model, harmonised = harmonizationLearn(features, learnt_on)
of_learning = np.abs(harmonizationLearn(features, other_order)[1] - harmonised).max()
of_applying = np.abs(harmonizationApply(features, learnt_on, model) - harmonised).max()
reordered = np.abs(harmonizationApply(features, other_order, model) - harmonised).max()
print(f"learnt from columns in another order: differs by 0 expected, {of_learning:.1e} seen")
print(f"applied to the same table: differs by 0 expected, {of_applying:.1e} seen")
print(f"applied to the table with its columns in another order: differs by 0 or an error expected, {reordered:.1f} seen")
sys.exit(0 if max(of_learning, of_applying) < 1e-6 and reordered > 1 else 1)
PYTHON
