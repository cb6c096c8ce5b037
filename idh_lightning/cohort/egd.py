"""EGD, the Erasmus Glioma Database: folders `EGD-0001` with files of fixed names, or as its XNAT server gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import children, matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity
from idh_lightning.cohort.labels import IDH_VOCABULARY
from idh_lightning.cohort.study import MUTANT, WILDTYPE

_NAME = re.compile(r"(?:MR_)?(EGD-\d{4})", re.ASCII)
EGD_NAMES = {"FLAIR": "FLAIR", "T1": "T1", "T1c": "T1GD", "T2": "T2", "mask": "MASK"}


@dataclass(kw_only=True)
class EGD(FolderReader):
    """The Erasmus Glioma Database; `folder` is its `SUBJECTS`, `table` the genetic labels saved as CSV.

    Its table writes IDH as 0 (wildtype), 1 (mutant) and -1 (not known, which is an error here as everywhere).

    Source: van der Voort et al. 2021, Data in Brief 37:107191.
    """

    name: str = "egd"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "Subject", "patient_id": "", "idh": "IDH", "age_years": "Age", "sex": "Sex",
    }  # fmt: skip
    default_vocabulary: ClassVar[Mapping[str, int]] = {**IDH_VOCABULARY, "0": WILDTYPE, "1": MUTANT}

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        match = _NAME.fullmatch(text)
        return Identity(study_id=match[1], patient_id=match[1]) if match else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder, or in its `1_T1/NIFTI` and the like; see `FolderReader.files`."""
        places = [folder, *(child / "NIFTI" for child in children(folder))]
        return {what: [file for place in places for file in matching(place, name)] for what, name in EGD_NAMES.items()}
