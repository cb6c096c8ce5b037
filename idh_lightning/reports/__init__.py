"""Arrays to figures; a run folder to one page that people open."""

from idh_lightning.reports.comparison import write_comparison
from idh_lightning.reports.html import write_report
from idh_lightning.reports.panels import cam_panel, study_panel, training_panel
from idh_lightning.reports.run import Run, read_run, write_figures

__all__ = [
    "Run",
    "cam_panel",
    "read_run",
    "study_panel",
    "training_panel",
    "write_comparison",
    "write_figures",
    "write_report",
]
