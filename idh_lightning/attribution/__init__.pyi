from .dense_vote import DenseVote
from .gradcam import GradCAM
from .gradients import Evidence, IntegratedGradients
from .maps import Method, logit_difference
from .perturbation import Occlusion, Supervoxels
from .scores import BASELINE, SCORE_COLUMNS, mean_mask
from .studies import explained_at_once, explanation_rows, volume_tensor

__all__ = [
    "BASELINE",
    "SCORE_COLUMNS",
    "DenseVote",
    "Evidence",
    "GradCAM",
    "IntegratedGradients",
    "Method",
    "Occlusion",
    "Supervoxels",
    "explained_at_once",
    "explanation_rows",
    "logit_difference",
    "mean_mask",
    "volume_tensor",
]
