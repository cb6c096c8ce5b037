"""Tables of any kind as text: every cell a stripped string, "" where there is nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from idh_lightning.cohort.files import from_home
from idh_lightning.errors import CohortError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: str | Path) -> pd.DataFrame:
    """Return a CSV, TSV or Parquet table as text.

    Returns:
        Columns by their names in the file; the index is the row number as a spreadsheet shows it (header = 1). Rows
        without any entry are left out.

    Raises:
        CohortError: If the file is missing, is not a table, or names a column twice.
    """
    path = from_home(path)
    kind = path.suffix.lower()
    if kind not in (*_SEPARATORS, ".parquet"):
        raise CohortError(f"{path}: a table of kind {kind!r}; expected .csv, .tsv or .parquet. Save it as CSV.")
    try:
        if not path.is_file():
            raise CohortError(f"{path}: no such file; expected the table of the cohort. Correct cohort.table.")
        if kind == ".parquet":
            frame = pd.read_parquet(path)
            frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
            header, body = [str(name).strip() for name in frame.columns], frame.map(_text)
        else:
            # Without header=None pandas renames the second of two equal columns instead of complaining.
            cells = pd.read_csv(
                path, sep=_SEPARATORS[kind], header=None, dtype=str, na_filter=False, encoding="utf-8-sig",
                skip_blank_lines=False, low_memory=False,
            ).map(_text)  # fmt: skip
            header, body = list(cells.iloc[0]), cells.iloc[1:]
    except CohortError:
        raise
    except Exception as error:  # the parsers raise errors of many unrelated classes on damaged bytes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CohortError(
            f"{path}: cannot be read as a table ({reason}); expected UTF-8 text with one header line, or Parquet. "
            "Save the table again as CSV (UTF-8)."
        ) from error
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise CohortError(
            f"{path}: column {', '.join(map(repr, twice))} occurs more than once; expected each name once. "
            "Rename or delete one of them."
        )
    table = pd.DataFrame(body.to_numpy(dtype=object), columns=header, index=range(2, len(body) + 2), dtype=object)
    table = table.loc[:, [bool(name) for name in header]]
    return table[(table != "").any(axis="columns")] if len(table.columns) else table


def require_columns(table: pd.DataFrame, path: str | Path, columns: dict[str, str]) -> None:
    """Check that a table has the columns that a cohort cannot do without.

    Args:
        table: As `read_table` returns it.
        path: Where it came from, for the message.
        columns: Role -> column name.

    Raises:
        CohortError: If one is absent; names the role, the columns that are there, and the setting to change.
    """
    absent = {role: name for role, name in columns.items() if name not in table.columns}
    if absent:
        wanted = ", ".join(f"{name!r} ({role})" for role, name in absent.items())
        there = ", ".join(repr(name[:40]) for name in table.columns[:40]) or "none"
        raise CohortError(
            f"{path}: no column {wanted}; found {there}. Name the right column in "
            f"{', '.join(f'cohort.columns.{role}' for role in absent)}, or correct the table (CSV means commas)."
        )


def _text(value: object) -> str:
    missing = value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value)
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps is stored as floats
        return str(int(value))
    return "" if missing else str(value).strip()
