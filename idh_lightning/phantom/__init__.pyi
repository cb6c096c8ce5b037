from .cohort import PhantomCohort, evidence_file, read_signs
from .groups import CONTROLS, GROUPS, SIGNS, draw_patients, draw_signs
from .lesion import SignMasks
from .render import render_study

__all__ = [
    "CONTROLS",
    "GROUPS",
    "SIGNS",
    "PhantomCohort",
    "SignMasks",
    "draw_patients",
    "draw_signs",
    "evidence_file",
    "read_signs",
    "render_study",
]
