"""Methods of explanation: maps of what a network decided by, their scores, checks and comparison."""

from idh_lightning.attribution.dense_vote import DenseVote
from idh_lightning.attribution.evidence import Evidence
from idh_lightning.attribution.gradcam import GradCAM
from idh_lightning.attribution.gradients import IntegratedGradients
from idh_lightning.attribution.maps import Method, logit_difference
from idh_lightning.attribution.perturbation import Occlusion, Supervoxels, margin_lost, mirrored
from idh_lightning.attribution.scores import (
    BASELINE,
    REFERENCED,
    SCORE_COLUMNS,
    SCORES,
    baselines,
    localisation_scores,
    mean_mask,
    study_rows,
    tumour_ranks,
)
from idh_lightning.attribution.studies import explanation_rows, volume_tensor

__all__ = [
    "BASELINE",
    "REFERENCED",
    "SCORES",
    "SCORE_COLUMNS",
    "DenseVote",
    "Evidence",
    "GradCAM",
    "IntegratedGradients",
    "Method",
    "Occlusion",
    "Supervoxels",
    "baselines",
    "explanation_rows",
    "localisation_scores",
    "logit_difference",
    "margin_lost",
    "mean_mask",
    "mirrored",
    "study_rows",
    "tumour_ranks",
    "volume_tensor",
]
