"""Layouts of cohorts: any table of files, and the folders of BIDS, BraTS, EGD, UCSF-PDGM and UPENN-GBM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.files import children, files_named, from_home, matching, subfolders
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import Identity, canonical_patient, parse_ucsf_pdgm
from idh_lightning.cohort.reader import CohortRow, Reader, duplicate_rows
from idh_lightning.cohort.spreadsheet import require_columns, unused_images
from idh_lightning.cohort.study import SEQUENCES, Fault
from idh_lightning.cohort.targets import TARGETS

_OWN_COLUMNS: Mapping[str, str] = {**{name: name for name in TARGETS}, "grade4": "grade"}
BIDS_PLAIN = r"(?:_(?!ce-)[a-z]+-[A-Za-z0-9]+)*"
BIDS_ENDS = {"FLAIR": "_FLAIR", "T1": "_T1w", "T1c": r"_ce-[A-Za-z0-9]+" + BIDS_PLAIN + "_T1w", "T2": "_T2w"}
BRATS_ENDS = {"FLAIR": "flair|t2f", "T1": "t1|t1n", "T1c": "t1ce|t1c", "T2": "t2|t2w", "mask": "seg"}
EGD_NAMES = {"FLAIR": "FLAIR", "T1": "T1", "T1c": "T1GD", "T2": "T2", "mask": "MASK"}
UCSF_ENDS = {**{sequence: sequence for sequence in SEQUENCES}, "T1c": "(?:T1c|T1gad)"}
UCSF_CORRECTED = "_bias"
UPENN_ENDS = {
    name: f"{end}(?:_unstripped)?" for name, end in zip(SEQUENCES, ("FLAIR", "T1", "T1GD", "T2"), strict=True)
}


@dataclass(kw_only=True)
class Table(Reader):
    """Studies whose files a CSV, TSV, Excel or Parquet table names; the sequences are those whose column exists.

    Attributes:
        table: One row per study. Paths are relative to its folder and may contain `*`, `?` or `[...]` if one file fits.
    """

    name: str = "table"
    table: str | Path
    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "study_id", "patient_id": "patient_id", **_OWN_COLUMNS,
        **{role: role for role in ("age_years", "sex", "follow_up", *SEQUENCES)},
        "mask": "tumor_segmentation",
    }  # fmt: skip

    def found(self) -> Iterator[CohortRow | Fault]:
        """Yield one entry per row; see `Reader.found`."""
        path = from_home(self.table)
        table = self.rows_of(path)
        name, person = self.column("study_id"), self.column("patient_id")
        sequences = [s for s in SEQUENCES if self.column(s) in table] or list(SEQUENCES)
        wanted = [s for s in self.sequences or sequences if self.missing == "error" or s in sequences]
        must = {s: self.column(s) for s in wanted or sequences}
        require_columns(table.columns, self._matched, must, path, read_as=table.attrs["read_as"])
        yield from unused_images(table, self._matched, path)
        sessions = person in table and person != name and re.search(r"ses|visit|scan|exam|time", name, re.IGNORECASE)
        if sessions and table.groupby(name)[person].nunique().max() > 1:
            table = table.assign(**{name: table[person] + "_" + table[name]})
            yield Fault(
                where=path.name, check="sessions_as_studies", severity="warning", expected="a name for each study",
                found=f"column {name!r} has the same names for several patients",
                remedy=f"None needed: a study is called by {person!r} and {name!r}.",
            )  # fmt: skip
        if person not in table:
            yield Fault(
                where=path.name, check="no_patient_column", severity="warning", expected=f"a column {person!r}",
                found="every study counts as a patient of its own",
                remedy="Add it, or name it in cohort.columns.patient_id, if a patient has several studies.",
            )  # fmt: skip
        for text, rows in table.groupby(name, sort=True):
            study_id, row, where = str(text), rows.iloc[0], f"{path.name}, study {str(text)[:80]}"
            patient_id = canonical_patient(row.get(person, study_id))
            if not study_id:
                for number in rows.index:
                    yield Fault(
                        where=f"{path.name}, row {number}", check="unusable_id", found="no study identifier",
                        expected="one in every row", remedy="Add it or delete the row.", study_id=f"row {number}",
                    )  # fmt: skip
                continue
            if len(rows) > 1:
                yield duplicate_rows(study_id, patient_id, where, [each for _, each in rows.iterrows()])
            if len(rows.drop_duplicates()) == 1:
                yield self.cohort_row(
                    row, where=where, study_id=study_id, patient_id=patient_id,
                    files={s: files_named(row[self.column(s)], path.parent) for s in sequences},
                    mask=files_named(row.get(self.column("mask"), ""), path.parent),
                    follow_up=row.get(self.column("follow_up"), ""),
                )  # fmt: skip


@dataclass(kw_only=True)
class BIDS(FolderReader):
    """A dataset in the Brain Imaging Data Structure (Gorgolewski et al. 2016, Scientific Data 3:160044).

    `sub-*/[ses-*/]anat` with suffixes FLAIR, T1w, T2w, the entity `ce` for contrast, and participants.tsv.

    Attributes:
        mask: End of the name of the tumour mask, in `anat` or in the same place under a folder of `derivatives`.
    """

    name: str = "bids"
    mask: str = "_dseg"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "participant_id", "patient_id": "", **_OWN_COLUMNS, "age_years": "age", "sex": "sex",
    }  # fmt: skip

    def identify(self, text: str) -> Identity | None:
        """Return the participant of a table entry or of a folder name; see `FolderReader.identify`."""
        match = re.fullmatch(r"(?:sub-)?([A-Za-z0-9]+)", text)
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
        found = {what: matching(folder, identity.study_id + BIDS_PLAIN + end) for what, end in BIDS_ENDS.items()}
        return found | {"mask": [file for place in places for file in matching(place, mask)]}


@dataclass(kw_only=True)
class BraTS(FolderReader):
    """Studies of the Brain Tumor Segmentation challenges, 2018 to 2023, whose own tables do not tell IDH.

    The table can be any that names the BraTS study and its IDH status, for example that of UCSF-PDGM with
    `columns: {study_id: BraTS21 ID, patient_id: ID, idh: IDH}`. Glioma numbers of 2021 and 2023 are the same patients,
    so a row for `BraTS2021_00012` serves `BraTS-GLI-00012-000` and the later time points too.

    Source: Baid et al. 2021, arXiv:2107.02314; Adewole et al. 2023, arXiv:2305.19369.
    """

    name: str = "brats"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "study_id", "patient_id": "patient_id", **_OWN_COLUMNS, "age_years": "age_years", "sex": "sex",
    }  # fmt: skip
    selective: ClassVar[bool] = True

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        if match := re.fullmatch(r"BraTS2021_(\d{5})|BraTS-GLI-(\d{5})-(\d{3})", text, re.ASCII):
            number, later = match[1] or match[2], int(match[3] or 0) > 0
            return Identity(study_id=text, patient_id=f"BraTS2021_{number}", follow_up=later)
        older = re.fullmatch(r"(Bra[tT][sS]20_(?:Training|Validation)_\d+)|(Bra[tT][sS]\d\d_\w+)_\d+", text, re.ASCII)
        return Identity(study_id=text, patient_id=older[1] or older[2]) if older else None

    def keys(self, identity: Identity) -> Sequence[str]:
        """Return the name itself, then the other names of the same patient; see `FolderReader.keys`."""
        number = identity.patient_id.removeprefix("BraTS2021_")
        return (identity.study_id, identity.patient_id, f"BraTS-GLI-{number}-000")

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder; see `FolderReader.files`."""
        return {what: matching(folder, f"{identity.study_id}[_-](?:{end})") for what, end in BRATS_ENDS.items()}


