"""The real table and the real studies that IDH_REAL_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from idh_lightning.cohort import SEQUENCES, UCSFPDGM, BraTS, Cohort, Combined, HoldOut, KFold, Table, raise_or_exclude

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def real() -> Path:
    return Path(os.environ["IDH_REAL_DATA"])


def folder_stem(text: str) -> str:
    """Return the name of a folder before `_nifti`: rows of first studies lack a zero, those of follow-ups do not."""
    return text if "_FU" in text else text.replace("UCSF-PDGM-", "UCSF-PDGM-0")


@pytest.fixture(scope="module")
def ucsf_images(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an empty file for each image of UCSF-PDGM, named from the numbers alone."""
    root = tmp_path_factory.mktemp("ucsf")
    for text in pd.read_csv(real / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv")["ID"]:
        stem = folder_stem(text)
        (root / f"{stem}_nifti").mkdir()
        for what in (*SEQUENCES, "tumor_segmentation"):
            (root / f"{stem}_nifti" / f"{stem}_{what}.nii.gz").touch()
    return root


def brats(real: Path, year: int) -> BraTS:
    return BraTS(folder=real / f"brats{year}", table=real / "labels.csv")


def read(reader: UCSFPDGM | BraTS | Table | Combined) -> Cohort:
    return raise_or_exclude(reader.read(), on_error="raise")


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_ucsf_table_meets_its_folders_in_any_order_of_its_rows(
    real: Path, ucsf_images: Path, tmp_path: Path, seed: int | None
) -> None:
    rows = pd.read_csv(real / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv", dtype=str, keep_default_na=False)
    if seed is not None:
        rows = rows.sample(frac=1, random_state=seed)
    rows.to_csv(tmp_path / "t.csv", index=False)
    cohort = read(UCSFPDGM(folder=ucsf_images, table=tmp_path / "t.csv"))

    labels = {folder_stem(text): idh != "wildtype" for text, idh in zip(rows["ID"], rows["IDH"], strict=True)}
    assert {study.study_id: bool(study.label) for study in cohort.studies} == labels
    assert len(cohort.studies) == 501
    assert len({study.patient_id for study in cohort.studies}) == 495
    assert [sum(study.label == label for study in cohort.studies) for label in (0, 1)] == [398, 103]
    assert sum(study.follow_up for study in cohort.studies) == 6
    for study in cohort.studies:
        assert {path.parent.name for path in study.files.values()} == {f"{study.study_id}_nifti"}
        assert "IDH" not in study.carried


@pytest.mark.parametrize(
    ("target", "excluded", "negative", "positive"),
    [("mgmt", 85, 114, 302), ("codeletion_1p19q", 97, 395, 9), ("grade4", 0, 99, 402)],
)
def test_the_ucsf_table_tells_every_target(
    real: Path, ucsf_images: Path, target: str, excluded: int, negative: int, positive: int
) -> None:
    """Of 1p/19q the table leaves 91 open, and six are a relative codeletion, which two astrocytomas have as well."""
    table = real / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv"
    cohort = raise_or_exclude(UCSFPDGM(folder=ucsf_images, table=table, target=target).read(), on_error="exclude")
    assert len(cohort.exclusions) == excluded
    assert [sum(study.label == label for study in cohort.studies) for label in (0, 1)] == [negative, positive]
    assert all("IDH" in study.carried for study in cohort.studies)


def test_the_brats_table_tells_the_grade(real: Path) -> None:
    columns = {"study_id": "brats2021", "patient_id": "patient"}
    reader = BraTS(folder=real / "brats2021", table=real / "brats_idh.csv", target="grade4", columns=columns)
    known = pd.read_csv(real / "brats_idh.csv", dtype=str).set_index("brats2021")["grade"]
    cohort = read(reader)
    assert {study.study_id: study.label for study in cohort.studies} == {
        name: int(known[name] == "4") for name in ("BraTS2021_00006", "BraTS2021_01483")
    }


def test_no_split_of_ucsf_ever_parts_a_follow_up_from_its_patient(real: Path, ucsf_images: Path) -> None:
    cohort = read(UCSFPDGM(folder=ucsf_images, table=real / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv"))
    patients = {study.patient_id for study in cohort.studies if study.follow_up}
    for seed in range(20):
        table = HoldOut(seed=seed)(cohort)
        assert table[table["patient_id"].isin(patients)].groupby("patient_id")["split"].nunique().max() == 1
        assert table.drop_duplicates("patient_id")["split"].value_counts().to_dict() == {
            "train": 347, "validation": 74, "test": 74,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("year", "expected"),
    [
        (2018, [("Brats18_TCIA01_201_1", "TCGA-02-0034", 0), ("Brats18_TCIA02_135_1", "TCGA-06-0187", 0),
                ("Brats18_TCIA10_637_1", "TCGA-DU-A6S8", 1)]),
        (2021, [("BraTS2021_00006", "UCSF-PDGM-0116", 0), ("BraTS2021_01483", "TCGA-CS-6665", 1)]),
        (2023, [("BraTS-GLI-00001-000", "UCSF-PDGM-0096", 0), ("BraTS-GLI-00012-000", "UCSF-PDGM-0061", 1)]),
    ],
)  # fmt: skip
def test_the_brats_studies_of_every_year_load(real: Path, year: int, expected: list[tuple[str, str, int]]) -> None:
    cohort = read(brats(real, year))
    assert [(study.study_id, study.patient_id, study.label) for study in cohort.studies] == expected
    assert cohort.sequences == SEQUENCES
    assert [study.study_id for study in cohort.studies if study.mask is None] == ["BraTS-GLI-00001-000"][: year == 2023]


def test_the_ucsf_table_labels_brats_studies_as_their_own_table_does(real: Path) -> None:
    columns = {"study_id": "BraTS21 ID", "patient_id": "ID", "idh": "IDH", "age_years": "Age at MRI", "sex": "Sex"}
    table = real / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv"
    by_ucsf = read(BraTS(folder=real / "brats2023", table=table, columns=columns))
    assert [(s.study_id, s.patient_id, s.label) for s in by_ucsf.studies] == [
        (s.study_id, s.patient_id, s.label) for s in read(brats(real, 2023)).studies
    ]
    assert all(study.age_years and study.sex for study in by_ucsf.studies)


def test_the_tcga_table_loads_without_any_setting(real: Path) -> None:
    cohort = read(Table(table=real / "tcga_lgg" / "cohort.csv"))
    assert cohort.sequences == ("FLAIR", "T1", "T1c")
    assert [sum(study.label == label for study in cohort.studies) for label in (0, 1)] == [12, 41]
    assert all(study.mask for study in cohort.studies)


def test_the_patient_who_is_in_two_sources_is_held_to_one_split(real: Path, tmp_path: Path) -> None:
    single = real / "single" / "TCGA-DU-7294"
    paths = ",".join(str(single / f"TCGA-DU-7294_{what}.nii.gz") for what in (*SEQUENCES, "tumor_segmentation"))
    path = tmp_path / "single.csv"
    path.write_text(
        f"study_id,patient_id,idh,{','.join(SEQUENCES)},tumor_segmentation\nTCGA-DU-7294,TCGA-DU-7294,mutant,{paths}\n"
    )
    years = {f"brats{year}": brats(real, year) for year in (2018, 2021, 2023)}
    readers = {"lgg": Table(table=real / "tcga_lgg" / "cohort.csv"), "single": Table(table=path), **years}
    cohort = read(Combined(readers=readers))
    assert len(cohort.studies) == 53 + 1 + 7
    twice = [study.study_id for study in cohort.studies if study.patient_id == "TCGA-DU-7294"]
    assert twice == ["lgg-TCGA-DU-7294", "single-TCGA-DU-7294"]
    for fold in range(5):
        table = KFold(seed=0, fold=fold)(cohort).set_index("study_id")
        assert table.at[twice[0], "split"] == table.at[twice[1], "split"]
