"""Class-activation maps and how well they lie on the tumour."""

from idh_lightning.explain.gradcam import GradCAM
from idh_lightning.explain.scores import localisation_scores

__all__ = ["GradCAM", "localisation_scores"]
