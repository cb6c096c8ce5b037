"""From a table and folders to a cohort: what every layout has in common.

A layout is a small class that yields a `CohortRow` for each study as it stands on disk, and a `Fault` for what does
not fit. `Reader.read` decides what a row is worth: labels from the closed vocabulary, one file per sequence. It
never raises for a faulty study.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from idh_lightning.cohort.aliases import read_aliases
from idh_lightning.cohort.checks import build_cohort, counted
from idh_lightning.cohort.files import images_in, one_file
from idh_lightning.cohort.identity import names_a_file, parse_ucsf_pdgm
from idh_lightning.cohort.labels import normalise, unstated
from idh_lightning.cohort.spreadsheet import describe_columns, match_columns, read_spreadsheet, require_columns
from idh_lightning.cohort.study import SEQUENCES, Cohort, Exclusion, Fault, Study
from idh_lightning.cohort.targets import TARGETS, Target, target_of
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, ConfigError

LEAKING = re.compile(
    r"idh|(?<!age_at_)(?<!age at )diagnos|patholog|histolog|\bwho\b|grade|1p|19q|codel|mgmt|atrx|tert|surviv|\bos\b"
    r"|dead|alive|death|\beor\b|resect|biops",
    re.IGNORECASE,
)
"""Column names that give the label away, or are known only after surgery. They may be carried for subgroup analysis; a
reader refuses them as age or sex, which are the only columns that a model may ever see."""

_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_OTHER_FOLLOW_UP = "Correct the table, or leave the column out if it says another thing: cohort.columns.follow_up=null"
_TRUTHS = {**dict.fromkeys(("true", "yes", "1", "1.0"), True), **dict.fromkeys(("false", "no", "0", "0.0"), False)}


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """One study as it stands on disk and in the table, before anything about it is checked.

    Attributes:
        where: Table and row, or folder, for messages.
        study_id: Canonical.
        patient_id: Canonical.
        label: The text of the label column.
        files: Sequence name -> the files that could be it; right is exactly one.
        mask: The files that could be the tumour mask; right is one, or none.
        age: Text, or "".
        sex: Text, or "".
        follow_up: Text, or "" where neither the table nor the layout says so.
        carried: The columns of the table that have no role.
        folder: Of the study, where the layout has one.
    """

    where: str
    study_id: str
    patient_id: str
    label: str
    files: Mapping[str, Sequence[Path]]
    mask: Sequence[Path] = ()
    age: str = ""
    sex: str = ""
    follow_up: str = ""
    carried: Mapping[str, object] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(kw_only=True)
class Reader(ABC):
    """Cohort reader: the settings that every layout has; a layout adds where it lies.

    Attributes:
        name: For tables and titles.
        exclude: Study or patient identifiers to leave out; each must occur, and is recorded as an exclusion.
        on_error: What `raise_or_exclude` does with the errors: "raise" one exception, or "exclude" the studies.
        target: What is predicted: one of TARGETS, or a column of the table.
        classes: Names of the negative and the positive class of such a column; see `target_of`.
        vocabulary: Further spellings of the label: text -> name of a class, or the class -> a list of texts.
        columns: Role (study_id, patient_id, idh or another target, age_years, sex) -> column of the table, where it
            differs from the default of the layout.
        sequences: The sequences to use, or None for all that the layout has.
        missing: "error" if a study must have all of them, "zero" if a study may lack some.
        aliases: Table of persons with several names, see `read_aliases`; None for none.
    """

    name: str
    exclude: Sequence[str] = ()
    on_error: Literal["raise", "exclude"] = "raise"
    target: str = "idh"
    classes: Sequence[str] | None = None
    vocabulary: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    sequences: Sequence[str] | None = None
    missing: Literal["error", "zero"] = "error"
    aliases: str | Path | None = None

    default_columns: ClassVar[Mapping[str, str]] = {}
    spellings: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Target -> spelling -> name of a class, where the table of the layout says what its words mean."""
    restore: ClassVar[str] = "Restore the file"

    def __post_init__(self) -> None:
        self._matched: dict[str, str] = {}
        self._notes: list[str] = []
        for key, value, choices in (
            ("on_error", self.on_error, ("raise", "exclude")),
            ("missing", self.missing, ("error", "zero")),
        ):
            if value not in choices:
                raise ConfigError(f"cohort.{key}: {value!r}; expected one of {choices}. Correct the setting.")
        refuse_single_name(self.exclude)
        if unknown := [name for name in self.sequences or () if name not in SEQUENCES]:
            raise ConfigError(f"cohort.sequences: {unknown}; expected a choice of {SEQUENCES}. Correct the setting.")
        chosen = target_of(self.target, self.classes)
        self._target = chosen.extended(self.spellings.get(chosen.name, {})).extended(self.vocabulary)
        others = TARGETS.keys() - {self.target}
        roles = {role: name for role, name in self.default_columns.items() if role not in others}
        if self.target in roles and self.target not in TARGETS:
            raise ConfigError(
                f"cohort.target: {self.target!r} has another role; expected {', '.join(TARGETS)}, or a column of the "
                "table that has none. Rename the column in the table."
            )
        self._roles = {**roles, self.target: roles.get(self.target, self.target)}
        if unknown := [role for role in self.columns if role not in (*self.default_columns, *TARGETS, self.target)]:
            raise ConfigError(
                f"cohort.columns: {unknown}; expected a choice of {tuple(self._roles)}. Correct the setting."
            )
        for role in ("age_years", "sex"):
            if LEAKING.search(column := self.column(role)):
                raise ConfigError(
                    f"cohort.columns.{role}: column {column!r} gives the label away; expected one with the {role} of "
                    "the patient. Name another column, or null; all columns are carried for subgroup analysis anyway."
                )

    def column(self, role: str) -> str:
        """Return the name of the column that plays a role, "" if none does."""
        return self._matched.get(role) or str(self.columns.get(role, self._roles.get(role)) or "")

    def rows_of(self, path: Path) -> pd.DataFrame:
        """Return a table, after finding out which of its columns play which roles, and noting it.

        Columns that the user named differently from the default must have exactly that name.

        Raises:
            CohortError: If the table cannot be read, or a column that must exist does not: study, label, or one that
                the user named.
        """
        table = read_spreadsheet(path)
        self._matched = {}
        wanted = {role: self.column(role) for role in self._roles}
        named = {r: name for r, name in wanted.items() if r in self.columns and name not in ("", self._roles[r])}
        found = {role: name for role, name in named.items() if name in table.columns}
        rest = [name for name in table.columns if name not in found.values()]
        found |= match_columns(rest, {role: name for role, name in wanted.items() if role not in named}, path)
        must = {role: wanted[role] for role in ("study_id", self.target)}
        require_columns(table.columns, found, {**must, **named}, path, read_as=table.attrs["read_as"])
        if twice := [role for role in found if role != self.target and found[role] == found[self.target]]:
            raise CohortError(
                f"{path}: column {found[self.target]!r} is {self.target} and {twice[0]}; expected a column of its own, "
                f"since what is predicted may not be known. Name another, or none: cohort.columns.{twice[0]}=null"
            )
        self._matched = {role: found[role] for role in wanted if role in found}
        self._notes.append(
            f"{path.name}: {counted(len(table), 'row')} of "
            f"{counted(table[self.column('study_id')].nunique(), 'study', 'studies')}, {table.attrs['read_as']}; "
            f"{describe_columns(table.columns, self._matched, wanted)}."
        )
        return table

    def cohort_row(self, row: pd.Series[str], **known: Any) -> CohortRow:
        """Cohort row of a table row: what is known of it, and the columns that play a role."""
        age, sex = (row.get(self.column(role), "") for role in ("age_years", "sex"))
        roles = {self.column(role) for role in self._roles}
        carried = {str(name): text for name, text in row.items() if name not in roles}
        return CohortRow(label=row[self.column(self.target)], age=age, sex=sex, carried=carried, **known)

    @abstractmethod
    def found(self) -> Iterator[CohortRow | Fault]:
        """Yield every study on disk or in the table, and a fault for what cannot be one; raise as `read` does."""

    def read(self) -> Cohort:
        """Return the cohort with all that is wrong about it; pass it to `raise_or_exclude`.

        A CohortError is raised only if the table, the folder or the label column is not there at all.
        """
        aliases = read_aliases(self.aliases)
        self._notes = []
        studies: list[Study] = []
        faults: list[Fault] = []
        exclusions: dict[str, Exclusion] = {}
        unused = {str(text).strip() for text in self.exclude}
        spellings = spellings_of(unused)
        sequences: set[str] = set()
        known: set[str] = set()
        for item in self.found():
            known |= {item.study_id or "", item.patient_id or ""}
            hits = {spellings[i] for i in (item.study_id, item.patient_id) if i is not None and i in spellings}
            if hits:
                unused = unused - hits
                study_id = item.study_id or item.where
                exclusions[study_id] = _listed(study_id, item.patient_id or study_id)
            elif isinstance(item, Fault):
                faults.append(item)
            else:
                sequences |= set(item.files)
                study = self._study(item, faults)
                studies += [study] if study is not None else []
        wanted = self.sequences or sequences or SEQUENCES
        persons = aliases.persons([*studies, *exclusions.values(), *faults])
        for study in studies:
            if hits := {spellings[name] for name in persons[study.patient_id] if name in spellings}:
                unused -= hits
                exclusions[study.study_id] = _listed(study.study_id, study.patient_id)
        faults += [unused_exclusion(text, known, self.name) for text in sorted(unused)]
        return build_cohort(
            name=self.name, sequences=[name for name in SEQUENCES if name in wanted],
            studies=[study for study in studies if study.study_id not in exclusions], exclusions=exclusions.values(),
            faults=[*faults, *aliases.faults(persons)], notes=[*self._notes, *aliases.notes], target=self._target,
            persons=persons,
        )  # fmt: skip

    def _study(self, row: CohortRow, faults: list[Fault]) -> Study | None:
        """Study behind a row, or None with at least one error added to the faults."""
        found: list[Fault] = []

        def report(check: str, found_text: str, expected: str, remedy: str, *, error: bool = True) -> None:
            found.append(
                Fault(
                    where=row.where, check=check, found=found_text, expected=expected, remedy=remedy,
                    study_id=row.study_id, patient_id=row.patient_id, severity="error" if error else "warning",
                )
            )  # fmt: skip

        if not names_a_file(row.study_id):
            report(
                "unusable_id", f"the study is called {row.study_id[:80]!r}",
                "at most 128 letters, digits, dots, dashes and underscores", "Rename the study in the table.",
            )  # fmt: skip
        if unstated(row.patient_id):
            said = f"the patient is called {row.patient_id!r}" if row.patient_id else "no patient identifier"
            report("no_patient", said, "an identifier, since patients are split", "Add it to the table.")
        label = 0
        try:
            label = self._target.label_of(row.label)
        except CohortError:
            # 0 and 1 share a spelling, since one line to paste explains both.
            spelling = "'0' or '1'" if row.label in ("0", "1") else repr(row.label[:80])
            report(
                "unknown_label", f"{self.column(self.target)} is {spelling}", self._target.expected,
                _label_remedy(row.label, self._target),
            )  # fmt: skip
        files = self._files(row, report)
        mask, problem = one_file(row.mask, "tumour mask")
        if mask is None:
            report(
                "ambiguous_mask" if len(row.mask) > 1 else "missing_mask", problem, "one NIfTI file with the tumour",
                f"Name or leave in place exactly one; if {self.column('mask')!r} holds none: cohort.columns.mask=null"
                if row.mask
                else "None needed: the study is used, but its explanations cannot be scored.",
                error=bool(row.mask),
            )  # fmt: skip
        age, sex = _age(row.age), _SEXES.get(row.sex.casefold())
        follow_up = _TRUTHS.get(row.follow_up.casefold())
        unknown = "Correct the table; until then the {} counts as unknown."
        for key, text, value, expected, remedy in (
            ("age", row.age, age, "years between 0 and 120", unknown.format("age")),
            ("sex", row.sex, sex, "F, M, female or male", unknown.format("sex")),
            ("follow_up", row.follow_up, follow_up, "true, false or nothing", _OTHER_FOLLOW_UP),
        ):
            if value is None and not unstated(text):
                report(f"unknown_{key}", f"{key} is {text[:80]!r}", expected, remedy, error=key == "follow_up")
        faults += found
        if any(fault.severity == "error" for fault in found):
            return None
        return Study(
            study_id=row.study_id, patient_id=row.patient_id, label=label, files=files, mask=mask, age_years=age,
            sex=sex, follow_up=bool(follow_up), carried=dict(row.carried),
        )  # fmt: skip

    def _files(self, row: CohortRow, report: Callable[..., None]) -> dict[str, Path]:
        """Sequence -> its only file, after reporting the sequences that have none or several."""
        files: dict[str, Path] = {}
        for sequence in (name for name in SEQUENCES if name in (self.sequences or row.files)):
            candidates = row.files.get(sequence, ())
            file, problem = one_file(candidates, sequence)
            if file is not None:
                files[sequence] = file
                continue
            ambiguous = len(candidates) > 1
            if not candidates and row.folder is not None:
                problem += f": {images_in(row.folder)}"
            report(
                "ambiguous_sequence" if ambiguous else "missing_sequence", problem,
                f"exactly one NIfTI file for {sequence}",
                "Leave one of them in place." if ambiguous
                else f"{self.restore}, leave the study out, or let studies lack a sequence: data.missing=zero",
                error=ambiguous or self.missing == "error",
            )  # fmt: skip
        if not files and self.missing == "zero":
            report("no_sequence", "no sequence at all", "at least one", "Restore the files or exclude the study.")
        return files


