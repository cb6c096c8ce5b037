"""No input of any kind ends in anything but a valid cohort or a CohortError."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from idh_lightning.cohort import (
    BIDS,
    EGD,
    SEQUENCES,
    UCSFPDGM,
    UPENNGBM,
    BraTS,
    Cohort,
    Reader,
    Table,
    cohort_flow,
    exclusions_table,
    faults_table,
    raise_or_exclude,
)
from idh_lightning.cohort.folders import FolderReader
from idh_lightning.cohort.identity import names_a_file
from idh_lightning.errors import CohortError
from idh_lightning.reports.cohort_page import write_cohort_report

LAYOUTS: dict[str, tuple[type[FolderReader], list[str], list[tuple[str, str]], list[str]]] = {
    "ucsf_pdgm": (
        UCSFPDGM,
        ["UCSF-PDGM-001", "UCSF-PDGM-0001", "UCSF-PDGM-0001_FU003d"],
        [("UCSF-PDGM-0001_nifti", "UCSF-PDGM-0001"), ("UCSF-PDGM-0001_FU003d_nifti", "UCSF-PDGM-0001_FU003d")],
        ["_FLAIR", "_T1", "_T1c", "_T2", "_tumor_segmentation"],
    ),
    "brats": (
        BraTS,
        ["BraTS2021_00001", "BraTS-GLI-00001-000", "Brats18_X_1_1"],
        [("BraTS2021_00001", "BraTS2021_00001"), ("BraTS-GLI-00001-001", "BraTS-GLI-00001-001")],
        ["_flair", "_t1", "_t1ce", "_t2", "_seg"],
    ),
    "upenn_gbm": (
        UPENNGBM,
        ["UPENN-GBM-00001_11", "UPENN-GBM-00001_21"],
        [("UPENN-GBM-00001_11", "UPENN-GBM-00001_11"), ("UPENN-GBM-00001_21", "UPENN-GBM-00001_21")],
        ["_FLAIR", "_T1", "_T1GD", "_T2"],
    ),
    "egd": (
        EGD,
        ["EGD-0001", "EGD-0002"],
        [("EGD-0001", ""), ("EGD-0002", "")],
        ["FLAIR", "T1", "T1GD", "T2", "MASK"],
    ),
    "bids": (
        BIDS,
        ["sub-01", "01", "02"],
        [("sub-01/anat", "sub-01"), ("sub-02/ses-1/anat", "sub-02_ses-1"), ("sub-02/ses-2", "sub-02")],
        ["_FLAIR", "_T1w", "_ce-gd_T1w", "_T2w", "_dseg"],
    ),
}
"""Layout -> reader, table entries, folders with the stem of their files, ends of the files."""
PATHS = st.sampled_from(["a.nii", "b.nii.gz"]) | st.sampled_from(
    [
        "a.nii",
        "b.nii.gz",
        "*.nii",
        "**",
        "[",
        "?",
        "..",
        "../*",
        "/",
        "/*",
        ".",
        "~",
        "a\0b",
        "con",
        "a" * 300,
        "",
        "sub/[a-",
    ]
)
IDS = st.sampled_from(
    ["UCSF-PDGM-001", "UCSF-PDGM-0001", "UCSF-PDGM-0001_FU003d", "BraTS2021_00001", "BraTS-GLI-00001-001", "EGD-0001",
     "UPENN-GBM-00001_11", "sub-01", "01", "../x", "", "a", "\ud7ff"]
)  # fmt: skip
LABELS = st.sampled_from(["wildtype", "mutant"]) | st.sampled_from(["0", "1", "-1", "unknown", "", "IDH1 p.R132H"])
CELLS = st.one_of(
    PATHS, IDS, LABELS, st.text(max_size=12), st.sampled_from(["1e400", "-5", "nan", "M", "٣", '"', "\r"])
)
COLUMNS = sorted({"study_id", "patient_id", "idh", "tumor_segmentation", "ID", "IDH", "IDH1", "Subject", "age",
                  "participant_id", "Age at MRI", "Sex", "split", "label", "", *SEQUENCES})  # fmt: skip


def valid_or_refused(reader: Callable[[], Reader], folder: Path) -> None:
    """Check that a reader ends in a valid cohort or a CohortError, and that all that follows takes what it gives."""
    try:
        cohort = reader().read()
    except CohortError:
        return
    check_valid(cohort)
    list(faults_table(cohort).rows)
    write_cohort_report(cohort, folder / "report.html")
    for on_error in ("raise", "exclude"):
        try:
            settled = raise_or_exclude(cohort, on_error=on_error)  # type: ignore[arg-type]
        except CohortError:
            continue
        check_valid(settled)
        flow = cohort_flow(settled).groupby("step")[["patients", "studies"]].sum()
        assert (flow.loc["read"] == flow.drop("read").sum()).all()
        assert len(exclusions_table(settled)) == len(settled.exclusions)


def check_valid(cohort: Cohort) -> None:
    ids = [study.study_id for study in cohort.studies]
    assert ids == sorted(set(ids))
    faulty = {fault.study_id for fault in cohort.faults if fault.severity == "error"}
    firsts = [study.patient_id for study in cohort.studies if not study.follow_up]
    assert len(firsts) == len(set(firsts))
    for study in cohort.studies:
        assert study.study_id not in faulty
        assert names_a_file(study.study_id)
        assert study.patient_id
        assert study.label in (0, 1)
        assert tuple(study.files) == cohort.sequences
        assert all(path.is_file() for path in study.files.values())
        assert study.sex in ("F", "M", None)
        assert study.age_years is None or 0 <= study.age_years <= 120


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), kind=st.sampled_from(["csv", "tsv", "parquet", "txt"]))
def test_random_bytes_are_refused_or_read(content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"t.{kind}"
        path.write_bytes(content)
        valid_or_refused(lambda: Table(table=path), Path(name))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, max_size=4), max_size=8),
    header=st.lists(st.sampled_from(COLUMNS), max_size=8, unique=True)
    | st.permutations(["study_id", "idh", "FLAIR", "T1"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_ragged_tables_in_any_encoding_are_refused_or_read(
    rows: list[list[str]], header: list[str], encoding: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "t.csv"
        text = "\n".join(",".join(row) for row in [header, *rows])
        path.write_bytes(text.encode(encoding, errors="replace"))
        valid_or_refused(lambda: Table(table=path), Path(name))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["csv", "parquet"]))
def test_a_well_formed_table_of_odd_entries_is_refused_or_read(data: st.DataObject, kind: str) -> None:
    sequences = data.draw(st.lists(st.sampled_from(SEQUENCES), unique=True, min_size=1))
    columns = {"study_id": IDS | st.from_regex(r"[a-c]", fullmatch=True), "patient_id": IDS, "idh": LABELS}
    columns |= {"age_years": CELLS, "sex": CELLS, "tumor_segmentation": PATHS, **dict.fromkeys(sequences, PATHS)}
    rows = data.draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as name:
        for file in ("a.nii", "b.nii.gz"):
            (Path(name) / file).touch()
        path, frame = Path(name) / f"t.{kind}", pd.DataFrame(rows)
        if kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        valid_or_refused(lambda: Table(table=path), Path(name))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.booleans(), st.dates()), min_size=1, max_size=4
    )
)
def test_parquet_of_any_type_is_refused_or_read(values: list[object]) -> None:
    with tempfile.TemporaryDirectory() as name:
        frame = pd.DataFrame({column: pd.Series(values) for column in ("study_id", "idh", "FLAIR", "age_years")})
        path = Path(name) / "t.parquet"
        try:
            frame.to_parquet(path)
        except Exception:  # not a table that Parquet can hold
            return
        valid_or_refused(lambda: Table(table=path), Path(name))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(LAYOUTS)))
def test_any_mixture_of_folders_and_rows_is_refused_or_read(data: st.DataObject, kind: str) -> None:
    reader, own_rows, own_places, ends = LAYOUTS[kind]
    rows = data.draw(st.lists(st.tuples(st.sampled_from(own_rows), LABELS), max_size=3, unique_by=lambda row: row[0]))
    rows += data.draw(st.just([]) | st.lists(st.tuples(IDS, LABELS), max_size=1))
    places = data.draw(
        st.lists(st.tuples(st.sampled_from(["", "", "more/"]), st.sampled_from(own_places)), max_size=4, unique=True)
    )
    others = data.draw(st.lists(st.sampled_from(["odd", "UCSF-PDGM-1_nifti", "EGD-0001", "sub-x/anat"]), max_size=1))
    lost = data.draw(st.sampled_from([None, None, None, *ends]))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "images"
        root.mkdir()
        for folder, stem in [*((above + place[0], place[1]) for above, place in places), *((o, o) for o in others)]:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for end in ends:
                if end != lost:
                    (root / folder / f"{stem}{end}.nii.gz").parent.mkdir(parents=True, exist_ok=True)
                    (root / folder / f"{stem}{end}.nii.gz").touch()
        table = Path(name) / "t.csv"
        columns = reader.default_columns
        pd.DataFrame(rows, columns=[columns["study_id"], columns["idh"]]).to_csv(table, index=False)
        valid_or_refused(lambda: reader(folder=root, table=table), Path(name))


@settings(max_examples=40, deadline=None)
@example(text="~0")
@given(text=st.text(max_size=30) | PATHS)
def test_any_text_in_place_of_a_path_is_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "t.csv"
        table.write_text("ID,IDH\nUCSF-PDGM-001,wildtype\n")
        valid_or_refused(lambda: Table(table=text), Path(name))
        valid_or_refused(lambda: UCSFPDGM(folder=f"{name}/{text}x", table=table), Path(name))
