"""A reader for a folder layout of one's own, without touching the package: three answers, and the rest is shared."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np

from idh_lightning.cohort.files import matching
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity


@dataclass(kw_only=True)
class MySite(FolderReader):
    """Folders `MS-001` with files of fixed names, and a table with one row per study."""

    name: str = "mysite"
    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "case",
        "patient_id": "",
        "idh": "IDH",
        "age_years": "age",
        "sex": "sex",
    }

    def identify(self, text: str) -> Identity | None:
        """Study that a folder's name or a table entry means."""
        match = re.fullmatch(r"MS-\d{3}", text)
        return Identity(study_id=match[0], patient_id=match[0]) if match else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Files that could be each sequence and the mask."""
        names = {"FLAIR": "flair", "T1": "t1", "T1c": "t1_gd", "T2": "t2", "mask": "seg"}
        return {role: matching(folder, name) for role, name in names.items()}


def main() -> None:
    """Write three made-up studies, one of which lacks a sequence, and read them."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for case in ("MS-001", "MS-002", "MS-003"):
            (folder / case).mkdir()
            for name in ("flair", "t1", "t1_gd", "t2", "seg"):
                if (case, name) != ("MS-003", "t2"):
                    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
                    nib.save(image, folder / case / f"{name}.nii.gz")
        (folder / "clinic.csv").write_text("case,IDH,age,sex\nMS-001,mutant,38,F\nMS-002,wt,61,M\nMS-003,R132H,44,M\n")
        cohort = MySite(folder=folder, table=folder / "clinic.csv").read()
        for study in cohort.studies:
            print(study.study_id, ("wildtype", "mutant")[study.label], *study.files)
        for fault in cohort.faults:
            print(f"{fault.severity}: {fault}")


if __name__ == "__main__":
    main()