def refuse_single_name(exclude: Sequence[str]) -> None:
    """Raise a ConfigError if cohort.exclude is one name instead of a list."""
    if isinstance(exclude, str):
        raise ConfigError(
            f"cohort.exclude: {exclude!r}; expected a list. Write {to_paste('cohort.exclude', [exclude])}"
        )


def spellings_of(names: Iterable[str]) -> dict[str, str]:
    """Every spelling of the names in cohort.exclude -> the name as it stands there."""
    parsed = {text: parse_ucsf_pdgm(text) for text in names}
    return {form: text for text, ucsf in parsed.items() for form in (text, *([ucsf.study_id] if ucsf else []))}


def unused_exclusion(text: str, known: Iterable[str], cohort: str) -> Fault:
    """Fault of an entry of cohort.exclude that names no study and no patient of a cohort."""
    names = [name for name in known if name]
    near = sorted(name for name in names if name.endswith(f"-{text}"))  # one that several sources of a cohort have
    near = near[:3] or difflib.get_close_matches(text, names, n=3, cutoff=0.7)
    return Fault(
        where="cohort.exclude", check="unused_exclusion", found=f"no study or patient {text[:80]!r}",
        expected=f"identifiers of the cohort {cohort}",
        remedy=f"Did you mean {' or '.join(map(repr, near))}?" if near else "Correct or remove the entry.",
    )  # fmt: skip


