"""Tables of any kind as text, and which of their columns plays which role: exact names first, then usual ones."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from idh_lightning.cohort.files import NIFTI, from_home
from idh_lightning.cohort.study import SEQUENCES, Fault
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError

TABLES: tuple[str, ...] = (".csv", ".tsv", ".xlsx", ".parquet")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)

_USUAL: Mapping[str, str] = {
    "study_id": "id study study_name scan scan_id session session_id exam exam_id case case_id image_id",
    "patient_id": "patient patient_name pat_id pid subject subject_id participant participant_id person person_id",
    "idh": "idh_status idh_mutation idh_mutation_status idh_mutated idh_mut idh_label idh_genotype idh1/2 "
    "idh1/2_status idh1/idh2",
    "codeletion_1p19q": "1p/19q 1p19q codeletion 1p/19q_codeletion 1p/19q_co_deletion 1p/19q_codeleted 1p/19q_status",
    "mgmt": "mgmt_status mgmt_methylation mgmt_promoter mgmt_promoter_methylation mgmt_promoter_status mgmt_methylated "
    "mgmt_value",
    "grade4": "grade who_grade who_cns_grade cns_who_grade tumor_grade tumour_grade",
    "age_years": "age age_y age_yrs age_at_mri age_at_scan age_at_scan_years age_at_imaging age_at_diagnosis "
    "patient_age",
    "sex": "gender patient_sex biological_sex",
    "follow_up": "followup is_follow_up",
    "FLAIR": "flair t2_flair t2f flair_t2 t2w_flair",
    "T1": "t1 t1w t1n t1_pre t1_native t1_nativ t1_pre_contrast t1_without_contrast pre_t1",
    "T1c": "t1c t1ce t1gd t1gad t1km t1+ t1+c t1+gd t1+k t1_post t1_post_contrast t1_contrast t1_with_contrast t1w_ce "
    "t1w_c t1w_gd t1w_post t1w+c ce_t1 ce_t1w gd_t1 post_t1 contrast_t1",
    "T2": "t2 t2w",
    "mask": "mask seg segm segmentation tumor_segmentation tumour_segmentation tumor_mask tumour_mask tumor_seg "
    "tumour_seg tumor tumour lesion_mask roi",
}
"""Role -> names by which it goes elsewhere; case, spaces and other marks do not matter."""

_OF_FILES = (*SEQUENCES, "mask")


def read_spreadsheet(path: str | Path) -> pd.DataFrame:
    """Return a CSV, TSV, Excel or Parquet table as text: every cell a stripped string, "" where there is nothing.

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
            numbered = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
            frame = frame if numbered else frame.reset_index()
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
    """Return the cells of a sheet of an Excel file, and its name; 0012 shown by a number format stays 0012.

    It is the first that has a column with a usual name of a study or a patient, else the first.
    """
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    sheet = next((one for one in book.worksheets if any(map(_names_somebody, _header(one)))), book.worksheets[0])
    rows = [[_excel_text(cell) for cell in row] for row in sheet.iter_rows()]
    others = [name for name in book.sheetnames if name != sheet.title]
    unread = f"; other sheets are not read: {', '.join(others)}" if others else ""
    return pd.DataFrame(rows, dtype=object).fillna(""), f"Excel sheet {sheet.title!r}{unread}"


def _header(sheet: Any) -> list[str]:
    return [_text(value) for row in sheet.iter_rows(max_row=1, values_only=True) for value in row]


def _names_somebody(column: str) -> bool:
    return any(_plain(column) == _plain(role) or _usual(column, role) for role in ("study_id", "patient_id"))


def _excel_text(cell: Any) -> str:
    zeros = re.fullmatch(r"0+", str(getattr(cell, "number_format", "")))
    return str(cell.value).zfill(len(zeros[0])) if zeros and isinstance(cell.value, int) else _text(cell.value)


def _text(value: object) -> str:
    missing = value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value)
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps is stored as floats
        return str(int(value))
    return "" if missing else str(value).strip()