@dataclass(kw_only=True)
class EGD(FolderReader):
    """The Erasmus Glioma Database; `folder` is its `SUBJECTS`, `table` the genetic labels saved as CSV.

    Folders `EGD-0001` hold files of fixed names, or are as its XNAT server gives them. Its table writes IDH and
    1p/19q as 0 (wildtype, intact), 1 (mutant, codeleted) and -1 (not known, which is an error here as everywhere).

    Source: van der Voort et al. 2021, Data in Brief 37:107191.
    """

    name: str = "egd"

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "Subject", "patient_id": "", "idh": "IDH", "codeletion_1p19q": "1p/19q", "grade4": "Grade",
        "age_years": "Age", "sex": "Sex",
    }  # fmt: skip
    spellings: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: dict(zip(("0", "1"), TARGETS[name].classes, strict=True)) for name in ("idh", "codeletion_1p19q")
    }

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        match = re.fullmatch(r"(?:MR_)?(EGD-\d{4})", text, re.ASCII)
        return Identity(study_id=match[1], patient_id=match[1]) if match else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder, or in its `1_T1/NIFTI` and the like; see `FolderReader.files`."""
        places = [folder, *(child / "NIFTI" for child in children(folder))]
        return {what: [file for place in places for file in matching(place, name)] for what, name in EGD_NAMES.items()}


@dataclass(kw_only=True)
class UCSFPDGM(FolderReader):
    """The UCSF preoperative diffuse glioma MRI collection, version 5 and its like.

    Its folders are called `UCSF-PDGM-0004_nifti`, its table writes `UCSF-PDGM-004`.

    Attributes:
        bias_corrected: Use the `_bias` files (N4-corrected) instead of the plain ones.

    Source: Calabrese et al. 2022, Radiology: Artificial Intelligence 4(6):e220058.
    """

    name: str = "ucsf_pdgm"
    bias_corrected: bool = False

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "ID", "patient_id": "", "idh": "IDH", "codeletion_1p19q": "1p/19q", "mgmt": "MGMT status",
        "grade4": "WHO CNS Grade", "age_years": "Age at MRI", "sex": "Sex",
    }  # fmt: skip
    spellings: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "mgmt": {"positive": "methylated", "negative": "unmethylated"}
    }
    restore: ClassVar[str] = (
        f"Restore the file, take those with {UCSF_CORRECTED} in their names (cohort.bias_corrected=true)"
    )

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        return parse_ucsf_pdgm(text.removesuffix("_nifti"))

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder; the files of a follow-up may be named after study or patient."""
        stem = f"(?:{identity.study_id}|{identity.patient_id})"
        suffix = UCSF_CORRECTED if self.bias_corrected else ""
        found = {sequence: matching(folder, f"{stem}_{end}{suffix}") for sequence, end in UCSF_ENDS.items()}
        return found | {"mask": matching(folder, f"{stem}_tumor_segmentation")}


