"""Synthetic gliomas: brains, tumours and signs that are known exactly, written in the layout of UCSF-PDGM."""

from idh_lightning.phantom.cohort import PhantomCohort, evidence_file, read_signs
from idh_lightning.phantom.groups import CONTROLS, GROUPS, SIGNS, draw_patients, draw_signs
from idh_lightning.phantom.lesion import SignMasks
from idh_lightning.phantom.render import render_study

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
