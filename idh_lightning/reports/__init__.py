"""Arrays to figures; a run folder to one page that people open."""

from idh_lightning.reports.comparison import write_comparison
from idh_lightning.reports.explanations import write_explanations_page
from idh_lightning.reports.html import write_report
from idh_lightning.reports.model_card import write_model_card
from idh_lightning.reports.panels import cam_panel, save_cam_panel, study_panel
from idh_lightning.reports.run import Run, read_run, write_figures
from idh_lightning.reports.viewer import slice_viewer

__all__ = [
    "Run",
    "cam_panel",
    "read_run",
    "save_cam_panel",
    "slice_viewer",
    "study_panel",
    "write_comparison",
    "write_explanations_page",
    "write_figures",
    "write_model_card",
    "write_report",
]
