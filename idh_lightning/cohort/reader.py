"""From a table and folders to a cohort: what every layout has in common.

A layout is a small class that yields an `Entry` for each study as it stands on disk, and a `Fault` for what does not
fit. `Reader.read` decides what an entry is worth: labels from the closed vocabulary, one file per sequence. It never
raises for a faulty study.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd

from idh_lightning.cohort.checks import assemble
from idh_lightning.cohort.files import one_file
from idh_lightning.cohort.identity import names_a_file, parse_ucsf_pdgm
from idh_lightning.cohort.labels import IDH_VOCABULARY, extend_vocabulary, parse_idh
from idh_lightning.cohort.study import SEQUENCES, Cohort, Exclusion, Fault, Study
from idh_lightning.errors import CohortError, ConfigError

LEAKING = re.compile(
    r"idh|(?<!age_at_)(?<!age at )diagnos|patholog|histolog|\bwho\b|grade|1p|19q|codel|mgmt|atrx|tert|surviv|\bos\b"
    r"|dead|alive|death|\beor\b|resect|biops",
    re.IGNORECASE,
)
"""Column names that give the label away, or are known only after surgery. They may be carried for subgroup analysis; a
reader refuses them as age or sex, which are the only columns that a model may ever see."""

_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_TRUTHS = {**dict.fromkeys(("true", "yes", "1", "1.0"), True), **dict.fromkeys(("false", "no", "0", "0.0"), False)}
_UNSTATED = {"", "unknown", "n/a", "na", "nan", "not available", "unspecified"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One study as it stands on disk and in the table, before anything about it is checked.

    Attributes:
        where: Table and row, or folder, for messages.
        study_id: Canonical.
        patient_id: Canonical.
        idh: The text of the label column.
        files: Sequence name -> the files that could be it; right is exactly one.
        mask: The files that could be the tumour mask; right is one, or none.
        age: Text, or "".
        sex: Text, or "".
        follow_up: Text, or "" where neither the table nor the layout says so.
        carried: The columns of the table that have no role.
    """

    where: str
    study_id: str
    patient_id: str
    idh: str
    files: Mapping[str, Sequence[Path]]
    mask: Sequence[Path] = ()
    age: str = ""
    sex: str = ""
    follow_up: str = ""
    carried: Mapping[str, object] = field(default_factory=dict)


