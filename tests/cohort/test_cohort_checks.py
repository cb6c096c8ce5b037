"""A cohort that is corrupted in one way: the fault is found and named, and nothing else is disturbed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from cohort_files import UCSFCopy, write_ucsf_cohort
from rich.console import Console

from idh_lightning.cohort import (
    Cohort,
    Exclusion,
    Fault,
    HoldOut,
    Study,
    cohort_flow,
    exclusions_table,
    faults_table,
    raise_or_exclude,
)
from idh_lightning.cohort.checks import build_cohort
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.reports.cohort_page import write_cohort_report


@pytest.fixture
def copy(tmp_path: Path) -> UCSFCopy:
    return write_ucsf_cohort(tmp_path)


def checks(cohort: Cohort, severity: str = "error") -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for fault in cohort.faults:
        if fault.severity == severity:
            found.setdefault(fault.check, set()).add(fault.study_id)
    return found


def label_conflict(copy: UCSFCopy) -> None:
    copy.table.loc[copy.table["ID"] == "UCSF-PDGM-0005_FU003d", "IDH"] = "IDH1 p.R132H"


def shared_file(copy: UCSFCopy) -> None:
    copy.file("UCSF-PDGM-0002", "T1").unlink()
    copy.file("UCSF-PDGM-0002", "T1").symlink_to(copy.file("UCSF-PDGM-0003", "T1"))


def duplicate_row(copy: UCSFCopy) -> None:
    copy.table = pd.concat([copy.table, copy.table.iloc[[1]].assign(OS="7")])


def duplicate_row_in_another_spelling(copy: UCSFCopy) -> None:
    copy.table = pd.concat([copy.table, copy.table.iloc[[1]].assign(ID="UCSF-PDGM-0002")])


def second_folder(copy: UCSFCopy) -> None:
    (copy.root / "images" / "more" / "UCSF-PDGM-0002_nifti").mkdir(parents=True)


def without_row(copy: UCSFCopy) -> None:
    copy.table = copy.table[copy.table["ID"] != "UCSF-PDGM-002"]


def second_candidate(copy: UCSFCopy) -> None:
    (copy.folder("UCSF-PDGM-0002") / "UCSF-PDGM-0002_T1.nii").touch()


def second_mask(copy: UCSFCopy) -> None:
    (copy.folder("UCSF-PDGM-0002") / "UCSF-PDGM-0002_tumor_segmentation.nii").touch()


CORRUPTIONS: dict[str, tuple[Callable[[UCSFCopy], None], str, set[str], str]] = {
    "pending label": (
        lambda copy: copy.set(2, "IDH", "pending"),
        "unknown_label", {"UCSF-PDGM-0002"}, "study UCSF-PDGM-0002: IDH is 'pending'; expected 'wildtype'",
    ),
    "blank label": (
        lambda copy: copy.set(2, "IDH", ""), "unknown_label", {"UCSF-PDGM-0002"}, "IDH is ''",
    ),
    "labels in conflict": (
        label_conflict, "label_conflict", {"UCSF-PDGM-0005", "UCSF-PDGM-0005_FU003d"}, "one patient with two labels",
    ),
    "row twice": (duplicate_row, "duplicate_study", {"UCSF-PDGM-0002"}, "2 rows for one study"),
    "row twice, spelt differently": (
        duplicate_row_in_another_spelling, "duplicate_study", {"UCSF-PDGM-0002"}, "2 rows for one study",
    ),
    "file of another study": (
        shared_file, "shared_file", {"UCSF-PDGM-0002", "UCSF-PDGM-0003"}, "T1 of UCSF-PDGM-0002, T1 of UCSF-PDGM-0003",
    ),
    "folder without row": (
        without_row, "folder_without_row", {"UCSF-PDGM-0002"}, "no row for UCSF-PDGM-0002 in .*metadata.csv",
    ),
    "row without folder": (
        lambda copy: copy.remove("UCSF-PDGM-0002"), "row_without_folder", {"UCSF-PDGM-0002"},
        "study UCSF-PDGM-0002: no folder for it in .*images",
    ),
    "two folders": (second_folder, "two_folders", {"UCSF-PDGM-0002"}, "2 folders: .*UCSF-PDGM-0002_nifti, .*more"),
    "missing sequence": (
        lambda copy: copy.file("UCSF-PDGM-0002", "T1").unlink(), "missing_sequence", {"UCSF-PDGM-0002"}, "no T1",
    ),
    "two files for one sequence": (
        second_candidate, "ambiguous_sequence", {"UCSF-PDGM-0002"}, "2 files could be T1: .*T1.nii, .*T1.nii.gz",
    ),
    "two masks": (second_mask, "ambiguous_mask", {"UCSF-PDGM-0002"}, "2 files could be tumour mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_and_named_and_nothing_else_is_disturbed(copy: UCSFCopy, name: str) -> None:
    clean = copy.reader().read()
    corrupt, check, studies, message = CORRUPTIONS[name]
    corrupt(copy)
    cohort = copy.reader().read()

    assert checks(cohort) == {check: studies}
    assert all(re.search(message, str(fault)) for fault in cohort.faults if fault.severity == "error")
    assert cohort.studies == tuple(study for study in clean.studies if study.study_id not in studies)
    with pytest.raises(CohortError, match=message):
        raise_or_exclude(cohort, on_error="raise")

    settled = raise_or_exclude(cohort, on_error="exclude")
    assert {exclusion.study_id for exclusion in settled.exclusions} == studies
    assert all(exclusion.reason.startswith(f"{check.replace('_', ' ')}: ") for exclusion in settled.exclusions)
    assert settled.studies == cohort.studies


def test_a_clean_cohort_has_only_the_note_about_its_follow_up(copy: UCSFCopy) -> None:
    cohort = copy.reader().read()
    assert checks(cohort) == {}
    assert checks(cohort, "warning") == {"follow_ups": {None}}
    assert "1 follow-up study of 1 patient: UCSF-PDGM-0005_FU003d" in str(cohort.faults[0])
    assert raise_or_exclude(cohort, on_error="raise") == cohort


def test_an_identifier_that_cannot_be_parsed_names_its_row(copy: UCSFCopy) -> None:
    copy.table.loc[1, "ID"] = "UCSF-PDGM-2b"
    cohort = copy.reader().read()
    assert checks(cohort) == {"unknown_id": {"UCSF-PDGM-2b"}, "folder_without_row": {"UCSF-PDGM-0002"}}
    assert any(str(fault).startswith("metadata.csv, row 3: ID is 'UCSF-PDGM-2b'") for fault in cohort.faults)


def test_a_study_without_a_mask_is_used_with_a_warning(copy: UCSFCopy) -> None:
    copy.file("UCSF-PDGM-0002", "tumor_segmentation").unlink()
    cohort = copy.reader().read()
    assert checks(cohort) == {}
    assert checks(cohort, "warning")["missing_mask"] == {"UCSF-PDGM-0002"}
    assert next(study for study in cohort.studies if study.study_id == "UCSF-PDGM-0002").mask is None


@pytest.mark.parametrize(
    ("column", "text", "check"), [("Sex", "X?", "unknown_sex"), ("Age at MRI", "abc", "unknown_age")]
)
def test_an_odd_age_or_sex_counts_as_unknown_with_a_warning(copy: UCSFCopy, column: str, text: str, check: str) -> None:
    copy.set(2, column, text)
    cohort = copy.reader().read()
    study = next(study for study in cohort.studies if study.study_id == "UCSF-PDGM-0002")
    assert checks(cohort) == {}
    assert checks(cohort, "warning")[check] == {"UCSF-PDGM-0002"}
    assert (study.sex if column == "Sex" else study.age_years) is None


@pytest.mark.parametrize(("text", "years"), [(">89", 89.0), ("90+", 90.0), ("66.5", 66.5), ("", None), ("130", None)])
def test_ages_are_years_or_unknown(copy: UCSFCopy, text: str, years: float | None) -> None:
    copy.set(2, "Age at MRI", text)
    assert copy.reader().read().studies[1].age_years == years


def test_a_study_may_lack_a_sequence_when_zeros_are_asked_for(copy: UCSFCopy) -> None:
    copy.file("UCSF-PDGM-0002", "T1").unlink()
    cohort = copy.reader(missing="zero").read()
    assert checks(cohort) == {}
    assert checks(cohort, "warning")["missing_sequence"] == {"UCSF-PDGM-0002"}
    assert list(cohort.studies[1].files) == ["FLAIR", "T1c", "T2"]


def test_a_study_without_any_sequence_is_an_error_even_then(copy: UCSFCopy) -> None:
    for sequence in ("FLAIR", "T1", "T1c", "T2"):
        copy.file("UCSF-PDGM-0002", sequence).unlink()
    assert checks(copy.reader(missing="zero").read()) == {"no_sequence": {"UCSF-PDGM-0002"}}


def test_all_errors_are_raised_at_once_and_grouped(copy: UCSFCopy) -> None:
    copy.set(1, "IDH", "pending")
    copy.set(3, "IDH", "NOS")
    copy.file("UCSF-PDGM-0002", "T1").unlink()
    with pytest.raises(CohortError) as raised:
        raise_or_exclude(copy.reader().read(), on_error="raise")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("cohort ucsf_pdgm: 3 errors.")
    assert [line for line in lines if not line.startswith("  - ")][1:] == [
        "missing sequence (1):",
        "unknown label (2):",
    ]
    assert sum(line.startswith("  - ") for line in lines) == 3


def test_a_spelling_is_one_message_with_count_examples_and_lines_to_paste(copy: UCSFCopy) -> None:
    for number in (1, 2, 3, 4, 5):
        copy.set(number, "IDH", "IDH pos.")
    copy.set(6, "IDH", "1")
    copy.set(7, "IDH", "0")
    with pytest.raises(CohortError) as raised:
        raise_or_exclude(copy.reader().read(), on_error="raise")
    lines = [line for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert len(lines) == 2
    assert "5 studies (UCSF-PDGM-0001, UCSF-PDGM-0002, UCSF-PDGM-0003 and 2 more): IDH is 'IDH pos.'" in lines[0]
    assert "'cohort.vocabulary={IDH pos.: wildtype}' or 'cohort.vocabulary={IDH pos.: mutant}'" in lines[0]
    ways = "'cohort.vocabulary={0: wildtype, 1: mutant}' or 'cohort.vocabulary={0: mutant, 1: wildtype}'"
    assert ways in lines[1], "neither is guessed"
    assert "2 studies (UCSF-PDGM-0006, UCSF-PDGM-0007): IDH is '0' or '1'" in lines[1]
    assert "cohort.on_error=exclude, or 'cohort.exclude=[UCSF-PDGM-0001," in str(raised.value)


def test_a_message_names_twenty_faults_of_a_kind_and_counts_the_rest() -> None:
    faults = [
        Fault(where=f"row {i}", check="unknown_id", found=f"ID is {i}", expected="a name", remedy="Correct it.")
        for i in range(25)
    ]
    with pytest.raises(CohortError) as raised:
        raise_or_exclude(Cohort(name="x", sequences=("T1",), studies=(), faults=tuple(faults)), on_error="raise")
    lines = str(raised.value).splitlines()
    assert lines[1] == "unknown id (25):"
    assert len(lines) == 23
    assert lines[-1] == "  - and 5 more like these"


def test_an_excluded_identifier_that_names_nobody_names_its_nearest(copy: UCSFCopy) -> None:
    with pytest.raises(CohortError, match=r"no study or patient 'UCSF-PDGM-0O05'.*Did you mean .*'UCSF-PDGM-0005'"):
        raise_or_exclude(copy.reader(exclude=["UCSF-PDGM-0O05"]).read(), on_error="raise")


def test_settling_twice_changes_nothing(copy: UCSFCopy) -> None:
    copy.set(1, "IDH", "pending")
    once = raise_or_exclude(copy.reader().read(), on_error="exclude")
    assert raise_or_exclude(once, on_error="exclude") == once
    assert raise_or_exclude(once, on_error="raise") == once


def test_faults_that_are_found_later_exclude_their_studies_too(copy: UCSFCopy) -> None:
    late = Fault(
        where="study UCSF-PDGM-0002", check="four_dimensions", found="a 4D file", expected="3D", remedy="Replace it.",
        study_id="UCSF-PDGM-0002",
    )  # fmt: skip
    cohort = copy.reader().read()
    settled = raise_or_exclude(cohort, [late], on_error="exclude")
    assert settled.exclusions == (
        Exclusion(study_id="UCSF-PDGM-0002", patient_id="UCSF-PDGM-0002", reason="four dimensions: a 4D file"),
    )
    assert len(settled.studies) == len(cohort.studies) - 1
    with pytest.raises(CohortError, match=r"UCSF-PDGM-0002: a 4D file; expected 3D. Replace it."):
        raise_or_exclude(cohort, [late], on_error="raise")


def test_an_error_about_no_single_study_is_raised_even_when_excluding(copy: UCSFCopy) -> None:
    with pytest.raises(CohortError, match=r"cohort.exclude: no study or patient 'UCSF-PDGM-999'"):
        raise_or_exclude(copy.reader(exclude=["UCSF-PDGM-999"]).read(), on_error="exclude")


def test_a_cohort_of_which_nothing_is_left_is_an_error(copy: UCSFCopy) -> None:
    copy.table["IDH"] = "pending"
    with pytest.raises(CohortError, match=r"no study is left, 13 are excluded"):
        raise_or_exclude(copy.reader().read(), on_error="exclude")


def test_a_wrong_on_error_is_refused(copy: UCSFCopy) -> None:
    with pytest.raises(ConfigError, match=r"expected 'raise' or 'exclude'"):
        raise_or_exclude(copy.reader().read(), on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cohort.on_error: 'skip'"):
        copy.reader(on_error="skip")


@pytest.mark.parametrize("spelling", ["UCSF-PDGM-005", "UCSF-PDGM-0005"])
def test_excluding_a_patient_leaves_out_every_study_and_says_so(copy: UCSFCopy, spelling: str) -> None:
    cohort = raise_or_exclude(copy.reader(exclude=[spelling]).read(), on_error="raise")
    assert [e.study_id for e in cohort.exclusions] == ["UCSF-PDGM-0005", "UCSF-PDGM-0005_FU003d"]
    assert {e.reason for e in cohort.exclusions} == {"listed in cohort.exclude"}
    assert not [study for study in cohort.studies if study.patient_id == "UCSF-PDGM-0005"]


def test_excluding_a_follow_up_keeps_the_first_study(copy: UCSFCopy) -> None:
    cohort = raise_or_exclude(copy.reader(exclude=["UCSF-PDGM-0005_FU003d"]).read(), on_error="raise")
    assert [e.study_id for e in cohort.exclusions] == ["UCSF-PDGM-0005_FU003d"]
    assert "UCSF-PDGM-0005" in {study.study_id for study in cohort.studies}


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n not in ("labels in conflict", "file of another study")])
def test_a_faulty_study_can_be_excluded_by_name(copy: UCSFCopy, name: str) -> None:
    CORRUPTIONS[name][0](copy)
    cohort = raise_or_exclude(copy.reader(exclude=["UCSF-PDGM-002"]).read(), on_error="raise")
    assert [e.study_id for e in cohort.exclusions] == ["UCSF-PDGM-0002"]


def test_two_unmarked_studies_of_a_patient_become_one_and_a_follow_up() -> None:
    studies = [Study(study_id=name, patient_id="P", label=0, files={}) for name in ("b", "a")]
    cohort = build_cohort(name="x", sequences=("T1",), studies=studies)
    assert [(study.study_id, study.follow_up) for study in cohort.studies] == [("a", False), ("b", True)]
    assert set(checks(cohort, "warning")) == {"patient_in_two_places"}


def test_a_follow_up_has_one_warning_whether_it_was_marked_or_found() -> None:
    pairs = {"P": ("a", "b"), "Q": ("c", "d")}
    studies = [
        Study(study_id=name, patient_id=patient, label=0, files={}, follow_up=name == "d")
        for patient, names in pairs.items()
        for name in names
    ]
    found, marked = build_cohort(name="x", sequences=("T1",), studies=studies).faults
    assert (found.check, found.found) == ("patient_in_two_places", "b, besides the first study")
    assert (marked.check, marked.found) == ("follow_ups", "1 follow-up study of 1 patient: d")


def test_one_file_in_two_roles_of_one_study_is_an_error() -> None:
    same = Path("image.nii.gz")
    study = Study(study_id="a", patient_id="P", label=0, files={"T1": same, "T2": same})
    cohort = build_cohort(name="x", sequences=("T1", "T2"), studies=[study])
    assert checks(cohort) == {"shared_file": {"a"}}
    assert cohort.studies == ()


def test_a_file_that_many_studies_share_is_named_with_a_few_of_them() -> None:
    same = Path("image.nii.gz")
    studies = [Study(study_id=f"S{i}", patient_id=f"P{i}", label=0, files={"T1": same}) for i in range(9)]
    faults = build_cohort(name="x", sequences=("T1",), studies=studies).faults
    assert len(faults) == 9
    assert faults[0].found == f"{same.resolve()} is used as T1 of S0, T1 of S1, T1 of S2, T1 of S3 and 5 more"


# Tables, flow and report


def test_the_exclusions_table_says_who_and_why(copy: UCSFCopy) -> None:
    copy.set(1, "IDH", "pending")
    table = exclusions_table(raise_or_exclude(copy.reader().read(), on_error="exclude"))
    assert table.to_dict("records") == [
        {"study_id": "UCSF-PDGM-0001", "patient_id": "UCSF-PDGM-0001", "reason": "unknown label: IDH is 'pending'"}
    ]


def test_the_table_of_faults_shows_every_fault_and_cuts_long_lists_with_a_count(copy: UCSFCopy) -> None:
    copy.table["IDH"] = [f"[red]pending {number}" for number in range(len(copy.table))]
    screen = io.StringIO()
    Console(file=screen, width=300).print(faults_table(copy.reader().read(), rows_per_check=4))
    text = screen.getvalue()
    assert text.count("'[red]pending ") == 4
    assert "... and 9 more" in text


def test_flow_counts_add_up_for_patients_and_studies(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path, patients=30)
    copy.set(1, "IDH", "pending")
    copy.set(4, "IDH", "NOS")
    copy.file("UCSF-PDGM-0005_FU003d", "T1").unlink()
    cohort = raise_or_exclude(copy.reader(exclude=["UCSF-PDGM-002"]).read(), on_error="exclude")
    table = HoldOut(seed=0)(cohort)
    flow = cohort_flow(cohort, table)

    total = flow.groupby("step")[["patients", "studies"]].sum()
    assert total.loc["read"].tolist() == [30, 31]
    assert (total.loc["read"] == total.loc["used"] + total.loc["excluded"]).all()
    assert (total.loc["used"] == total.loc["split"]).all()
    excluded = flow[flow["step"] == "excluded"].set_index("group")
    assert excluded["studies"].to_dict() == {"unknown label": 2, "missing sequence": 1, "listed in cohort.exclude": 1}
    assert excluded.loc["missing sequence", "patients"] == 0  # the first study of this patient is used
    for row in flow[flow["step"] == "split"].itertuples():
        part = table[(table["split"] == row.group) & (table["label"] == ("wildtype", "mutant").index(str(row.label)))]
        assert (row.patients, row.studies) == (part["patient_id"].nunique(), len(part))


def test_the_report_shows_faults_exclusions_and_flow_and_opens_offline(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path, patients=30)
    copy.set(1, "IDH", "<script>alert(1)</script>")
    cohort = raise_or_exclude(copy.reader().read(), on_error="exclude")
    path = write_cohort_report(cohort, tmp_path / "new" / "cohort_report.html", HoldOut(seed=0)(cohort))
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "://" not in page
    assert "unknown label (1)" in page
    for text in ("Read", "30 patients, 31 studies", "Excluded: 1 patient", "Train", "Validation", "Test"):
        assert f">{text}</" in page
    assert list(path.parent.iterdir()) == [path]


def test_the_report_can_be_written_before_anything_is_settled_or_split(copy: UCSFCopy, tmp_path: Path) -> None:
    page = write_cohort_report(copy.reader().read(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">Used</b>" in page
    assert ">Train</b>" not in page


def test_the_report_of_a_refused_table_shows_every_refused_study_and_adds_up(copy: UCSFCopy, tmp_path: Path) -> None:
    copy.set(1, "IDH", "pending")
    copy.set(3, "IDH", "perhaps")
    copy.set(4, "IDH", "perhaps")
    copy.file("UCSF-PDGM-0004", "T1").unlink()
    cohort = copy.reader(exclude=["UCSF-PDGM-002"]).read()
    late = Fault(where="a.nii", check="truncated", found="half a file", expected="all", remedy="Get it again.",
                 study_id="UCSF-PDGM-0006")  # fmt: skip
    cohort = replace(cohort, faults=(*cohort.faults, late))
    flow = cohort_flow(cohort).groupby("step")[["patients", "studies"]].sum()
    assert flow["studies"].to_dict() == {"read": 13, "excluded": 1, "refused": 4, "used": 8}
    assert flow["patients"].to_dict() == {"read": 12, "excluded": 1, "refused": 4, "used": 7}
    page = write_cohort_report(cohort, tmp_path / "report.html").read_text(encoding="utf-8")
    words = " ".join(page.split())
    assert "The cohort was refused: 5 errors" in words
    assert "13 studies of 12 patients that were read, 4 are refused, 1 excluded and 8 without an error" in words
    for number in (1, 3, 4, 6):
        assert f'<th scope="row">UCSF-PDGM-000{number}</th>' in page
    assert 'data-head="reason">unknown label: IDH is &#39;perhaps&#39;; missing sequence: no T1' in page
    assert page.count("<h1>Cohort ucsf_pdgm, metadata.csv</h1>") == 1
    assert ">Refused: 4 patients</b>" in page
    assert "2 studies (UCSF-PDGM-0003, UCSF-PDGM-0004)" in page
    assert "metadata.csv: 13 rows of 13 studies, separated by commas" in page
