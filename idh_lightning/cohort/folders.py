"""Cohorts with one folder per study and a table: rows and folders are matched by parsing the names of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from idh_lightning.cohort.checks import counted
from idh_lightning.cohort.files import NIFTI, children, from_home, subfolders
from idh_lightning.cohort.identity import Identity, canonical_patient
from idh_lightning.cohort.labels import unstated
from idh_lightning.cohort.reader import CohortRow, Reader, duplicate_rows
from idh_lightning.cohort.study import SEQUENCES, Fault


@dataclass(kw_only=True)
class FolderReader(Reader):
    """One folder per study, and a table whose rows are matched to the folders by parsing both names.

    Attributes:
        folder: Holds the study folders, directly or one level down.
        table: CSV, TSV, Excel or Parquet with one row per study.
    """

    folder: str | Path
    table: str | Path

    selective: ClassVar[bool] = False
    """True where the table is about more studies than the folder is meant to hold."""

    @abstractmethod
    def identify(self, text: str) -> Identity | None:
        """Return the study that a folder name or a table entry names, or None if it names none."""

    @abstractmethod
    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return sequence name -> candidate files, and "mask" -> candidate masks, of one study folder."""

    def keys(self, identity: Identity) -> Sequence[str]:
        """Return the identifiers under which the row of a folder may stand in the table, the best first."""
        return (identity.study_id,)

    def places(self) -> Iterator[tuple[Identity, Path] | Fault]:
        """Yield every study folder, and a warning for a folder with images that names no study; see `read`."""
        for path in subfolders(self.folder):
            if identity := self.identify(path.name):
                yield identity, path
            elif any(child.name.lower().endswith(NIFTI) for child in children(path)):
                yield Fault(
                    where=str(path), check="unknown_folder", found="a folder with images that names no study",
                    expected=f"a study folder of {self.name}", remedy="Rename it if its study is meant to be used.",
                    severity="warning",
                )  # fmt: skip

    def rows(self) -> Iterator[tuple[Identity, pd.Series[str], str] | Fault]:
        """Yield identity, row and place of every line of the table; a fault where the identifier cannot be parsed."""
        path = from_home(self.table)
        table = self.rows_of(path)
        for number, row in table.iterrows():
            text = row[self.column("study_id")]
            identity = self.identify(text)
            patient = canonical_patient(row.get(self.column("patient_id"), ""))
            if identity is not None:
                if not unstated(patient):
                    identity = Identity(study_id=identity.study_id, patient_id=patient, follow_up=identity.follow_up)
                yield identity, row, f"{path.name}, study {identity.study_id}"
            elif not self.selective:
                yield Fault(
                    where=f"{path.name}, row {number}", check="unknown_id",
                    found=f"{self.column('study_id')} is {text[:80]!r}", expected=f"an identifier of {self.name}",
                    remedy="Correct the table or list the identifier in cohort.exclude.",
                    study_id=text[:128] or f"row {number}",
                )  # fmt: skip

    def found(self) -> Iterator[CohortRow | Fault]:
        """Yield the studies that have a row and a folder, and a fault for those that lack one; see `Reader.found`."""
        rows: dict[str, list[tuple[Identity, pd.Series[str], str]]] = {}
        for item in self.rows():
            if isinstance(item, Fault):
                yield item
            else:
                rows.setdefault(item[0].study_id, []).append(item)
        folders: dict[str, tuple[Identity, list[Path]]] = {}
        for place in self.places():
            if isinstance(place, Fault):
                yield place
            else:
                folders.setdefault(place[0].study_id, (place[0], []))[1].append(place[1])
        matched = set()
        for identity, paths in folders.values():
            key = next((key for key in self.keys(identity) if key in rows), None)
            matched |= {key}
            if len(paths) > 1:
                yield _fault(
                    identity, str(paths[0]), "two_folders", f"{len(paths)} folders: {', '.join(map(str, paths))}",
                    "one folder per study", "Remove all but one.",
                )  # fmt: skip
            elif key is None:
                yield _fault(
                    identity, str(paths[0]), "folder_without_row", f"no row for {identity.study_id} in {self.table}",
                    "a row with its label", "Add the row or list the study in cohort.exclude.",
                )  # fmt: skip
            elif all(row.equals(rows[key][0][1]) for _, row, _ in rows[key]):
                person, row, where = rows[key][0]
                files = self.files(paths[0], identity)
                yield self.cohort_row(
                    row, where=where, study_id=identity.study_id, patient_id=person.patient_id, folder=paths[0],
                    files={name: files.get(name, []) for name in SEQUENCES}, mask=files.get("mask", []),
                    follow_up=str(identity.follow_up),
                )  # fmt: skip
        for key, lines in rows.items():
            identity, _, where = lines[0]
            if len(lines) > 1 and (key in matched or not self.selective):
                yield duplicate_rows(identity.study_id, identity.patient_id, where, [row for _, row, _ in lines])
            elif key not in matched and not self.selective:
                yield _fault(
                    identity, where, "row_without_folder", f"no folder for it in {self.folder}", "a folder of images",
                    "Restore the folder or list the study in cohort.exclude.",
                )  # fmt: skip
        if self.selective and (unmatched := sorted(set(rows) - matched)):
            yield Fault(
                where=str(self.table), check="row_without_folder", severity="warning",
                found=f"{counted(len(unmatched), 'row has', 'rows have')} no folder in {self.folder}: "
                f"{', '.join(unmatched[:5])}{' ...' if len(unmatched) > 5 else ''}",
                expected="labels of the studies in the folder", remedy="None needed if these studies are not at hand.",
            )  # fmt: skip


def _fault(identity: Identity, where: str, check: str, found: str, expected: str, remedy: str) -> Fault:
    return Fault(
        where=where, check=check, found=found, expected=expected, remedy=remedy, study_id=identity.study_id,
        patient_id=identity.patient_id,
    )  # fmt: skip
