"""Methods of explanation: maps of what a network decided by, their scores, checks and comparison.

Throughout, `volumes` are [B, C, D, H, W], z-scores, left to right along W, 0 outside the brain; maps (`cam`) are
[D, H, W], >= 0, not yet cut to the brain, and `cams` one for each method by name; `mask`, `brain` and `masks` are
non-zero inside; `mean_tumour` is how often training studies have tumour in each voxel, or None. Networks are left as
they were.
"""

from idh_lightning.attribution.dense_vote import DenseVote
from idh_lightning.attribution.gradcam import GradCAM
from idh_lightning.attribution.gradients import Evidence, IntegratedGradients
from idh_lightning.attribution.maps import Method, logit_difference
from idh_lightning.attribution.perturbation import Occlusion, Supervoxels
from idh_lightning.attribution.scores import BASELINE, SCORE_COLUMNS, mean_mask
from idh_lightning.attribution.studies import explanation_rows, volume_tensor

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
    "explanation_rows",
    "logit_difference",
    "mean_mask",
    "volume_tensor",
]
