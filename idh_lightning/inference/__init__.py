"""A new study: answered with an interval, held against the training studies, and shown on a page."""

from idh_lightning.inference.interval import line_covariance
from idh_lightning.inference.prediction import StudyPrediction, write_tables
from idh_lightning.inference.predictor import Predictor
from idh_lightning.inference.sharing import HubModel

__all__ = ["HubModel", "Predictor", "StudyPrediction", "line_covariance", "write_tables"]
