"""UPENN-GBM: folders `UPENN-GBM-00001_11` (baseline) and `_21` (follow-up), masks in folders of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import from_home, matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity
from idh_lightning.cohort.study import SEQUENCES

_NAME = re.compile(r"(UPENN-GBM-\d{5})_(\d)1", re.ASCII)
UPENN_SUFFIXES = {
    name: f"{end}(?:_unstripped)?" for name, end in zip(SEQUENCES, ("FLAIR", "T1", "T1GD", "T2"), strict=True)
}


@dataclass(kw_only=True)
class UPENNGBM(FolderReader):
    """The University of Pennsylvania glioblastoma collection.

    `folder` is its `images_structural`, or `images_structural_unstripped` for images with the skull.

    Attributes:
        mask_folders: Beside `folder`; the first with a mask of the study wins, so corrected masks come first. A mask in
            the folder of the study comes before both.

    Source: Bakas et al. 2022, Scientific Data 9:453.
    """

    name: str = "upenn_gbm"
    mask_folders: Sequence[str] = ("images_segm", "automated_segm")

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "ID", "patient_id": "", "idh": "IDH1", "age_years": "Age_at_scan_years", "sex": "Gender",
    }  # fmt: skip

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        match = _NAME.fullmatch(text)
        return Identity(study_id=text, patient_id=match[1], follow_up=match[2] != "1") if match else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder and in the mask folders; see `FolderReader.files`."""
        found = {what: matching(folder, f"{identity.study_id}_{end}") for what, end in UPENN_SUFFIXES.items()}
        for place in (folder, *(from_home(self.folder).parent / name for name in self.mask_folders)):
            masks = matching(place, f"{identity.study_id}(?:_automated_approx)?_segm")
            if masks:
                return found | {"mask": masks}
        return found
