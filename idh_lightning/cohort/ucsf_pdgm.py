"""UCSF-PDGM: folders `UCSF-PDGM-0004_nifti`, and a table with `UCSF-PDGM-004`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity, parse_ucsf_pdgm
from idh_lightning.cohort.study import SEQUENCES

UCSF_NAMES = {**{sequence: sequence for sequence in SEQUENCES}, "T1c": "(?:T1c|T1gad)"}
CORRECTED = "_bias"


@dataclass(kw_only=True)
class UCSFPDGM(FolderReader):
    """The UCSF preoperative diffuse glioma MRI collection, version 5 and its like.

    Attributes:
        bias_corrected: Use the `_bias` files (N4-corrected) instead of the plain ones.

    Source: Calabrese et al. 2022, Radiology: Artificial Intelligence 4(6):e220058.
    """

    name: str = "ucsf_pdgm"
    bias_corrected: bool = False

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "ID", "patient_id": "", "idh": "IDH", "age_years": "Age at MRI", "sex": "Sex",
    }  # fmt: skip

    restore: ClassVar[str] = (
        f"Restore the file, take those with {CORRECTED} in their names (cohort.bias_corrected=true)"
    )

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        return parse_ucsf_pdgm(text.removesuffix("_nifti"))

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder; the files of a follow-up may be named after study or patient."""
        stem = f"(?:{identity.study_id}|{identity.patient_id})"
        suffix = CORRECTED if self.bias_corrected else ""
        found = {sequence: matching(folder, f"{stem}_{name}{suffix}") for sequence, name in UCSF_NAMES.items()}
        return found | {"mask": matching(folder, f"{stem}_tumor_segmentation")}
