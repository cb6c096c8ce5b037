"""BIDS: `sub-*/[ses-*/]anat` with suffixes FLAIR, T1w, T2w, the entity `ce` for contrast, and participants.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import children, from_home, matching, subfolders
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity

_NAME = re.compile(r"(?:sub-)?([A-Za-z0-9]+)")
PLAIN = r"(?:_(?!ce-)[a-z]+-[A-Za-z0-9]+)*"
ENDS = {"FLAIR": "_FLAIR", "T1": "_T1w", "T1c": r"_ce-[A-Za-z0-9]+" + PLAIN + "_T1w", "T2": "_T2w"}


@dataclass(kw_only=True)
class BIDS(FolderReader):
    """A dataset in the Brain Imaging Data Structure (Gorgolewski et al. 2016, Scientific Data 3:160044).

    Attributes:
        mask: End of the name of the tumour mask, in `anat` or in the same place under a folder of `derivatives`.
    """

    name: str = "bids"
    mask: str = "_dseg"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "participant_id", "patient_id": "", "idh": "idh", "age_years": "age", "sex": "sex",
    }  # fmt: skip

    def identify(self, text: str) -> Identity | None:
        """Return the participant of a table entry or of a folder name; see `FolderReader.identify`."""
        match = _NAME.fullmatch(text)
        return Identity(study_id=f"sub-{match[1]}", patient_id=f"sub-{match[1]}") if match else None

    def places(self) -> Iterator[tuple[Identity, Path]]:
        """Yield every session of every participant; see `FolderReader.places`."""
        for path in subfolders(self.folder):
            person = self.identify(path.parent.name) if path.parent.name.startswith("sub-") else None
            if person and path.name == "anat":
                yield person, path
            if person and path.name.startswith("ses-"):
                yield Identity(study_id=f"{person.study_id}_{path.name}", patient_id=person.patient_id), path / "anat"

    def keys(self, identity: Identity) -> Sequence[str]:
        """Return the participant, whose row serves all sessions; see `FolderReader.keys`."""
        return (identity.patient_id,)

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one `anat`, masks also in derivatives; see `FolderReader.files`."""
        root, mask = from_home(self.folder), f"{identity.study_id}.*{re.escape(self.mask)}"
        places = [folder, *(made / folder.relative_to(root) for made in children(root / "derivatives"))]
        found = {what: matching(folder, identity.study_id + PLAIN + end) for what, end in ENDS.items()}
        return found | {"mask": [file for place in places for file in matching(place, mask)]}
