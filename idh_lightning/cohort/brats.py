"""BraTS 2018 to 2023: images by challenge number, labels from a table that maps numbers to patients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity

_NUMBER = re.compile(r"BraTS2021_(\d{5})|BraTS-GLI-(\d{5})-(\d{3})", re.ASCII)
_OLDER = re.compile(r"(Bra[tT][sS]20_(?:Training|Validation)_\d+)|(Bra[tT][sS]\d\d_\w+)_\d+", re.ASCII)
BRATS_SUFFIXES = {"FLAIR": "flair|t2f", "T1": "t1|t1n", "T1c": "t1ce|t1c", "T2": "t2|t2w", "mask": "seg"}


@dataclass(kw_only=True)
class BraTS(FolderReader):
    """Studies of the Brain Tumor Segmentation challenges, whose own tables do not tell IDH.

    The table can be any that names the BraTS study and its IDH status, for example that of UCSF-PDGM with
    `columns: {study_id: BraTS21 ID, patient_id: ID, idh: IDH}`. Glioma numbers of 2021 and 2023 are the same patients,
    so a row for `BraTS2021_00012` serves `BraTS-GLI-00012-000` and the later time points too.

    Source: Baid et al. 2021, arXiv:2107.02314; Adewole et al. 2023, arXiv:2305.19369.
    """

    name: str = "brats"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "study_id", "patient_id": "patient_id", "idh": "idh", "age_years": "age_years", "sex": "sex",
    }  # fmt: skip
    selective: ClassVar[bool] = True

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        if match := _NUMBER.fullmatch(text):
            number, later = match[1] or match[2], int(match[3] or 0) > 0
            return Identity(study_id=text, patient_id=f"BraTS2021_{number}", follow_up=later)
        older = _OLDER.fullmatch(text)
        return Identity(study_id=text, patient_id=older[1] or older[2]) if older else None

    def keys(self, identity: Identity) -> Sequence[str]:
        """Return the name itself, then the other names of the same patient; see `FolderReader.keys`."""
        number = identity.patient_id.removeprefix("BraTS2021_")
        return (identity.study_id, identity.patient_id, f"BraTS-GLI-{number}-000")

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder; see `FolderReader.files`."""
        return {what: matching(folder, f"{identity.study_id}[_-](?:{end})") for what, end in BRATS_SUFFIXES.items()}
