"""Every layout that can be read, its names as the collections write them, with empty files in place of images."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
import yaml
from cohort_files import write_ucsf_cohort
from hypothesis import given
from hypothesis import strategies as st

from idh_lightning.cli.entry import composed
from idh_lightning.cohort import (
    BIDS,
    EGD,
    SEQUENCES,
    UCSFPDGM,
    UPENNGBM,
    BraTS,
    Cohort,
    Combined,
    HoldOut,
    Reader,
    Study,
    Table,
    new_studies,
    raise_or_exclude,
)
from idh_lightning.cohort.identity import canonical_patient, parse_ucsf_pdgm
from idh_lightning.cohort.spreadsheet import read_spreadsheet
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.config.text import as_text
from idh_lightning.errors import CohortError, ConfigError

LAYOUTS = {
    "bids": BIDS, "brats": BraTS, "egd": EGD, "table": Table, "ucsf_pdgm": UCSFPDGM, "upenn_gbm": UPENNGBM,
    "combined": Combined,
}  # fmt: skip


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(reader: Reader | Combined) -> Cohort:
    return raise_or_exclude(reader.read(), on_error="raise")


def names(study: Study) -> dict[str, str]:
    return {sequence: path.name for sequence, path in study.files.items()}


# Identifiers


@given(
    number=st.integers(1, 9999), days=st.none() | st.integers(0, 9999), padding=st.integers(0, 4), lower=st.booleans()
)
def test_every_spelling_of_a_ucsf_identifier_is_the_same_study(
    number: int, days: int | None, padding: int, lower: bool
) -> None:
    suffix = "" if days is None else f"_FU{days:03d}d"
    text = f"UCSF-PDGM-{number:0{padding}d}{suffix}"
    identity = parse_ucsf_pdgm(f" {text.lower() if lower else text} ")
    assert identity is not None
    assert identity.study_id == f"UCSF-PDGM-{number:04d}{suffix}"
    assert identity.patient_id == f"UCSF-PDGM-{number:04d}"
    assert identity.follow_up == (days is not None)
    assert parse_ucsf_pdgm(identity.study_id) == identity


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_two_ucsf_numbers_are_one_patient_only_if_they_are_equal(first: int, second: int) -> None:
    same = canonical_patient(f"UCSF-PDGM-{first:03d}") == canonical_patient(f"UCSF-PDGM-{second:04d}_FU001d")
    assert same == (first == second)


@given(st.text(max_size=40))
def test_any_text_is_an_identifier_or_none_and_canonical_spelling_is_stable(text: str) -> None:
    identity = parse_ucsf_pdgm(text)
    assert identity is None or re.fullmatch(r"UCSF-PDGM-\d{4}(_FU\d{3,4}d)?", identity.study_id)
    assert canonical_patient(canonical_patient(text)) == canonical_patient(text)


@pytest.mark.parametrize(
    "text", ["UCSF-PDGM-", "UCSF-PDGM-4b", "PDGM-004", "UCSF-PDGM-004_FU", "UCSF-PDGM-٣٣٣", "xUCSF-PDGM-004"]
)
def test_what_only_resembles_a_ucsf_identifier_is_none(text: str) -> None:
    assert parse_ucsf_pdgm(text) is None


def test_a_tcga_barcode_is_cut_after_the_patient() -> None:
    spellings = ("TCGA-DU-7294", "tcga-du-7294", "TCGA-DU-7294-01A-11D", "tcga_du_7294", "TCGA.DU.7294_flair")
    assert {canonical_patient(text) for text in spellings} == {"TCGA-DU-7294"}
    assert canonical_patient("TCGA-DU-72945") == "TCGA-DU-72945"


def test_a_ucsf_patient_keeps_the_name_where_dashes_have_become_something_else() -> None:
    spellings = ("UCSF-PDGM-0004", "ucsf_pdgm_004", "UCSF.PDGM.4", "UCSF_PDGM_0004_FU012d")
    assert {canonical_patient(text) for text in spellings} == {"UCSF-PDGM-0004"}


# UCSF-PDGM


def test_ucsf_rows_meet_their_folders_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path, patients=110)
    first = read(copy.reader())
    copy.table = copy.table.sample(frac=1, random_state=1)
    assert read(copy.reader()) == first
    for study in first.studies:
        assert list(study.files) == list(SEQUENCES)
        assert names(study) == {s: f"{study.study_id}_{s}.nii.gz" for s in SEQUENCES}
        assert {path.parent.name for path in study.files.values()} == {f"{study.study_id}_nifti"}
        assert study.label == (int(study.patient_id[-4:]) % 3 == 0)


def test_ucsf_identifiers_with_a_common_ending_do_not_meet(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    copy.add("UCSF-PDGM-1002")  # ends like 2, which a match by suffix would confuse
    with pytest.raises(CohortError, match=r"no row for UCSF-PDGM-1002"):
        read(copy.reader())


def test_the_follow_up_shares_patient_and_says_what_it_is(tmp_path: Path) -> None:
    later = [study for study in read(write_ucsf_cohort(tmp_path).reader()).studies if study.follow_up]
    assert [(study.study_id, study.patient_id) for study in later] == [("UCSF-PDGM-0005_FU003d", "UCSF-PDGM-0005")]


def test_bias_corrected_files_are_used_when_asked_for(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    for study in read(copy.reader()).studies:
        for sequence in SEQUENCES:
            copy.file(study.study_id, f"{sequence}_bias").touch()
    plain, corrected = (read(copy.reader(bias_corrected=flag)).studies[0] for flag in (False, True))
    assert names(plain)["T1c"] == "UCSF-PDGM-0001_T1c.nii.gz"
    assert names(corrected)["T1c"] == "UCSF-PDGM-0001_T1c_bias.nii.gz"
    assert plain.mask == corrected.mask


def test_only_the_sequences_that_are_asked_for_are_read(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    copy.file("UCSF-PDGM-0002", "T1").unlink()
    cohort = read(copy.reader(sequences=["T2", "FLAIR"]))
    assert cohort.sequences == ("FLAIR", "T2")
    assert all(list(study.files) == ["FLAIR", "T2"] for study in cohort.studies)


def test_a_folder_with_images_that_names_no_study_is_reported(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    touch(copy.root / "images" / "UCSF_0099" / "UCSF-PDGM-0099_T1.nii.gz")
    warnings = [fault for fault in read(copy.reader()).faults if fault.check == "unknown_folder"]
    assert [Path(fault.where).name for fault in warnings] == ["UCSF_0099"]


# BraTS


BRATS_NAMES = {
    "Brats18_TCIA01_201_1": ("_flair", "_t1", "_t1ce", "_t2", "_seg"),
    "BraTS2021_00006": ("_flair", "_t1", "_t1ce", "_t2", "_seg"),
    "BraTS-GLI-00012-000": ("-t2f", "-t1n", "-t1c", "-t2w", "-seg"),
}


def add_brats(root: Path, name: str) -> None:
    for end in BRATS_NAMES["BraTS-GLI-00012-000" if "GLI" in name else "BraTS2021_00006"]:
        touch(root / name / f"{name}{end}.nii.gz")


@pytest.mark.parametrize("name", BRATS_NAMES)
def test_brats_names_of_every_year_are_read(tmp_path: Path, name: str) -> None:
    add_brats(tmp_path / "images", name)
    table = write(tmp_path / "labels.csv", f"study_id,patient_id,idh\n{name},UCSF-PDGM-61,mutant\nother,x,wildtype\n")
    study = read(BraTS(folder=tmp_path / "images", table=table)).studies[0]
    assert list(names(study).values()) == [f"{name}{end}.nii.gz" for end in BRATS_NAMES[name][:4]]
    assert (study.study_id, study.patient_id, study.label) == (name, "UCSF-PDGM-0061", 1)
    assert study.mask is not None
    assert study.mask.name == f"{name}{BRATS_NAMES[name][4]}.nii.gz"


def test_a_row_of_2021_serves_the_same_patient_in_2023(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00012-000", "BraTS-GLI-00012-001", "BraTS2021_00012"):
        add_brats(tmp_path / "images", name)
    table = write(
        tmp_path / "m.csv", "ID,BraTS21 ID,IDH\nUCSF-PDGM-061,BraTS2021_00012,IDH1 p.R132H\nUCSF-PDGM-004,,wildtype\n"
    )
    columns = {"study_id": "BraTS21 ID", "patient_id": "ID", "idh": "IDH"}
    cohort = read(BraTS(folder=tmp_path / "images", table=table, columns=columns))
    assert {study.patient_id for study in cohort.studies} == {"UCSF-PDGM-0061"}
    assert {study.study_id: study.follow_up for study in cohort.studies} == {
        "BraTS-GLI-00012-000": False, "BraTS-GLI-00012-001": True, "BraTS2021_00012": True,
    }  # fmt: skip


def test_rows_about_other_challenges_are_no_error_but_are_counted(tmp_path: Path) -> None:
    add_brats(tmp_path / "images", "BraTS2021_00006")
    table = write(tmp_path / "t.csv", "study_id,idh\nBraTS2021_00006,wildtype\nBraTS2021_00007,wildtype\n")
    faults = read(BraTS(folder=tmp_path / "images", table=table)).faults
    assert any("1 row has no folder" in fault.found for fault in faults)


def test_the_folders_of_2018_may_lie_one_level_down(tmp_path: Path) -> None:
    for grade, name in (("HGG", "Brats18_TCIA01_201_1"), ("LGG", "Brats18_TCIA10_637_1")):
        add_brats(tmp_path / "images" / grade, name)
    table = write(tmp_path / "t.csv", "study_id,idh\nBrats18_TCIA01_201_1,wt\nBrats18_TCIA10_637_1,mutant\n")
    cohort = read(BraTS(folder=tmp_path / "images", table=table))
    assert [study.patient_id for study in cohort.studies] == ["Brats18_TCIA01_201", "Brats18_TCIA10_637"]


# UPENN-GBM, EGD, BIDS


def test_upenn_studies_find_the_corrected_mask_first(tmp_path: Path) -> None:
    for name in ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00002_11"):
        for end in ("FLAIR", "T1", "T1GD", "T2"):
            touch(tmp_path / "images_structural" / name / f"{name}_{end}.nii.gz")
        touch(tmp_path / "automated_segm" / f"{name}_automated_approx_segm.nii.gz")
    touch(tmp_path / "images_segm" / "UPENN-GBM-00001_11_segm.nii.gz")
    rows = "ID,Gender,Age_at_scan_years,IDH1,MGMT\n" + "".join(
        f"{name},M,63.3,{idh},Methylated\n"
        for name, idh in [
            ("UPENN-GBM-00001_11", "Wildtype"),
            ("UPENN-GBM-00001_21", "Wildtype"),
            ("UPENN-GBM-00002_11", "Mutated"),
        ]
    )
    table = write(tmp_path / "clinical.csv", rows)
    cohort = read(UPENNGBM(folder=tmp_path / "images_structural", table=table))
    assert [(s.study_id, s.patient_id, s.label, s.follow_up) for s in cohort.studies] == [
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001", 0, False),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001", 0, True),
        ("UPENN-GBM-00002_11", "UPENN-GBM-00002", 1, False),
    ]
    assert names(cohort.studies[0])["T1c"] == "UPENN-GBM-00001_11_T1GD.nii.gz"
    assert [s.mask.parent.name for s in cohort.studies if s.mask] == ["images_segm", "automated_segm", "automated_segm"]
    assert cohort.studies[0].age_years == 63.3


def test_upenn_rows_without_a_verdict_are_faults(tmp_path: Path) -> None:
    touch(tmp_path / "images_structural" / "UPENN-GBM-00001_11" / "UPENN-GBM-00001_11_T1.nii.gz")
    table = write(tmp_path / "clinical.csv", "ID,IDH1\nUPENN-GBM-00001_11,NOS/NEC\n")
    with pytest.raises(CohortError, match=r"study UPENN-GBM-00001_11: IDH1 is 'NOS/NEC'"):
        read(UPENNGBM(folder=tmp_path / "images_structural", table=table))


def test_egd_codes_are_labels_and_minus_one_is_a_fault(tmp_path: Path) -> None:
    for name in ("EGD-0001", "EGD-0002", "EGD-0003"):
        for file in ("FLAIR", "T1", "T1GD", "T2", "MASK"):
            touch(tmp_path / "SUBJECTS" / name / f"{file}.nii.gz")
    table = write(tmp_path / "Genetic_data.csv", "Subject,IDH,1p19q\nEGD-0001,0,0\nEGD-0002,1,0\nEGD-0003,-1,-1\n")
    cohort = raise_or_exclude(EGD(folder=tmp_path / "SUBJECTS", table=table).read(), on_error="exclude")
    assert [(study.study_id, study.label) for study in cohort.studies] == [("EGD-0001", 0), ("EGD-0002", 1)]
    assert names(cohort.studies[0]) == {
        "FLAIR": "FLAIR.nii.gz",
        "T1": "T1.nii.gz",
        "T1c": "T1GD.nii.gz",
        "T2": "T2.nii.gz",
    }
    assert [exclusion.reason for exclusion in cohort.exclusions] == ["unknown label: IDH is '-1'"]


def test_egd_is_read_as_its_server_gives_it(tmp_path: Path) -> None:
    for number, what in enumerate(("T1", "T1GD", "T2", "FLAIR", "MASK"), start=1):
        touch(tmp_path / "SUBJECTS" / "MR_EGD-0001" / f"{number}_{what}" / "NIFTI" / f"{what}.nii.gz")
    table = write(tmp_path / "Genetic_data.csv", "Subject,IDH\nMR_EGD-0001,1\n")
    (study,) = read(EGD(folder=tmp_path / "SUBJECTS", table=table)).studies
    assert (study.study_id, study.label, study.mask is not None) == ("EGD-0001", 1, True)
    assert list(names(study).values()) == ["FLAIR.nii.gz", "T1.nii.gz", "T1GD.nii.gz", "T2.nii.gz"]
    (new,) = new_studies(tmp_path / "SUBJECTS")
    assert new.study is not None
    assert (new.study_id, list(new.study.files)) == ("MR_EGD-0001", list(SEQUENCES))


def test_upenn_images_with_their_skull_are_read(tmp_path: Path) -> None:
    name = "UPENN-GBM-00001_11"
    for end in ("FLAIR", "T1", "T1GD", "T2"):
        touch(tmp_path / "images_structural_unstripped" / name / f"{name}_{end}_unstripped.nii.gz")
    touch(tmp_path / "images_segm" / f"{name}_segm.nii.gz")
    table = write(tmp_path / "clinical.csv", f"ID,IDH1\n{name},Wildtype\n")
    (study,) = read(UPENNGBM(folder=tmp_path / "images_structural_unstripped", table=table)).studies
    assert names(study)["T1c"] == f"{name}_T1GD_unstripped.nii.gz"
    assert study.mask is not None


def test_the_bias_corrected_contrast_image_of_ucsf_has_another_name(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    for study in read(copy.reader()).studies:
        for end in ("FLAIR_bias", "T1_bias", "T1gad_bias", "T2_bias"):
            copy.file(study.study_id, end).touch()
    assert names(read(copy.reader(bias_corrected=True)).studies[0])["T1c"] == "UCSF-PDGM-0001_T1gad_bias.nii.gz"


def test_where_only_bias_corrected_files_are_there_the_setting_for_them_is_named(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    copy.file("UCSF-PDGM-0001", "T1").rename(copy.file("UCSF-PDGM-0001", "T1_bias"))
    with pytest.raises(CohortError, match=r"_T1_bias.nii.gz.*Restore the file, .*cohort.bias_corrected=true"):
        read(copy.reader())


def test_a_folder_named_like_a_file_holds_that_file(tmp_path: Path) -> None:
    name = "BraTS20_Training_001"
    for end in ("flair", "t1", "t1ce", "t2", "seg"):
        inside = "W39_1998.nii" if end == "seg" else f"{name}_{end}.nii"
        touch(tmp_path / "images" / name / f"{name}_{end}.nii" / inside)
    table = write(tmp_path / "t.csv", f"study_id,idh\n{name},mutant\n")
    (study,) = read(BraTS(folder=tmp_path / "images", table=table)).studies
    assert list(names(study).values()) == [f"{name}_{end}.nii" for end in ("flair", "t1", "t1ce", "t2")]
    assert study.mask is not None
    assert study.mask.is_file()
    (new,) = new_studies(tmp_path / "images")
    assert new.study is not None
    assert {path.name for path in new.study.files.values()} == set(names(study).values())
    table = write(tmp_path / "own.csv", f"study_id,idh,T1\na,mutant,images/{name}/{name}_t1.nii\n")
    assert names(read(Table(table=table)).studies[0]) == {"T1": f"{name}_t1.nii"}


def test_the_numbers_of_brats_2020_are_patients(tmp_path: Path) -> None:
    for number in ("001", "002"):
        add_brats(tmp_path / "images", f"BraTS20_Training_{number}")
    table = write(tmp_path / "t.csv", "study_id,idh\nBraTS20_Training_001,mutant\nBraTS20_Training_002,wildtype\n")
    cohort = read(BraTS(folder=tmp_path / "images", table=table))
    assert [study.patient_id for study in cohort.studies] == ["BraTS20_Training_001", "BraTS20_Training_002"]


def test_a_study_folder_without_the_files_says_what_is_there_instead(tmp_path: Path) -> None:
    touch(tmp_path / "images" / "BraTS2021_00006" / "anat" / "t1_mprage.nii.gz")
    table = write(tmp_path / "t.csv", "study_id,idh\nBraTS2021_00006,wildtype\n")
    with pytest.raises(CohortError, match=r"no T1: .*BraTS2021_00006 holds anat/t1_mprage.nii.gz"):
        read(BraTS(folder=tmp_path / "images", table=table))


def test_bids_tells_contrast_by_its_entity_and_groups_sessions(tmp_path: Path) -> None:
    for where, stem in (("sub-01/ses-a", "sub-01_ses-a"), ("sub-01/ses-b", "sub-01_ses-b"), ("sub-02", "sub-02")):
        for end in ("FLAIR", "T1w", "ce-gd_T1w", "T2w"):
            touch(tmp_path / where / "anat" / f"{stem}_{end}.nii.gz")
        touch(tmp_path / "derivatives" / "tumour" / where / "anat" / f"{stem}_dseg.nii.gz")
    write(tmp_path / "participants.tsv", "participant_id\tage\tsex\tidh\nsub-01\t40\tF\tmutant\n02\t50\tM\twildtype\n")
    cohort = read(BIDS(folder=tmp_path, table=tmp_path / "participants.tsv"))
    assert [(s.study_id, s.patient_id, s.label, s.follow_up) for s in cohort.studies] == [
        ("sub-01_ses-a", "sub-01", 1, False), ("sub-01_ses-b", "sub-01", 1, True), ("sub-02", "sub-02", 0, False),
    ]  # fmt: skip
    assert list(names(cohort.studies[2]).values()) == [
        "sub-02_FLAIR.nii.gz", "sub-02_T1w.nii.gz", "sub-02_ce-gd_T1w.nii.gz", "sub-02_T2w.nii.gz",
    ]  # fmt: skip
    assert [study.mask is not None for study in cohort.studies] == [True, True, True]


def test_two_runs_in_bids_are_ambiguous(tmp_path: Path) -> None:
    for end in ("FLAIR", "run-1_T1w", "run-2_T1w", "ce-gd_T1w", "T2w"):
        touch(tmp_path / "sub-01" / "anat" / f"sub-01_{end}.nii.gz")
    write(tmp_path / "participants.tsv", "participant_id\tidh\nsub-01\tmutant\n")
    with pytest.raises(CohortError, match=r"2 files could be T1:"):
        read(BIDS(folder=tmp_path, table=tmp_path / "participants.tsv"))


# Tables


def table_cohort(root: Path, kind: str = "csv") -> Path:
    frame = pd.DataFrame(
        {
            "study_id": ["a", "b"], "patient_id": ["P1", "P2"], "idh": ["wildtype", "mutant"], "age_years": [50, None],
            "FLAIR": ["images/a_flair.nii.gz", "images/b_fl*.nii.gz"], "T1": ["images/a_t1.nii", "../outside/b_t1.nii"],
        }
    )  # fmt: skip
    for path in (
        "cohort/images/a_flair.nii.gz",
        "cohort/images/b_flair.nii.gz",
        "cohort/images/a_t1.nii",
        "outside/b_t1.nii",
    ):
        touch(root / path)
    path = root / "cohort" / f"cohort.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_of_any_kind_names_its_files_relative_to_itself(tmp_path: Path, kind: str) -> None:
    cohort = read(Table(table=table_cohort(tmp_path, kind)))
    assert cohort.sequences == ("FLAIR", "T1")
    assert [names(study) for study in cohort.studies] == [
        {"FLAIR": "a_flair.nii.gz", "T1": "a_t1.nii"}, {"FLAIR": "b_flair.nii.gz", "T1": "b_t1.nii"},
    ]  # fmt: skip
    assert [(study.label, study.age_years) for study in cohort.studies] == [(0, 50.0), (1, None)]


def test_a_pattern_must_fit_exactly_one_file(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    touch(path.parent / "images" / "b_flop.nii.gz")
    with pytest.raises(CohortError, match=r"study b: 2 files could be FLAIR: .*b_flair.nii.gz, .*b_flop.nii.gz"):
        read(Table(table=path))


@pytest.mark.parametrize(
    "text", ["images/none*.nii.gz", "images/none.nii.gz", "/no/such.nii", "images", "x\\0y", "a" * 5000]
)
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, text: str) -> None:
    path = table_cohort(tmp_path)
    path.write_text(path.read_text().replace("images/a_t1.nii", text))
    with pytest.raises(CohortError, match=r"study a: T1 is .*, which is not there"):
        read(Table(table=path))


def test_paths_as_windows_writes_them_and_endings_in_capitals_are_read(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path, dtype=str)
    old = path.parent / frame.loc[0, "FLAIR"]
    new = old.rename(old.with_name("A [1] = b.NII.GZ"))
    frame.loc[0, "FLAIR"] = str(new.relative_to(path.parent)).replace("/", "\\")
    frame.to_csv(path, index=False)
    study = read(Table(table=path)).studies[0]
    assert study.files["FLAIR"] == new


def test_a_file_that_is_no_nifti_is_named(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    path.write_text(path.read_text().replace("images/a_t1.nii", "cohort.csv"))
    with pytest.raises(CohortError, match=r"T1 is 'cohort.csv', not a NIfTI file"):
        read(Table(table=path))


def test_a_mask_that_is_named_but_not_there_is_an_error(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path).assign(tumor_segmentation=["none.nii", ""])
    frame.to_csv(path, index=False)
    cohort = Table(table=path).read()
    assert {(fault.check, fault.study_id, fault.severity) for fault in cohort.faults} == {
        ("missing_mask", "a", "error"), ("missing_mask", "b", "warning"),
    }  # fmt: skip


def test_columns_can_be_named_in_the_configuration(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).rename(columns={"idh": "IDH status", "FLAIR": "fluid"}).to_csv(path, index=False)
    cohort = read(Table(table=path, columns={"idh": "IDH status", "FLAIR": "fluid"}))
    assert cohort.sequences == ("FLAIR", "T1")


@pytest.mark.parametrize("study_id", ["../evil", "a/b", "a b", ".hidden", "x" * 200, "ä"])
def test_a_study_that_cannot_name_a_file_is_refused(tmp_path: Path, study_id: str) -> None:
    path = table_cohort(tmp_path)
    path.write_text(path.read_text().replace("a,P1", f"{study_id},P1"), encoding="utf-8")
    cohort = Table(table=path).read()
    assert [fault.check for fault in cohort.faults if fault.severity == "error"] == ["unusable_id"]
    assert [study.study_id for study in cohort.studies] == ["b"]


def test_rows_without_an_identifier_are_named_by_their_number(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    path.write_text(path.read_text().replace("a,P1", ",P1"))
    with pytest.raises(CohortError, match=r"cohort.csv, row 2: no study identifier"):
        read(Table(table=path))


def test_a_table_without_patients_takes_studies_as_patients_and_says_so(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).drop(columns="patient_id").to_csv(path, index=False)
    cohort = read(Table(table=path))
    assert [study.patient_id for study in cohort.studies] == ["a", "b"]
    assert "no_patient_column" in {fault.check for fault in cohort.faults}


def test_a_table_may_say_which_study_is_a_follow_up(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path).assign(patient_id="P1", idh="mutant", follow_up=["Yes", ""])
    frame.to_csv(path, index=False)
    assert {study.study_id: study.follow_up for study in read(Table(table=path)).studies} == {"a": True, "b": False}
    frame.assign(follow_up=["later", ""]).to_csv(path, index=False)
    with pytest.raises(CohortError, match=r"study a: follow_up is 'later'; expected true, false or nothing") as refused:
        read(Table(table=path))
    assert "cohort.columns.follow_up=null" in str(refused.value)


def test_sessions_that_are_called_alike_for_every_patient_make_studies_with_the_patient(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path).drop(columns="study_id").assign(patient_id=["P1", "P2"], session="ses-0")
    frame.to_csv(path, index=False)
    cohort = read(Table(table=path))
    assert [study.study_id for study in cohort.studies] == ["P1_ses-0", "P2_ses-0"]
    assert "sessions_as_studies" in {fault.check for fault in cohort.faults}


@pytest.mark.parametrize(
    ("first", "second", "alike"), [("P03", "p03", True), ("P 03", "P_03", True), ("P3", "P4", False)]
)
def test_patients_who_may_be_one_person_are_told(tmp_path: Path, first: str, second: str, alike: bool) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(patient_id=[first, second]).to_csv(path, index=False)
    cohort = read(Table(table=path))
    assert len({study.patient_id for study in cohort.studies}) == 2
    assert ("patients_alike" in {fault.check for fault in cohort.faults}) == alike


def test_a_path_may_begin_at_home_and_a_susceptibility_image_is_no_t2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "cohort"))
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path)
    frame["FLAIR"] = "~/" + frame["FLAIR"]
    frame.assign(**{"T2*": frame["FLAIR"]}).to_csv(path, index=False)
    assert read(Table(table=path)).sequences == ("FLAIR", "T1")


@pytest.mark.parametrize(
    "names",
    [
        {"study_id": "ID", "idh": "IDH", "FLAIR": "flair", "T1c": "T1ce"},
        {"study_id": "Scan ID", "patient_id": "Subject", "idh": "IDH_status", "FLAIR": "T2-FLAIR", "T1c": "T1 post"},
        {"patient_id": "patient", "idh": "IDH mutation status", "FLAIR": "flair_path", "T1": "t1n", "T1c": "t1c"},
        {"T1": "T1 nativ", "T1c": "T1 KM"},
        {"idh": "IDH1/2", "age_years": "Age", "FLAIR": "t2f", "T1c": "T1+C"},
        {"T1c": "T1Gd"}, {"T1c": "T1-post"}, {"T1c": "T1C"},
    ],
)  # fmt: skip
def test_columns_go_by_the_names_that_are_usual_and_it_is_said(tmp_path: Path, names: dict[str, str]) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path, dtype=str)
    frame = frame.assign(T1c=frame["FLAIR"], FLAIR=["images/a_f.nii", "images/b_f.nii"], grade="4")
    for name in "ab":
        touch(path.parent / "images" / f"{name}_f.nii")
    frame.rename(columns=names).to_csv(path, index=False)
    cohort = read(Table(table=path))
    assert cohort.sequences == ("FLAIR", "T1", "T1c")
    assert [(study.study_id, study.patient_id, study.label) for study in cohort.studies] == [
        ("a", "P1", 0),
        ("b", "P2", 1),
    ]
    assert cohort.studies[0].age_years == 50
    for role, name in names.items():
        assert f"{role} from {name!r}" in cohort.notes[0]
    assert "no column for T2, mask; carried along, never given to the network: 'grade'" in cohort.notes[0]


def test_a_table_that_names_patients_only_has_one_study_of_each(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).drop(columns="study_id").rename(columns={"patient_id": "Patient"}).to_csv(path, index=False)
    assert [(s.study_id, s.patient_id) for s in read(Table(table=path)).studies] == [("P1", "P1"), ("P2", "P2")]


def test_two_columns_that_could_be_one_sequence_are_named_with_lines_to_paste(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(T1ce="x.nii", T1gd="y.nii").to_csv(path, index=False)
    with pytest.raises(
        CohortError, match=r"'T1ce', 'T1gd' could all be T1c.* cohort.columns.T1c=T1ce or cohort.columns"
    ):
        Table(table=path).read()


def test_an_exact_name_comes_before_the_usual_ones(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(ID="other", flair="other.nii").to_csv(path, index=False)
    assert [study.study_id for study in read(Table(table=path)).studies] == ["a", "b"]


def test_a_column_of_images_that_is_not_used_is_named(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(**{"KM axial": "images/a_t1.nii"}).to_csv(path, index=False)
    warnings = [fault for fault in read(Table(table=path)).faults if fault.check == "unused_images"]
    assert ["'KM axial'" in fault.found for fault in warnings] == [True]
    assert "'cohort.columns.T1c=KM axial'" in warnings[0].remedy


def test_a_column_about_one_gene_is_offered_and_not_taken(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).rename(columns={"idh": "IDH1 status"}).to_csv(path, index=False)
    with pytest.raises(CohortError, match=r"no column 'idh'.*If this is it, add 'cohort.columns.idh=IDH1 status'"):
        Table(table=path).read()


def test_rows_that_say_the_same_are_one_study_and_it_is_said(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path)
    pd.concat([frame, frame.head(1)]).to_csv(path, index=False)
    cohort = read(Table(table=path))
    assert [study.study_id for study in cohort.studies] == ["a", "b"]
    assert "3 rows of 2 studies" in cohort.notes[0]
    assert ["2 rows for one study (rows 2, 4)" in f.found for f in cohort.faults if f.check == "duplicate_study"] == [
        True
    ]


@pytest.mark.parametrize(
    ("separator", "words"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (";excel", "semicolons")]
)
def test_the_separator_is_told_by_the_header_and_decimal_commas_are_read(
    tmp_path: Path, separator: str, words: str
) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path, dtype=str).assign(age_years=["51,5", "60"], **{"volume (ml, total)": ["3,25", ""]})
    frame.to_csv(path, index=False, sep=separator[0])
    if separator.endswith("excel"):
        path.write_text("sep=;\n" + path.read_text())
    cohort = read(Table(table=path))
    assert [study.age_years for study in cohort.studies] == [51.5, 60.0]
    assert cohort.studies[0].carried["volume (ml, total)"] == "3.25"
    assert f"separated by {words}, decimal commas in 'age_years'" in cohort.notes[0]


def test_an_excel_table_is_read_with_its_leading_zeros(tmp_path: Path) -> None:
    path = table_cohort(tmp_path).with_suffix(".xlsx")
    book = openpyxl.Workbook()
    book.active.append(["study_id", "patient_id", "idh", "age_years", "FLAIR"])
    book.active.append([12, "0012", "wildtype", 51.5, "images/a_flair.nii.gz"])
    book.active["A2"].number_format = "0000"
    book.save(path)
    (study,) = read(Table(table=path)).studies
    assert (study.study_id, study.patient_id, study.age_years) == ("0012", "0012", 51.5)


def test_of_an_excel_file_the_sheet_with_the_studies_is_read(tmp_path: Path) -> None:
    path = table_cohort(tmp_path).with_suffix(".xlsx")
    book = openpyxl.Workbook()
    book.active.title = "readme"
    book.active.append(["Please read", "before use"])
    sheet = book.create_sheet("data")
    sheet.append(["Case ID", "idh", "FLAIR"])
    sheet.append(["A1", "wildtype", "images/a_flair.nii.gz"])
    book.save(path)
    cohort = read(Table(table=path))
    assert [study.study_id for study in cohort.studies] == ["A1"]
    assert "Excel sheet 'data'; other sheets are not read: readme" in cohort.notes[0]
    sheet["A1"] = "Fall"
    book.save(path)
    with pytest.raises(
        CohortError, match=r"'Please read', 'before use'. This is Excel sheet 'readme'; .* data: put the"
    ):
        Table(table=path).read()


def test_a_parquet_table_whose_numbered_index_has_a_name_names_its_studies(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    frame = pd.read_csv(path).drop(columns=["study_id", "patient_id"], errors="ignore")
    frame.index = pd.RangeIndex(len(frame), name="study_id")
    frame.to_parquet(path.with_suffix(".parquet"))
    cohort = read(Table(table=path.with_suffix(".parquet")))
    assert [study.study_id for study in cohort.studies] == ["0", "1"]


def test_identifiers_keep_their_zeros_and_underscores(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(study_id=["0012", "12_1"], patient_id=["1e3", "007"]).to_csv(path, index=False)
    cohort = read(Table(table=path, exclude=["12_1"]))
    assert [(study.study_id, study.patient_id) for study in cohort.studies] == [("0012", "1e3")]
    assert [exclusion.study_id for exclusion in cohort.exclusions] == ["12_1"]


# What is missing altogether


def test_a_table_without_the_label_column_names_file_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "study_id,FLAIR\na,a.nii\n")
    with pytest.raises(
        CohortError, match=r"t.csv: no column 'idh' \(idh\); found 'study_id', 'FLAIR'. .*cohort.columns.idh"
    ):
        Table(table=path).read()


def test_a_column_that_the_user_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column 'Alter' \(age_years\)"):
        Table(table=table_cohort(tmp_path), columns={"age_years": "Alter"}).read()


def test_a_table_without_any_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column 'FLAIR' \(FLAIR\), 'T1' \(T1\)"):
        Table(table=write(tmp_path / "t.csv", "study_id,idh\na,mutant\n")).read()


def test_a_sequence_that_is_asked_for_must_have_a_column(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column 'T2' \(T2\)"):
        Table(table=table_cohort(tmp_path), sequences=["FLAIR", "T2"]).read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"study_id,idh,idh\na,mutant,wildtype\n", "column 'idh' occurs more than once"),
        ("t.csv", b"", "cannot be read as a table"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read as a table"),
        ("t.csv", "study_id,idh\nä,mutant\n".encode("utf-16"), "cannot be read as a table .*UTF-8"),
        ("t.csv", "study_id,idh\nä,mutant\n".encode("latin-1"), "cannot be read as a table .*UTF-8"),
        ("t.csv", b"study_id,idh,age\na,mutant,51,5\n", "in quotes where they hold the separator"),
        ("t.parquet", b"PAR1 not really", "cannot be read as a table"),
        ("t.ods", b"", "a table of kind '.ods'; expected .csv, .tsv, .xlsx or .parquet"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CohortError, match=message):
        Table(table=tmp_path / name).read()


def test_a_missing_table_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"none.csv: no such file.*cohort.table"):
        Table(table=tmp_path / "none.csv").read()
    copy = write_ucsf_cohort(tmp_path)
    copy.save()
    with pytest.raises(CohortError, match=r"none: no such folder.*cohort.folder"):
        UCSFPDGM(folder=tmp_path / "none", table=tmp_path / "metadata.csv").read()


def test_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\ufeffstudy_id , idh\n\n a , mutant \n,\n")
    table = read_spreadsheet(path)
    assert table.to_dict("index") == {3: {"study_id": "a", "idh": "mutant"}}


# Settings


def test_wrong_settings_are_refused_when_the_reader_is_made() -> None:
    with pytest.raises(ConfigError, match=r"cohort.sequences: \['T3'\]"):
        Table(table="t.csv", sequences=["T3"])
    with pytest.raises(ConfigError, match=r"cohort.columns: \['weight'\]"):
        Table(table="t.csv", columns={"weight": "kg"})
    with pytest.raises(ConfigError, match=r"cohort.missing: 'mean'"):
        Table(table="t.csv", missing="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cohort.exclude: 'P1'; expected a list"):
        Table(table="t.csv", exclude="P1")


LEAKS = [
    "IDH", "Final pathologic diagnosis (WHO 2021)", "1p/19q", "WHO CNS Grade", "grade", "MGMT status", "OS", "EOR",
    "1-dead 0-alive", "Survival_from_surgery_days_UPDATED", "GTR resection", "Biopsy prior to imaging",
]  # fmt: skip


@pytest.mark.parametrize("column", LEAKS)
@pytest.mark.parametrize("role", ["age_years", "sex"])
def test_a_column_that_gives_the_label_away_cannot_play_age_or_sex(column: str, role: str) -> None:
    with pytest.raises(ConfigError, match=r"gives the label away"):
        Table(table="t.csv", columns={role: column})


@pytest.mark.parametrize("column", ["Age at MRI", "Age_at_scan_years", "age_at_diagnosis", "age", "Alter"])
def test_columns_with_ages_can_play_age(column: str) -> None:
    assert Table(table="t.csv", columns={"age_years": column}).column("age_years") == column


def test_columns_that_leak_are_carried_and_found_nowhere_else(tmp_path: Path) -> None:
    copy = write_ucsf_cohort(tmp_path)
    leaks = {"Final pathologic diagnosis (WHO 2021)", "1p/19q", "MGMT status", "WHO CNS Grade", "OS", "EOR"}
    for column in leaks:
        copy.table[column] = f"LEAK {column}"
    for study in read(copy.reader()).studies:
        assert leaks == set(study.carried)
        model_sees: dict[str, Any] = {f.name: getattr(study, f.name) for f in fields(study) if f.name != "carried"}
        assert "LEAK" not in repr(model_sees)
        assert set(study.files) <= set(SEQUENCES)
        assert all(isinstance(path, Path) for path in study.files.values())
        assert study.sex in ("F", "M", None)
        assert study.age_years is None or 0 <= study.age_years <= 120


# Several sources


def test_the_site_of_a_study_is_that_of_its_table_else_its_source(tmp_path: Path) -> None:
    one = "study_id,patient_id,idh,FLAIR,site\nS0,P0,mutant,0.nii,Utrecht\nS1,P1,mutant,1.nii,\n"
    write(tmp_path / "one.csv", one)
    write(tmp_path / "two.csv", "study_id,patient_id,idh,FLAIR\nS2,P2,wildtype,2.nii\n")
    for number in range(3):
        touch(tmp_path / f"{number}.nii")
    cohort = read(Combined(readers={name: Table(table=tmp_path / f"{name}.csv") for name in ("one", "two")}))
    assert [study.carried["site"] for study in cohort.studies] == ["Utrecht", "one", "two"]


def test_a_patient_from_two_sources_is_one_patient(tmp_path: Path) -> None:
    for source in ("one", "two"):
        write(
            tmp_path / source / "t.csv",
            "study_id,patient_id,idh,FLAIR,T2\n"
            + "S0,TCGA-DU-7294,mutant,0f.nii,0t.nii\n"
            + "".join(f"S{i},{source}{i},{('mutant', 'wildtype')[i % 2]},{i}f.nii,{i}t.nii\n" for i in range(1, 20)),
        )
        for i in range(20):
            touch(tmp_path / source / f"{i}f.nii")
            touch(tmp_path / source / f"{i}t.nii")
    two = Table(table=tmp_path / "two" / "t.csv", sequences=["FLAIR"])
    cohort = read(Combined(readers={"one": Table(table=tmp_path / "one" / "t.csv"), "two": two}))
    assert cohort.sequences == ("FLAIR",)
    assert {study.study_id for study in cohort.studies} == {f"{s}-S{i}" for s in ("one", "two") for i in range(20)}
    assert {study.carried["cohort"] for study in cohort.studies} == {"one", "two"}
    assert all(study.carried["site"] == study.carried["cohort"] for study in cohort.studies)
    shared = [study for study in cohort.studies if study.patient_id == "TCGA-DU-7294"]
    assert [(study.study_id, study.follow_up) for study in shared] == [("one-S0", False), ("two-S0", True)]
    assert {"patient_in_two_places", "unused_sequence"} <= {fault.check for fault in cohort.faults}
    allowed = read(Combined(readers={"one": Table(table=tmp_path / "one" / "t.csv"), "two": two}, missing="zero"))
    assert allowed.sequences == ("FLAIR", "T2")
    assert {s.carried["cohort"]: tuple(s.files) for s in allowed.studies} == {"one": ("FLAIR", "T2"), "two": ("FLAIR",)}
    assert "unused_sequence" not in {fault.check for fault in allowed.faults}
    for seed in range(20):
        table = HoldOut(seed=seed)(cohort)
        assert table[table["patient_id"] == "TCGA-DU-7294"]["split"].nunique() == 1
        by_site = table[table["split"] == "test"].groupby(["cohort", "label"]).size()
        assert len(by_site) == 4


def test_labels_in_conflict_between_sources_are_errors(tmp_path: Path) -> None:
    readers = {}
    for source, label in (("one", "mutant"), ("two", "wildtype")):
        touch(tmp_path / source / "f.nii")
        path = write(tmp_path / source / "t.csv", f"study_id,patient_id,idh,FLAIR\n{source},P,{label},f.nii\n")
        readers[source] = Table(table=path)
    with pytest.raises(CohortError, match=r"one patient with two labels: one mutant, two wildtype"):
        read(Combined(readers=readers))


def test_what_to_paste_for_a_source_of_a_combination_names_its_place(tmp_path: Path) -> None:
    path = table_cohort(tmp_path)
    pd.read_csv(path).assign(idh=["wildtype", "positive"]).to_csv(path, index=False)
    faults = Combined(readers={"lgg": Table(table=path)}).read().faults
    assert [
        "'cohort.readers.lgg.vocabulary={positive: mutant}'" in f.remedy for f in faults if f.severity == "error"
    ] == [True]
    with pytest.raises(CohortError, match=r"Correct cohort.readers.lgg.table"):
        Combined(readers={"lgg": Table(table=tmp_path / "none.csv")}).read()


def two_tables(tmp_path: Path, one: str, two: str, **settings: Any) -> dict[str, Reader]:
    """Readers of two sources, each row a study, its patient and its label."""
    readers: dict[str, Reader] = {}
    for source, rows in (("one", one), ("two", two)):
        touch(tmp_path / source / "f.nii")
        lines = [f"{row},{study}.nii" for row in rows.split() for study in [row.partition(",")[0]]]
        for line in lines:
            touch(tmp_path / source / line.rpartition(",")[2])
        text = "\n".join(["study_id,patient_id,idh,FLAIR", *lines]) + "\n"
        readers[source] = Table(table=write(tmp_path / source / f"{source}.csv", text), **settings)
    return readers


def test_whom_a_combination_shows_is_left_out_by_that_name_from_any_source(tmp_path: Path) -> None:
    readers = two_tables(
        tmp_path, "S0,P,mutant S1,A,wildtype S2,B,mutant", "S0,P,wildtype T1,C,wildtype T2,C,mutant T3,D,positive"
    )
    with pytest.raises(CohortError) as refused:
        read(Combined(readers=readers))
    told = str(refused.value)
    assert "or cohort.exclude=[T1,T2,T3,one-S0,two-S0]" in told.replace("'", "")
    assert "cohort.readers.two.exclude" not in told
    for names, left in (
        (["P", "C", "D"], ["S1", "S2"]),
        (["two-S0", "T1", "T3"], ["S0", "S1", "S2", "T2"]),
        (["T1", "T2", "T3", "one-S0", "two-S0"], ["S1", "S2"]),
    ):
        cohort = read(Combined(readers=readers, exclude=names))
        assert sorted(study.study_id.rpartition("-")[2] for study in cohort.studies) == left
        assert {exclusion.reason for exclusion in cohort.exclusions} == {"listed in cohort.exclude"}
        assert len(cohort.exclusions) == 7 - len(left)
    with pytest.raises(ConfigError, match=r"Write .cohort.exclude=\[P\]"):
        Combined(readers=readers, exclude="P")


def test_a_name_that_a_combination_does_not_show_is_refused_with_those_that_it_shows(tmp_path: Path) -> None:
    readers = two_tables(tmp_path, "S0,P,mutant S1,A,wildtype", "S0,Q,mutant T1,C,positive")
    faults = Combined(readers=readers, exclude=["S0"]).read().faults
    unused = next(fault for fault in faults if fault.check == "unused_exclusion")
    assert (unused.where, unused.remedy) == ("cohort.exclude", "Did you mean 'one-S0' or 'two-S0'?")
    own = two_tables(tmp_path, "S0,P,mutant S1,A,wildtype", "S0,Q,mutant T1,C,wildtype", exclude=["S9"])
    places = [fault.where for fault in Combined(readers=own).read().faults if fault.check == "unused_exclusion"]
    assert places == ["cohort.readers.one.exclude", "cohort.readers.two.exclude"]


def test_the_place_of_a_fault_names_its_study_as_the_combination_does(tmp_path: Path) -> None:
    readers = two_tables(tmp_path, "S0,P,mutant", "S0,Q,positive")
    faults = [fault for fault in Combined(readers=readers).read().faults if fault.check == "unknown_label"]
    assert [fault.where for fault in faults] == ["two.csv, study two-S0"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("one.exclude=P", "Write 'cohort.readers.one.exclude=[P]'"),
        ("one.columns.age_years=grade", "cohort.readers.one.columns.age_years: column 'grade'"),
        ("one.target=lost", "cohort.readers.one.target=lost 'cohort.readers.one.classes=[lost,kept]'"),
        ("two.patients=3", "Change cohort.readers.two.patients."),
    ],
)
def test_a_wrong_setting_of_a_source_is_named_where_it_stands(setting: str, told: str) -> None:
    sources = [
        "+cohort@cohort.readers.one=table",
        "cohort.readers.one.table=x.csv",
        "+cohort@cohort.readers.two=phantom",
    ]
    config = composed("train", as_text(["cohort=combined", *sources, f"cohort.readers.{setting}"]))
    with pytest.raises(ConfigError) as refused:
        instantiate_section(config.cohort)
    assert told in str(refused.value)


@pytest.mark.parametrize("word", ["NA", "unknown", "--", "NULL"])
def test_a_word_for_nothing_is_no_patient(tmp_path: Path, word: str) -> None:
    reader = two_tables(tmp_path, f"S0,{word},mutant S1,{word},wildtype S2,P,mutant", "T0,Q,mutant")["one"]
    cohort = reader.read()
    assert {fault.study_id for fault in cohort.faults if fault.check == "no_patient"} == {"S0", "S1"}
    assert [study.study_id for study in cohort.studies] == ["S2"]
    ucsf = write_ucsf_cohort(tmp_path / "ucsf", 5)
    ucsf.table["person"] = word
    cohort = ucsf.reader(columns={"patient_id": "person"}).read()
    assert len({study.patient_id for study in cohort.studies}) == 5


def test_a_combination_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort.readers: none"):
        Combined(readers={}).read()
    path = table_cohort(tmp_path)
    readers = {"one": Table(table=path, sequences=["FLAIR"]), "two": Table(table=path, sequences=["T1"])}
    with pytest.raises(CohortError, match=r"one has FLAIR; two has T1; expected a common sequence"):
        Combined(readers=readers).read()


# The configuration and the shape of the code


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_keys_of_a_configuration_file_are_the_arguments_of_its_class(name: str) -> None:
    section = yaml.safe_load((CONF_DIR / "cohort" / f"{name}.yaml").read_text())
    assert section.pop("_target_") == f"idh_lightning.cohort.{LAYOUTS[name].__name__}"
    assert set(section) == {f.name for f in fields(LAYOUTS[name])}
    assert section["name"] == name
    if name != "combined":
        roles = {role: text or "" for role, text in section["columns"].items()}
        assert roles == LAYOUTS[name].default_columns  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "combined"])
def test_a_layout_is_a_class_of_less_than_sixty_lines(name: str) -> None:
    assert len(inspect.getsource(LAYOUTS[name]).splitlines()) < 60
