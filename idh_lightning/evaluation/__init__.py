"""Evaluation of predictions: metrics with intervals, calibration, operating point, baselines and comparisons.

Throughout, `labels` are [n], 0 wildtype and 1 mutant, and both are there; `scores` are [n], higher means mutant, ties
count one half; `probabilities` are [n], P(mutant), calibrated; `weights` are [R, n], one row per resample; `resamples`
are of the same patients, stratified by label. A table of patients has one row each: label, logit, probability,
predicted and more; a mapping of `runs` has such a table for each name.
"""

from idh_lightning.evaluation.calibration import Calibrator
from idh_lightning.evaluation.cross_validation import Folds, compare_all, relation, spread
from idh_lightning.evaluation.development import DevelopmentCohort, ImageCovariates, image_covariates
from idh_lightning.evaluation.postprocessing import PostProcessing
from idh_lightning.evaluation.predictions import patient_predictions, per_patient, read_table
from idh_lightning.evaluation.protocol import Evaluation, Fold
from idh_lightning.evaluation.shift import compare_with_internal, covariate_shift, covariate_summary

__all__ = [
    "Calibrator",
    "DevelopmentCohort",
    "Evaluation",
    "Fold",
    "Folds",
    "ImageCovariates",
    "PostProcessing",
    "compare_all",
    "compare_with_internal",
    "covariate_shift",
    "covariate_summary",
    "image_covariates",
    "patient_predictions",
    "per_patient",
    "read_table",
    "relation",
    "spread",
]
