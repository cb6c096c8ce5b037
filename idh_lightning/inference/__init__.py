"""A new study: answered with an interval, held against the training studies, and shown on a page."""

from idh_lightning.inference.interval import line_covariance
from idh_lightning.inference.learning import remember
from idh_lightning.inference.predictor import Answer, Predictor, write_tables
from idh_lightning.inference.training_range import TrainingRange

__all__ = ["Answer", "Predictor", "TrainingRange", "line_covariance", "remember", "write_tables"]
