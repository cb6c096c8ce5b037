"""Aliases of patients: which identifiers in several collections are of one person."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idh_lightning.cohort.files import from_home
from idh_lightning.cohort.identity import canonical_patient
from idh_lightning.cohort.labels import unstated
from idh_lightning.cohort.spreadsheet import read_spreadsheet
from idh_lightning.cohort.study import Exclusion, Fault, Study
from idh_lightning.errors import CohortError

_OF_NAMES = re.compile(
    r"brats[ _-]?(gli|(20)?\d\d)|(.*[ _])?(id|patient|subject|participant|person|alias)[ _]?\d*", re.IGNORECASE
)
"""Columns of names: those of the BraTS challenges and of identifiers."""

_MOST_NAMES = 10
"""Names in one collection that a person may have; a site or a word for "none" has more."""

_FEW_NAMES = 4
"""More of them are told: sessions with names of their own, or people that a word joins."""

_GROUP = "duplicate_group_id"
"""Column by which a manifest of gliostitch tells the sessions of one person."""


@dataclass(frozen=True, kw_only=True)
class Aliases:
    """Names of persons who have several.

    Attributes:
        rows: Names of one person each; persons of two rows that share a name are one.
        notes: Where they are from and which columns were read, for people.
        many: Names that join more than a few others, and which.
    """

    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    many: Sequence[str] = ()

    def persons(self, records: Iterable[Study | Exclusion | Fault]) -> dict[str, tuple[str, ...]]:
        """Patient of some records -> all names of the person, those of patients here first."""
        from scipy.cluster.hierarchy import DisjointSet  # here, since few have such a table

        known = {name for row in self.rows for name in row}
        own = [
            (r.patient_id, *getattr(r, "aliases", ()), *{canonical_patient(r.study_id or "")} & known)
            for r in records
            if r.patient_id
        ]
        patients = {patient for patient, *_ in own}
        rows = [*self.rows, *own]
        order = list(dict.fromkeys(name for row in rows for name in row))
        persons = DisjointSet(order)
        for first, *others in rows:
            for other in others:
                persons.merge(first, other)
        rank = {name: (name not in patients, place) for place, name in enumerate(order)}
        return {patient: tuple(sorted(persons.subset(patient), key=rank.__getitem__)) for patient in patients}

    def faults(self, persons: Mapping[str, Sequence[str]]) -> list[Fault]:
        """Warning for each name that joins many, and where none of some persons has another name, though some do."""
        many = [
            Fault(
                where="cohort.aliases", check="many_aliases", severity="warning", found=found,
                expected=f"at most {_FEW_NAMES} names of a person in one collection",
                remedy="None needed if they are one person; else empty the cells that hold this name.",
            )
            for found in self.many
        ]  # fmt: skip
        if not self.notes or any(len(names) > 1 for names in persons.values()):
            return many
        return [
            *many,
            Fault(
                where="cohort.aliases", check="unused_aliases", severity="warning",
                found=f"{self.notes[0]} None of the {len(persons)} patients is among them",
                expected="names that occur in the cohort", remedy="None needed if nobody has another name there.",
            )
        ]  # fmt: skip


def read_aliases(file: str | Path | None) -> Aliases:
    """Aliases in a table: each row a person named in several columns, or a manifest of gliostitch; none without a file.

    A CohortError is raised if it cannot be read, has no columns of names, or a bare number may be of several persons.
    """
    if file is None:
        return Aliases()
    path = from_home(file)
    try:
        table = read_spreadsheet(path)
    except CohortError as error:
        raise CohortError(str(error).replace("cohort.table", "cohort.aliases")) from error
    if _GROUP in table and "patient_id" in table:
        groups = table[~table[_GROUP].map(unstated)].groupby(_GROUP, sort=False)["patient_id"]
        rows = [list(dict.fromkeys(map(canonical_patient, names))) for _, names in groups]
        return Aliases(rows=rows, notes=[f"{path.name}: {len(rows)} persons under several names, by gliostitch."])
    columns = [name for name in map(str, table.columns) if _OF_NAMES.fullmatch(name)]
    if len(columns) < 2:
        raise CohortError(
            f"{path}: columns of names: {', '.join(columns) or 'none'} among {', '.join(map(repr, table.columns))}; "
            "expected two or more, such as brats2021 and patient_id, or a manifest of gliostitch. Rename the columns "
            "of names to end in _id."
        )
    places: dict[str, str] = {}
    beside: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    rows = []
    for line, cells in table[columns].iterrows():
        row = {canonical_patient(cell): name for name, cell in cells.items() if not unstated(cell)}
        rows += [list(row)] if len(row) > 1 else []
        for name, column in row.items():
            if name.isdecimal() and places.setdefault(name, str(column)) != column:
                raise CohortError(
                    f"{path}, row {line}: {name} stands in {column!r}, elsewhere in {places[name]!r}; expected names "
                    "that no other person has in another collection. Write the collection before such numbers."
                )
            for other, place in row.items():
                beside[name, str(place)].add(other)
            if many := [place for place in columns if len(beside[name, place]) > _MOST_NAMES]:
                raise CohortError(
                    f"{path}: {name!r} in {column!r} goes with {len(beside[name, many[0]])} or more in {many[0]!r}; "
                    "expected the names of one person in a row. Empty the cells that hold no name, and leave a column "
                    "of sites, sessions or the like out of the table."
                )
    many = [
        f"{name!r} joins {len(others)} names in {place!r}: {', '.join(sorted(others))}"
        for (name, place), others in beside.items()
        if len(others) > _FEW_NAMES
    ]
    notes = [f"{path.name}: {len(rows)} persons under several names, in {', '.join(columns)}."]
    return Aliases(rows=rows, notes=notes, many=many)