@dataclass(kw_only=True)
class UPENNGBM(FolderReader):
    """The University of Pennsylvania glioblastoma collection; folders end in `_11` (baseline) or `_21` (follow-up).

    `folder` is its `images_structural`, or `images_structural_unstripped` for images with the skull.

    Attributes:
        mask_folders: Beside `folder`; the first with a mask of the study wins, so corrected masks come first. A mask in
            the folder of the study comes before both.

    Source: Bakas et al. 2022, Scientific Data 9:453.
    """

    name: str = "upenn_gbm"
    mask_folders: Sequence[str] = ("images_segm", "automated_segm")

    default_columns: ClassVar[Mapping[str, str]] = {
        "study_id": "ID", "patient_id": "", "idh": "IDH1", "mgmt": "MGMT", "age_years": "Age_at_scan_years",
        "sex": "Gender",
    }  # fmt: skip

    def identify(self, text: str) -> Identity | None:
        """Return the study of a table entry or of a folder name; see `FolderReader.identify`."""
        match = re.fullmatch(r"(UPENN-GBM-\d{5})_(\d)1", text, re.ASCII)
        return Identity(study_id=text, patient_id=match[1], follow_up=match[2] != "1") if match else None

    def files(self, folder: Path, identity: Identity) -> dict[str, list[Path]]:
        """Return the candidates in one folder and in the mask folders; see `FolderReader.files`."""
        found = {what: matching(folder, f"{identity.study_id}_{end}") for what, end in UPENN_ENDS.items()}
        for place in (folder, *(from_home(self.folder).parent / name for name in self.mask_folders)):
            if masks := matching(place, f"{identity.study_id}(?:_automated_approx)?_segm"):
                return found | {"mask": masks}
        return found
