"""Evaluation of predictions: metrics with intervals, calibration, operating point, baselines and comparisons."""

from idh_lightning.evaluation.calibration import Calibrator
from idh_lightning.evaluation.comparison import compare_all, compare_runs, pool, relation, spread
from idh_lightning.evaluation.cross_validation import Folds
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.evaluation.development import DevelopmentCohort, ImageCovariates, image_covariates
from idh_lightning.evaluation.features import tumour_features
from idh_lightning.evaluation.measurement import Measurement
from idh_lightning.evaluation.postprocessing import PostProcessing
from idh_lightning.evaluation.predictions import patient_predictions, per_patient, read_table
from idh_lightning.evaluation.protocol import Evaluation, Fold, Results
from idh_lightning.evaluation.shift import compare_with_internal, covariate_shift, covariate_summary

__all__ = [
    "Calibrator",
    "ConformalSets",
    "DevelopmentCohort",
    "Evaluation",
    "Fold",
    "Folds",
    "ImageCovariates",
    "Measurement",
    "OperatingPoint",
    "PostProcessing",
    "Results",
    "compare_all",
    "compare_runs",
    "compare_with_internal",
    "covariate_shift",
    "covariate_summary",
    "image_covariates",
    "patient_predictions",
    "per_patient",
    "pool",
    "read_table",
    "relation",
    "spread",
    "tumour_features",
]
