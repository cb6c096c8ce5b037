"""Arrays to figures; a run folder to one page that people open."""

from idh_lightning.reports.panels import cam_panel, study_panel, training_panel

__all__ = ["cam_panel", "study_panel", "training_panel"]
