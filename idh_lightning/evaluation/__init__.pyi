from .calibration import Calibrator
from .cross_validation import Folds, compare_all, relation, spread
from .development import DevelopmentCohort, ImageCovariates, image_covariates
from .postprocessing import PostProcessing
from .predictions import patient_predictions, per_patient, read_table
from .protocol import Evaluation, Fold
from .shift import compare_with_internal, covariate_shift, covariate_summary

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
