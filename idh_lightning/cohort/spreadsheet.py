"""Tables of any kind as text: every cell a stripped string, "" where there is nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd

from idh_lightning.cohort.files import from_home
from idh_lightning.errors import CohortError

TABLES: tuple[str, ...] = (".csv", ".tsv", ".xlsx", ".parquet")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def read_spreadsheet(path: str | Path) -> pd.DataFrame:
    """Return a CSV, TSV, Excel or Parquet table as text.

    The header tells whether commas, semicolons, tabs or bars separate the columns. Where it is not commas, a column of
    numbers with decimal commas gets decimal points.

    Returns:
        Columns by their names in the file; the index is the row number as a spreadsheet shows it (header = 1). Rows
        without any entry are left out. `attrs["read_as"]` says in words how it was read.

    Raises:
        CohortError: If the file is missing, is not a table, or names a column twice.
    """
    path = from_home(path)
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise CohortError(
            f"{path}: a table of kind {kind!r}; expected {', '.join(TABLES[:-1])} or {TABLES[-1]}. Save it as CSV "
            "(UTF-8)."
        )
    try:
        if not path.is_file():
            raise CohortError(f"{path}: no such file; expected the table of the cohort. Correct cohort.table.")
        if kind == ".parquet":
            frame = pd.read_parquet(path)
            frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
            header, body = [str(name).strip() for name in frame.columns], frame.map(_text)
            read_as = "Parquet"
        else:
            cells, read_as = _sheet(path) if kind == ".xlsx" else _separated(path)
            header, body = list(cells.iloc[0]), cells.iloc[1:]
    except CohortError:
        raise
    except Exception as error:  # the parsers raise errors of many unrelated classes on damaged bytes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CohortError(
            f"{path}: cannot be read as a table ({reason}); expected UTF-8 text with one header line and as many cells "
            "in each row, in quotes where they hold the separator. Save the table again as CSV (UTF-8)."
        ) from error
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise CohortError(
            f"{path}: column {', '.join(map(repr, twice))} occurs more than once; expected each name once. "
            "Rename or delete one of them."
        )
    table = pd.DataFrame(body.to_numpy(dtype=object), columns=header, index=range(2, len(body) + 2), dtype=object)
    table = table.loc[:, [bool(name) for name in header]]
    table = table[(table != "").any(axis="columns")] if len(table.columns) else table
    table.attrs["read_as"] = read_as
    return table


def _separated(path: Path) -> tuple[pd.DataFrame, str]:
    """Return the cells of a text table, its header among them, and in words how they were told apart."""
    text = path.read_text(encoding="utf-8-sig")
    if stated := re.match(r"sep=(.)\r?\n", text):  # for Excel, which does not show this line
        text = text[stated.end() :]
    line = next((line for line in text.splitlines() if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", line)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    separator = stated[1] if stated else max(_SEPARATORS, key=lambda mark: (unquoted.count(mark), mark == usual))
    # Without header=None pandas renames the second of two equal columns instead of complaining.
    cells = pd.read_csv(
        io.StringIO(text), sep=separator, header=None, dtype=str, na_filter=False, skip_blank_lines=False,
        low_memory=False,
    ).map(_text)  # fmt: skip
    read_as = f"separated by {_SEPARATORS.get(separator, repr(separator))}"
    if separator == "," or cells.empty:
        return cells, read_as
    for name in cells.columns:
        filled = [cell for cell in cells[name].iloc[1:] if cell]
        if any(map(_DECIMAL_COMMA.fullmatch, filled)) and all(re.fullmatch(r"[+-]?\d+([.,]\d+)?", c) for c in filled):
            cells.loc[cells.index[1:], name] = cells[name].iloc[1:].str.replace(",", ".", regex=False)
            read_as += f", decimal commas in {cells[name].iloc[0]!r}"
    return cells, read_as


def _sheet(path: Path) -> tuple[pd.DataFrame, str]:
    """Return the cells of the first sheet of an Excel file, and its name; 0012 shown by a number format stays 0012."""
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    sheet = book.worksheets[0]
    rows = [[_excel_text(cell) for cell in row] for row in sheet.iter_rows()]
    others = f"; other sheets are not read: {', '.join(book.sheetnames[1:])}" if len(book.sheetnames) > 1 else ""
    return pd.DataFrame(rows, dtype=object).fillna(""), f"Excel sheet {sheet.title!r}{others}"


def _excel_text(cell: Any) -> str:
    zeros = re.fullmatch(r"0+", str(getattr(cell, "number_format", "")))
    return str(cell.value).zfill(len(zeros[0])) if zeros and isinstance(cell.value, int) else _text(cell.value)


def _text(value: object) -> str:
    missing = value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value)
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps is stored as floats
        return str(int(value))
    return "" if missing else str(value).strip()
