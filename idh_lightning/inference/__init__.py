"""A new study: answered with an interval, held against the training studies, and shown on a page."""

from idh_lightning.inference.interval import line_covariance
from idh_lightning.inference.predictor import Answer, Predictor, write_tables
from idh_lightning.ood.detector import TrainingRange
from idh_lightning.ood.fit import remember

__all__ = ["Answer", "Predictor", "TrainingRange", "line_covariance", "remember", "write_tables"]