def match_columns(
    header: Iterable[str], wanted: Mapping[str, str], path: Path, *, settings: bool = True
) -> dict[str, str]:
    """Return role -> column for the roles that have one.

    A column of the wanted name comes first, then one that differs from it in case and marks only, then one with a name
    that is usual. A table that names the patient only names the study by it.

    Args:
        header: Names of the columns.
        wanted: Role -> name of its column; "" where it has none.
        path: Of the table, for the CohortError that is raised if several columns could play one role.
        settings: Whether `cohort.columns` can name one of them; else one is to be renamed.
    """
    header = list(header)
    found = {role: name for role, name in wanted.items() if name and name in header}
    free = [name for name in header if name not in found.values()]
    for role, name in wanted.items():
        if not name or role in found:
            continue
        fits = [one for one in free if _plain(one) == _plain(name)] or [one for one in free if _usual(one, role)]
        if len(fits) > 1:
            lines = " or ".join(to_paste(f"cohort.columns.{role}", one) for one in fits)
            raise CohortError(
                f"{path}: columns {', '.join(map(repr, fits))} could all be {role}; expected one. "
                + (f"Name it: {lines}" if settings else f"Rename it to {name}.")
            )
        if fits:
            found[role] = fits[0]
    if "study_id" in wanted and "study_id" not in found and "patient_id" in found:
        found["study_id"] = found["patient_id"]
    return found


def require_columns(
    header: Iterable[str], found: Mapping[str, str], wanted: Mapping[str, str], path: Path, *, read_as: str = ""
) -> None:
    """Raise a CohortError with the columns that are there and a line to paste if one that must be there is not.

    Args:
        header: Names of the columns.
        found: As `match_columns` returns it.
        wanted: Role -> column name, of those that must be there.
        path: Where the table came from, for the message.
        read_as: How it was read.
    """
    absent = {role: name for role, name in wanted.items() if role not in found}
    if not absent:
        return
    names = list(header)
    near = {role: _nearest(role, name, names, found.values()) for role, name in absent.items()}
    lines = [to_paste(f"cohort.columns.{role}", one) for role, ones in near.items() for one in ones]
    raise CohortError(
        f"{path}: no column {', '.join(f'{name!r} ({role})' for role, name in absent.items())}; found "
        f"{', '.join(repr(name[:40]) for name in names[:40]) or 'none'}. "
        + (f"This is {read_as}: put the sheet of the table first. " if "other sheets" in read_as else "")
        + (f"If this is it, add {' or '.join(lines)}. Else name" if lines else "Name")
        + f" the right column in {', '.join(f'cohort.columns.{role}' for role in absent)}, or correct the table."
    )


def unused_images(table: pd.DataFrame, found: Mapping[str, str], path: Path) -> Iterator[Fault]:
    """Yield a warning for each column of image files that plays no role, while a sequence or the mask has no column."""
    lacking = [role for role in _OF_FILES if role not in found]
    for name in map(str, table.columns):
        if lacking and name not in found.values() and table[name].str.lower().str.endswith(NIFTI).any():
            yield Fault(
                where=path.name, check="unused_images", severity="warning",
                found=f"column {name!r} holds images and is not used",
                expected=f"a column for {', '.join(lacking)}, or none",
                remedy="If it is one of these, name it: "
                + " or ".join(to_paste(f"cohort.columns.{role}", name) for role in lacking),
            )  # fmt: skip


def describe_columns(header: Iterable[str], found: Mapping[str, str], wanted: Iterable[str]) -> str:
    """Return in words which column is used for what, which are not used, and which of the wanted roles have none."""
    used = ", ".join(role if role == name else f"{role} from {name!r}" for role, name in found.items())
    rest = [name for name in header if name not in found.values()]
    carried = ", ".join(map(repr, rest[:20])) + (f" and {len(rest) - 20} more" if len(rest) > 20 else "")
    lacking = ", ".join(role for role in wanted if role in _OF_FILES and role not in found)
    used += f"; no column for {lacking}" if lacking else ""
    return f"used {used}; carried along, never given to the network: {carried or 'none'}"


def _plain(name: str) -> str:
    """Return a name without case, spaces and other marks but + after T1, which says contrast; T2* is no T2."""
    return re.sub(r"[^\w+]+|_", "", name.casefold().replace("t2*", "t2star"))


def _usual(name: str, role: str) -> bool:
    plain = {_plain(name)}
    if role in _OF_FILES:
        plain |= {re.sub(r"^(path|file)|(path|file|filename|image|img|nifti|nii)$", "", one) for one in plain}
    return bool(plain & {_plain(one) for one in _USUAL.get(role, "").split()})


def _nearest(role: str, name: str, header: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Return up to three columns whose names contain, or are like, that of a role."""
    free = {_plain(one): one for one in header if one not in set(taken)}
    words = {_plain(name), _plain(role.split("_")[0])}
    like = difflib.get_close_matches(_plain(name), list(free), n=3, cutoff=0.75)
    return [one for plain, one in free.items() if plain in like or any(word in plain for word in words)][:3]
