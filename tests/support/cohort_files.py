"""A small cohort in the UCSF-PDGM layout, with empty files in place of images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from idh_lightning.cohort import UCSFPDGM

FILES = ("FLAIR", "T1", "T1c", "T2", "tumor_segmentation")


@dataclass
class UCSFCopy:
    """A folder and a table that a test may corrupt.

    Attributes:
        root: Where it lies.
        table: The rows; `save` writes them.
    """

    root: Path
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def reader(self, **settings: object) -> UCSFPDGM:
        self.save()
        return UCSFPDGM(folder=self.root / "images", table=self.root / "metadata.csv", **settings)  # type: ignore[arg-type]

    def save(self) -> None:
        self.table.to_csv(self.root / "metadata.csv", index=False)

    def folder(self, study_id: str) -> Path:
        return self.root / "images" / f"{study_id}_nifti"

    def file(self, study_id: str, what: str) -> Path:
        return self.folder(study_id) / f"{study_id}_{what}.nii.gz"

    def add(self, study_id: str) -> None:
        self.folder(study_id).mkdir(parents=True)
        for what in FILES:
            self.file(study_id, what).touch()

    def remove(self, study_id: str) -> None:
        shutil.rmtree(self.folder(study_id))

    def set(self, number: int, column: str, text: str) -> None:
        self.table.loc[self.table["ID"] == f"UCSF-PDGM-{number:03d}", column] = text


def write_ucsf_cohort(root: Path, patients: int = 12) -> UCSFCopy:
    """Write patients 1, 2, ...; every third is mutant, and patient 5 (wildtype) has a follow-up."""
    numbers = range(1, patients + 1)
    rows = [
        {
            "ID": f"UCSF-PDGM-{number:03d}",
            "Sex": "FM"[number % 2],
            "Age at MRI": str(30 + number),
            "WHO CNS Grade": "4",
            "Final pathologic diagnosis (WHO 2021)": "Glioblastoma, IDH-wildtype",
            "MGMT status": "positive",
            "1p/19q": "intact",
            "IDH": "IDH1 p.R132H" if number % 3 == 0 else "wildtype",
            "OS": str(100 * number),
            "EOR": "GTR",
        }
        for number in numbers
    ]
    rows.append(rows[4] | {"ID": "UCSF-PDGM-0005_FU003d"})
    cohort = UCSFCopy(root, pd.DataFrame(rows))
    for number in numbers:
        cohort.add(f"UCSF-PDGM-{number:04d}")
    cohort.add("UCSF-PDGM-0005_FU003d")
    return cohort
