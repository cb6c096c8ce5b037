"""Maps of what a network decided by, and how well they lie on the tumour."""

from idh_lightning.attribution.evidence import Evidence
from idh_lightning.attribution.gradcam import GradCAM
from idh_lightning.attribution.gradients import IntegratedGradients
from idh_lightning.attribution.maps import Method
from idh_lightning.attribution.perturbation import Occlusion, Supervoxels, margin_lost, mirrored
from idh_lightning.attribution.scores import (
    ANY_SIGN,
    BASELINE,
    POINTING_WHERE_DECISIVE,
    REFERENCED,
    SCORES,
    baselines,
    localisation_scores,
    mean_mask,
    sign_scores,
    study_rows,
    tumour_ranks,
)

__all__ = [
    "ANY_SIGN",
    "BASELINE",
    "POINTING_WHERE_DECISIVE",
    "REFERENCED",
    "SCORES",
    "Evidence",
    "GradCAM",
    "IntegratedGradients",
    "Method",
    "Occlusion",
    "Supervoxels",
    "baselines",
    "localisation_scores",
    "margin_lost",
    "mean_mask",
    "mirrored",
    "sign_scores",
    "study_rows",
    "tumour_ranks",
]