def duplicate_rows(study_id: str, patient_id: str, where: str, rows: Sequence[pd.Series[str]]) -> Fault:
    """Return the fault of a study that stands in a table more than once; a warning where its rows say the same."""
    same = all(row.equals(rows[0]) for row in rows)
    differ = [str(name) for name in rows[0].index if len({row[name] for row in rows}) > 1]
    numbers = ", ".join(str(row.name) for row in rows)
    return Fault(
        where=where, check="duplicate_study",
        found=f"{len(rows)} rows for one study (rows {numbers})"
        + (", which say the same" if same else f", which differ in {', '.join(differ[:5])}"),
        expected="one row per study",
        remedy="None needed: it is used once." if same
        else "Delete all but one, or name the column that tells them apart in cohort.columns.study_id.",
        study_id=study_id, patient_id=patient_id, severity="warning" if same else "error",
    )  # fmt: skip


def _label_remedy(text: str, target: Target) -> str:
    """Remedy for an unknown spelling of the label, with a line to paste where one can help."""
    if normalise(text) in target.undecided:
        return "Correct the table, or leave such studies out: cohort.on_error=exclude"
    if text in ("0", "1"):
        both = target.classes, target.classes[::-1]
        lines = [to_paste("cohort.vocabulary", dict(zip(("0", "1"), classes, strict=True))) for classes in both]
    else:
        lines = [to_paste("cohort.vocabulary", {text: label}) for label in target.classes]
    return f"Correct the table, or add what it means: {' or '.join(lines)}"


def _age(text: str) -> float | None:
    """Return years, or None; ">89" and "90+", which de-identification leaves of great ages, count as their bound."""
    match = re.fullmatch(r"[>≥]?=?\s*(\d{1,3}(?:[.,]\d+)?)\+?", text, re.ASCII)
    years = float(match[1].replace(",", ".")) if match else -1.0
    return years if 0 <= years <= 120 else None


def _listed(study_id: str, patient_id: str) -> Exclusion:
    return Exclusion(study_id=study_id, patient_id=patient_id, reason="listed in cohort.exclude")
