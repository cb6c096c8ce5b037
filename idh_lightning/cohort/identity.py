"""Who a study belongs to: identifiers are parsed and written one way, never compared by suffix."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UCSF = re.compile(r"UCSF[-_. ]PDGM[-_. ]0*(\d{1,4})(?:[-_. ]FU(\d{1,4})d)?", re.IGNORECASE | re.ASCII)
_TCGA = re.compile(r"TCGA[-_. ]([A-Z0-9]{2})[-_. ]([A-Z0-9]{4})(?:[-_. ][A-Z0-9_. -]*)?", re.IGNORECASE | re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The study and the person that an identifier names.

    Attributes:
        study_id: The identifier in its canonical spelling.
        patient_id: The person, canonical as well, so that two sources agree about who is who.
        follow_up: True where the identifier itself says that this is not the first session.
    """

    study_id: str
    patient_id: str
    follow_up: bool = False


def parse_ucsf_pdgm(text: str) -> Identity | None:
    """Return the identity behind a UCSF-PDGM identifier, or None where the text is not one.

    The table writes `UCSF-PDGM-004`, follow-up rows and folders `UCSF-PDGM-0004`; four digits are canonical here.
    """
    match = _UCSF.fullmatch(text.strip())
    if match is None:
        return None
    patient = f"UCSF-PDGM-{int(match[1]):04d}"
    if match[2] is None:
        return Identity(study_id=patient, patient_id=patient)
    return Identity(study_id=f"{patient}_FU{int(match[2]):03d}d", patient_id=patient, follow_up=True)


def canonical_patient(text: str) -> str:
    """Return one spelling per person: UCSF-PDGM with four digits, TCGA barcodes cut after the patient, others as is.

    Dashes may have become underscores, dots or spaces, as in names of files.
    """
    text = text.strip()
    if ucsf := parse_ucsf_pdgm(text):
        return ucsf.patient_id
    if tcga := _TCGA.fullmatch(text):
        return f"TCGA-{tcga[1]}-{tcga[2]}".upper()
    return text


def is_of_public_collection(text: str) -> bool:
    """Whether a name is that of a patient of UCSF-PDGM or TCGA, which is nobody else's."""
    return parse_ucsf_pdgm(text) is not None or _TCGA.fullmatch(text.strip()) is not None


def names_a_file(study_id: str) -> bool:
    """Whether an identifier can be part of a file name on any system: letters, digits, dot, dash, underscore."""
    return _SAFE.fullmatch(study_id) is not None
