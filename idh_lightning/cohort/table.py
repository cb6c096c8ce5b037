"""Any cohort that a table describes: one row per study, one column per sequence with the path of its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from idh_lightning.cohort.columns import require_columns, unused_images
from idh_lightning.cohort.files import files_named, from_home
from idh_lightning.cohort.identity import canonical_patient
from idh_lightning.cohort.reader import CohortRow, Reader, duplicate_rows, without_id, without_patients
from idh_lightning.cohort.study import SEQUENCES, Fault


@dataclass(kw_only=True)
class Table(Reader):
    """Studies whose files a CSV, TSV, Excel or Parquet table names; the sequences are those whose column exists.

    Attributes:
        table: One row per study. Paths are relative to its folder and may contain `*`, `?` or `[...]` if one file fits.
    """

    name: str = "table"
    table: str | Path
    default_columns: ClassVar[Mapping[str, str]] = {
        **{role: role for role in ("study_id", "patient_id", "idh", "age_years", "sex", "follow_up", *SEQUENCES)},
        "mask": "tumor_segmentation",
    }

    def found(self) -> Iterator[CohortRow | Fault]:
        """Yield one entry per row; see `Reader.found`."""
        path = from_home(self.table)
        table = self.rows_of(path)
        name, person = self.column("study_id"), self.column("patient_id")
        sequences = [s for s in SEQUENCES if self.column(s) in table] or list(SEQUENCES)
        wanted = [s for s in self.sequences or sequences if self.missing == "error" or s in sequences]
        must = {s: self.column(s) for s in wanted or sequences}
        require_columns(table.columns, self._matched, must, path)
        yield from unused_images(table, self._matched, path)
        if person not in table:
            yield without_patients(path.name, person)
        for text, rows in table.groupby(name, sort=True):
            study_id, row, where = str(text), rows.iloc[0], f"{path.name}, study {str(text)[:80]}"
            patient_id = canonical_patient(row.get(person, study_id))
            if not study_id:
                yield from (without_id(path.name, f"row {number}") for number in rows.index)
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
