"""Evaluation of predictions: metrics with intervals, calibration, operating point, baselines and comparisons.

Throughout, `labels` are [n], 0 wildtype and 1 mutant, and both are there; `scores` are [n], higher means mutant, ties
count one half; `probabilities` are [n], P(mutant), calibrated; `weights` are [R, n], one row per resample; `resamples`
are of the same patients, stratified by label. A table of patients has one row each: label, logit, probability,
predicted and more; a mapping of `runs` has such a table for each name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
