"""EGD, the Erasmus Glioma Database: folders `EGD-0001` with files of fixed names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity
from idh_lightning.cohort.labels import IDH_VOCABULARY
from idh_lightning.cohort.study import MUTANT, WILDTYPE

_NAME = re.compile(r"EGD-\d{4}", re.ASCII)
NAMES = {"FLAIR": "FLAIR", "T1": "T1", "T1c": "T1GD", "T2": "T2", "mask": "MASK"}


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
        return Identity(study_id=text, patient_id=text) if _NAME.fullmatch(text) else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder; see `FolderReader.files`."""
        return {what: matching(folder, name) for what, name in NAMES.items()}
