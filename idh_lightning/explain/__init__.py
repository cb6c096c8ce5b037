"""Class-activation maps and how well they lie on the tumour."""

from idh_lightning.explain.evidence import Evidence
from idh_lightning.explain.gradcam import GradCAM
from idh_lightning.explain.maps import Method
from idh_lightning.explain.scores import localisation_scores

__all__ = ["Evidence", "GradCAM", "Method", "localisation_scores"]