@dataclass(kw_only=True)
class Reader(ABC):
    """What can be set for every cohort; a layout adds where it lies.

    Attributes:
        name: For tables and titles.
        exclude: Study or patient identifiers to leave out; each must occur, and is recorded as an exclusion.
        on_error: What `settle` does with the errors: "raise" one exception, or "exclude" the studies.
        vocabulary: Further spellings of the label: text -> "wildtype" or "mutant".
        columns: Role (study_id, patient_id, idh, age_years, sex) -> column of the table, where it differs from the
            default of the layout.
        sequences: The sequences to use, or None for all that the layout has.
        missing: "error" if a study must have all of them, "zero" if a study may lack some.
    """

    name: str
    exclude: Sequence[str] = ()
    on_error: Literal["raise", "exclude"] = "raise"
    vocabulary: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    sequences: Sequence[str] | None = None
    missing: Literal["error", "zero"] = "error"

    default_columns: ClassVar[Mapping[str, str]] = {}
    default_vocabulary: ClassVar[Mapping[str, int]] = IDH_VOCABULARY

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("on_error", self.on_error, ("raise", "exclude")),
            ("missing", self.missing, ("error", "zero")),
        ):
            if value not in choices:
                raise ConfigError(f"cohort.{key}: {value!r}; expected one of {choices}. Correct the setting.")
        if isinstance(self.exclude, str):
            raise ConfigError(
                f"cohort.exclude: {self.exclude!r}; expected a list. Write cohort.exclude=[{self.exclude}]."
            )
        if unknown := [name for name in self.sequences or () if name not in SEQUENCES]:
            raise ConfigError(f"cohort.sequences: {unknown}; expected a choice of {SEQUENCES}. Correct the setting.")
        if unknown := [role for role in self.columns if role not in self.default_columns]:
            raise ConfigError(
                f"cohort.columns: {unknown}; expected a choice of {tuple(self.default_columns)}. Correct the setting."
            )
        for role in ("age_years", "sex"):
            if LEAKING.search(column := self.column(role)):
                raise ConfigError(
                    f"cohort.columns.{role}: column {column!r} gives the label away; expected one with the {role} of "
                    "the patient. Name another column, or null; all columns are carried for subgroup analysis anyway."
                )
        self._labels = extend_vocabulary(self.default_vocabulary, self.vocabulary)

    def column(self, role: str) -> str:
        """Return the name of the column that plays a role, "" if none does."""
        return str(self.columns.get(role, self.default_columns.get(role)) or "")

    def required_columns(self) -> dict[str, str]:
        """Return role -> column for those that must exist: study, label, and all that the user named differently."""
        named = (role for role in self.columns if self.column(role) not in ("", self.default_columns[role]))
        return {role: self.column(role) for role in ("study_id", "idh", *named)}

    def carried(self, row: pd.Series[str]) -> dict[str, object]:
        """Return the columns of a row that have no role."""
        roles = {self.column(role) for role in self.default_columns}
        return {str(name): text for name, text in row.items() if name not in roles}

    @abstractmethod
    def found(self) -> Iterator[Entry | Fault]:
        """Yield every study on disk or in the table, and a fault for what cannot be one.

        Raises:
            CohortError: If the table, the folder or the label column is not there at all.
        """

    def read(self) -> Cohort:
        """Return the cohort with all that is wrong about it; pass it to `settle`.

        Raises:
            CohortError: If the table, the folder or the label column is not there at all.
        """
        studies: list[Study] = []
        faults: list[Fault] = []
        exclusions: dict[str, Exclusion] = {}
        unused = {str(text).strip() for text in self.exclude}
        spellings = {form: text for text in unused for form in _spellings(text)}
        sequences: set[str] = set()
        for item in self.found():
            hits = {spellings[i] for i in (item.study_id, item.patient_id) if i is not None and i in spellings}
            if hits:
                unused = unused - hits
                study_id = item.study_id or item.where
                exclusions[study_id] = Exclusion(
                    study_id=study_id, patient_id=item.patient_id or study_id, reason="listed in cohort.exclude"
                )
            elif isinstance(item, Fault):
                faults.append(item)
            else:
                sequences |= set(item.files)
                study = self._study(item, faults)
                studies += [study] if study is not None else []
        faults += [
            Fault(
                where="cohort.exclude", check="unused_exclusion", found=f"no study or patient {text[:80]!r}",
                expected=f"identifiers of the cohort {self.name}", remedy="Correct the spelling or remove the entry.",
            )
            for text in sorted(unused)
        ]  # fmt: skip
        wanted = self.sequences or sequences or SEQUENCES
        return assemble(
            name=self.name,
            sequences=tuple(name for name in SEQUENCES if name in wanted),
            studies=studies,
            exclusions=exclusions.values(),
            faults=faults,
        )

    def _study(self, entry: Entry, faults: list[Fault]) -> Study | None:
        """Return the study behind an entry, or None with at least one error added to the faults."""
        errors = 0

        def report(check: str, found: str, expected: str, remedy: str, *, error: bool = True) -> None:
            nonlocal errors
            errors += error
            faults.append(
                Fault(
                    where=entry.where, check=check, found=found, expected=expected, remedy=remedy,
                    study_id=entry.study_id, patient_id=entry.patient_id, severity="error" if error else "warning",
                )
            )  # fmt: skip

        if not names_a_file(entry.study_id):
            report(
                "unusable_id", f"the study is called {entry.study_id[:80]!r}",
                "at most 128 letters, digits, dots, dashes and underscores", "Rename the study in the table.",
            )  # fmt: skip
        if not entry.patient_id:
            report("no_patient", "no patient identifier", "one, since patients are split", "Add it to the table.")
        label = 0
        try:
            label = parse_idh(entry.idh, self._labels)
        except CohortError:
            report(
                "unknown_label", f"{self.column('idh')} is {entry.idh[:80]!r}", "'wildtype' or a mutation name",
                "Correct the table, add the spelling to cohort.vocabulary, or add the study to cohort.exclude.",
            )  # fmt: skip
        wanted = [name for name in SEQUENCES if name in (self.sequences or entry.files)]
        files: dict[str, Path] = {}
        for sequence in wanted:
            candidates = entry.files.get(sequence, ())
            file, problem = one_file(candidates, sequence)
            if file is not None:
                files[sequence] = file
            else:
                ambiguous = len(candidates) > 1
                report(
                    "ambiguous_sequence" if ambiguous else "missing_sequence", problem,
                    f"exactly one NIfTI file for {sequence}",
                    "Leave one of them in place." if ambiguous
                    else "Restore the file, add the study to cohort.exclude, or train with data.missing=zero.",
                    error=ambiguous or self.missing == "error",
                )  # fmt: skip
        if not files and self.missing == "zero":
            report("no_sequence", "no sequence at all", "at least one", "Restore the files or exclude the study.")
        mask, problem = one_file(entry.mask, "tumour mask")
        if mask is None:
            report(
                "ambiguous_mask" if len(entry.mask) > 1 else "missing_mask", problem, "one NIfTI file with the tumour",
                "Name or leave in place exactly one." if entry.mask
                else "None needed: the study is used, but its explanations cannot be scored.",
                error=bool(entry.mask),
            )  # fmt: skip
        age = _age(entry.age)
        if age is None and entry.age.casefold() not in _UNSTATED:
            report(
                "unknown_age", f"age is {entry.age[:80]!r}", "years between 0 and 120",
                "Correct the table; until then the age counts as unknown.", error=False,
            )  # fmt: skip
        sex = _SEXES.get(entry.sex.casefold())
        if sex is None and entry.sex.casefold() not in _UNSTATED:
            report(
                "unknown_sex", f"sex is {entry.sex[:80]!r}", "F, M, female or male",
                "Correct the table; until then the sex counts as unknown.", error=False,
            )  # fmt: skip
        follow_up = _TRUTHS.get(entry.follow_up.casefold())
        if follow_up is None and entry.follow_up.casefold() not in _UNSTATED:
            report(
                "unknown_follow_up", f"follow_up is {entry.follow_up[:80]!r}", "true, false or nothing",
                "Correct the table.",
            )  # fmt: skip
        if errors:
            return None
        return Study(
            study_id=entry.study_id, patient_id=entry.patient_id, label=label, files=files, mask=mask, age_years=age,
            sex=sex, follow_up=bool(follow_up), carried=dict(entry.carried),
        )  # fmt: skip


def duplicate_rows(study_id: str, patient_id: str, where: str, rows: int) -> Fault:
    """Return the fault of a study that stands in a table more than once."""
    return Fault(
        where=where, check="duplicate_study", found=f"{rows} rows for one study", expected="one row per study",
        remedy="Delete all but one.", study_id=study_id, patient_id=patient_id,
    )  # fmt: skip


def without_id(where: str, study_id: str) -> Fault:
    """Return the fault of a row that names no study."""
    return Fault(
        where=where, check="unusable_id", found="no study identifier", expected="one in every row",
        remedy="Add it or delete the row.", study_id=study_id,
    )  # fmt: skip


def _age(text: str) -> float | None:
    """Return years, or None; ">89" and "90+", which de-identification leaves of great ages, count as their bound."""
    match = re.fullmatch(r"[>≥]?=?\s*(\d{1,3}(?:\.\d+)?)\+?", text, re.ASCII)
    years = float(match[1]) if match else -1.0
    return years if 0 <= years <= 120 else None


def _spellings(text: str) -> set[str]:
    ucsf = parse_ucsf_pdgm(text)
    return {text, ucsf.study_id} if ucsf else {text}
