"""One person under several names, in one cohort, in two, and in a cohort that a checkpoint has seen."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idh_lightning.cohort import (
    SEQUENCES,
    Cohort,
    Combined,
    DevelopmentPatients,
    KFold,
    Reader,
    Study,
    Table,
    raise_or_exclude,
)
from idh_lightning.cohort.aliases import Aliases, read_aliases
from idh_lightning.errors import CohortError

MAP = """\
BraTS2021,BraTS2018,Collection,Local ID,IDH,BraTS21 Segmentation Cohort
BraTS2021_00001,Brats18_TCIA01_201_1,UCSF,UCSF-PDGM-004,mutant,Training
BraTS2021_00002,,UCSF,UCSF-PDGM-005,mutant,Training
BraTS2021_00003,,TCGA,n/a,wildtype,Training
"""

MANIFEST = """\
dataset,patient_id,session_index,global_session_key,idh_status,duplicate_group_id,dedup_method,dedup_confidence
brats2020,BraTS20_Training_001,0,brats2020__BraTS20_Training_001__tp0,,dup_group_0001,seg_hash,confirmed
brats2020,BraTS20_Training_002,0,brats2020__BraTS20_Training_002__tp0,,,demographic,candidate
upenn_gbm,UPENN-GBM-00001,0,upenn_gbm__UPENN-GBM-00001__tp0,,dup_group_0001,seg_hash,confirmed
upenn_gbm,UPENN-GBM-00002,0,upenn_gbm__UPENN-GBM-00002__tp0,,,demographic,candidate
"""


def table(folder: Path, rows: dict[str, tuple[str, str]], **settings: object) -> Table:
    """Reader of studies {study: (patient, status)}, each with an empty FLAIR."""
    folder.mkdir(exist_ok=True)
    lines = ["study_id,patient_id,idh,FLAIR"]
    for study, (patient, status) in rows.items():
        (folder / f"{study}.nii").touch()
        lines.append(f"{study},{patient},{status},{study}.nii")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return Table(table=folder / "cohort.csv", **settings)  # type: ignore[arg-type]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def persons(cohort: Cohort) -> dict[str, str]:
    return {study.study_id: study.patient_id for study in cohort.studies}


@pytest.fixture
def two_sources(tmp_path: Path) -> dict[str, Reader]:
    one = {"Brats18_TCIA01_201_1": ("Brats18_TCIA01_201", "mutant"), "x": ("X", "wildtype")}
    two = {"a": ("UCSF-PDGM-0004", "mutant"), "b": ("UCSF-PDGM-0005", "mutant"), "c": ("UCSF-PDGM-0006", "wildtype")}
    return {"one": table(tmp_path / "one", one), "two": table(tmp_path / "two", two)}


def test_a_person_in_two_collections_is_one_patient_who_has_a_first_study(
    tmp_path: Path, two_sources: dict[str, Reader]
) -> None:
    apart = Combined(readers=two_sources).read()
    assert len(set(persons(apart).values())) == 5
    cohort = Combined(readers=two_sources, aliases=written(tmp_path / "map.csv", MAP)).read()
    assert persons(cohort) == {
        "Brats18_TCIA01_201_1": "UCSF-PDGM-0004", "x": "X", "a": "UCSF-PDGM-0004", "b": "UCSF-PDGM-0005",
        "c": "UCSF-PDGM-0006",
    }  # fmt: skip
    assert [study.study_id for study in cohort.studies if study.follow_up] == ["a"]
    assert "map.csv: 2 persons under several names, in BraTS2021, BraTS2018, Local ID." in cohort.notes
    assert [fault.check for fault in cohort.faults if fault.patient_id] == [
        *["missing_mask"] * 5, "patient_in_two_places",
    ]  # fmt: skip


def test_two_labels_of_one_person_are_a_conflict_and_the_name_in_the_message_leaves_all_out(tmp_path: Path) -> None:
    rows = {"a": ("BraTS2021_00001", "mutant"), "b": ("UCSF-PDGM-0004", "wildtype"), "c": ("Z", "mutant")}
    rows |= {"d": ("Y", "wildtype")}
    aliases = written(tmp_path / "map.csv", MAP)
    cohort = table(tmp_path / "t", rows, aliases=aliases).read()
    conflict = [fault for fault in cohort.faults if fault.check == "label_conflict"]
    assert [fault.study_id for fault in conflict] == ["a", "b"]
    assert "patient BraTS2021_00001" in conflict[0].where
    for name in ("BraTS2021_00001", "UCSF-PDGM-004", "Brats18_TCIA01_201_1"):  # the last is in the map alone
        left = raise_or_exclude(table(tmp_path / "t", rows, aliases=aliases, exclude=[name]).read(), on_error="raise")
        assert persons(left) == {"c": "Z", "d": "Y"}
        assert {e.study_id: e.patient_id for e in left.exclusions} == dict.fromkeys("ab", "BraTS2021_00001")
    one = table(tmp_path / "t", rows, aliases=aliases, exclude=["b"]).read()
    assert persons(one) == {"a": "BraTS2021_00001", "c": "Z", "d": "Y"}


def test_a_manifest_of_gliostitch_joins_what_is_confirmed_and_no_candidate(tmp_path: Path) -> None:
    aliases = read_aliases(written(tmp_path / "master_manifest.csv", MANIFEST))
    assert aliases.rows == [["BraTS20_Training_001", "UPENN-GBM-00001"]]


@given(
    st.lists(st.lists(st.sampled_from("ABCDEFGH"), min_size=1, max_size=3, unique=True), max_size=6),
    st.lists(st.sampled_from("ABCDEFGH"), min_size=1, unique=True),
)
def test_persons_are_the_connected_names(rows: list[list[str]], patients: list[str]) -> None:
    reached = {name: {name} for name in "ABCDEFGH"}
    for _, row in itertools.product(range(8), rows):
        joined = set().union(*(reached[name] for name in row))
        for name in joined:
            reached[name] = joined | reached[name]
    studies = [Study(study_id=f"of {name}", patient_id=name, label=0, files={}) for name in patients]
    found = Aliases(rows=rows).persons(studies)
    assert {name: set(names) for name, names in found.items()} == {name: reached[name] for name in patients}
    for name, names in found.items():
        assert names[0] in patients
        assert all(found[other] == names for other in reached[name] & set(patients))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("BraTS2021,grade\nBraTS2021_00001,4\n", "columns of names: BraTS2021 among 'BraTS2021', 'grade'"),
        ("a_id,b_id\n12,X\nY,12\n", "12 stands in 'b_id', elsewhere in 'a_id'"),
        ("a_id,site_id\n" + "".join(f"P{n},X\n" for n in range(12)), "'X' in 'site_id' goes with 11 or more in 'a_id'"),
        ("a_id,b_id\n" + "".join(f"no,P{n}\n" for n in range(12)), "'no' in 'a_id' goes with 11 or more in 'b_id'"),
    ],
)
def test_a_table_that_names_nobody_or_joins_by_bare_numbers_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path / "map.csv", text)
    with pytest.raises(CohortError, match=r"map\.csv") as caught:
        read_aliases(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "word", ["NULL", "--", "TBD", "n/a", "N.A.", "unknown", "None", "#N/A", "...", "not applicable"]
)
def test_a_word_for_nothing_joins_nobody(tmp_path: Path, word: str) -> None:
    text = "a_id,b_id\n" + "".join(f"P{n},{word}\n" for n in range(4)) + "P5,Q5\n"
    assert read_aliases(written(tmp_path / "map.csv", text)).rows == [["P5", "Q5"]]
    manifest = "patient_id,duplicate_group_id\n" + "".join(f"P{n},{word}\n" for n in range(4))
    assert read_aliases(written(tmp_path / "manifest.csv", manifest)).rows == []


def test_a_name_that_joins_more_than_a_handful_is_told(tmp_path: Path) -> None:
    def told(number: int) -> list[str]:
        text = "a_id,b_id\n" + "".join(f"P{n},later\n" for n in range(number))
        rows = {f"s{n}": (f"P{n}", "mutant") for n in range(number)}
        cohort = table(tmp_path / "t", rows, aliases=written(tmp_path / "map.csv", text)).read()
        return [fault.found for fault in cohort.faults if fault.check == "many_aliases"]

    assert told(4) == []
    assert told(5) == ["'later' joins 5 names in 'a_id': P0, P1, P2, P3, P4"]


def test_a_table_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "map.csv", MAP)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_aliases("~/map.csv").rows) == 2


def test_a_table_of_which_no_name_occurs_is_told(tmp_path: Path) -> None:
    rows = {"a": ("A", "mutant"), "b": ("B", "wildtype")}
    cohort = table(tmp_path / "t", rows, aliases=written(tmp_path / "map.csv", MAP)).read()
    told = [fault.found for fault in cohort.faults if fault.check == "unused_aliases"]
    assert len(told) == 1
    assert told[0].endswith("in BraTS2021, BraTS2018, Local ID. None of the 2 patients is among them")
    combined = Combined(readers={"one": table(tmp_path / "t", rows, aliases=tmp_path / "map.csv")}).read()
    assert [fault.where for fault in combined.faults if fault.check == "unused_aliases"] == [
        "cohort.readers.one.aliases"
    ]


@pytest.mark.parametrize(("known_then", "known_now"), [(True, False), (False, True)])
def test_a_checkpoint_knows_a_person_by_any_name(tmp_path: Path, known_then: bool, known_now: bool) -> None:
    aliases = written(tmp_path / "map.csv", MAP)
    old = table(tmp_path / "o", {"a": ("BraTS2021_00001", "mutant")}, aliases=aliases if known_then else None).read()
    new = {"b": ("UCSF-PDGM-004", "mutant"), "c": ("UCSF-PDGM-005", "mutant")}
    later = table(tmp_path / "n", new, aliases=aliases if known_now else None).read()
    seen = DevelopmentPatients.of(old.studies, {"a": "train"}, {"a": []})
    assert [one.study.study_id for one in seen.find(later.studies, {"b": [], "c": []})] == ["b"]


@pytest.mark.real
@pytest.mark.parametrize("source", ["brats_idh.csv", "ucsf_pdgm/UCSF-PDGM-metadata_v5.csv"])
def test_the_real_maps_join_brats_with_ucsf(tmp_path: Path, source: str) -> None:
    real = Path(os.environ["IDH_REAL_DATA"])
    labels = pd.read_csv(real / "brats_idh.csv", dtype=str, keep_default_na=False)
    numbers = labels[labels["patient"].str.startswith("UCSF") & (labels["idh"] != "")]
    readers: dict[str, Reader] = {}
    for name, ids in (("brats", numbers["brats2021"]), ("ucsf", numbers["patient"])):
        rows = {text: (text, idh) for text, idh in zip(ids, numbers["idh"], strict=True)}
        readers[name] = table(tmp_path / name, rows)
    cohort = raise_or_exclude(Combined(readers=readers, aliases=real / source).read(), on_error="raise")
    found = {study.study_id: study.patient_id for study in cohort.studies}
    assert len(numbers) > 250
    assert [found[text] for text in numbers["brats2021"]] == [found[text] for text in numbers["patient"]]
    assert len(set(found.values())) == len(numbers) - 2  # BraTS has a number of its own for two follow-ups
    split = KFold(seed=0)(cohort)
    assert split.groupby("patient_id")["split"].nunique().max() == 1


@pytest.mark.real
def test_the_real_studies_of_one_person_are_one_patient(tmp_path: Path) -> None:
    """A study of TCGA-LGG by the number that BraTS gave it, beside the same patient's from another source."""
    real = Path(os.environ["IDH_REAL_DATA"])
    files = ",".join(str(real / "single" / "TCGA-DU-7294" / f"TCGA-DU-7294_{what}.nii.gz") for what in SEQUENCES)
    path = written(tmp_path / "t.csv", f"study_id,idh,{','.join(SEQUENCES)}\nBraTS2021_01500,mutant,{files}\n")
    readers: dict[str, Reader] = {"brats": Table(table=path), "lgg": Table(table=real / "tcga_lgg" / "cohort.csv")}
    cohort = Combined(readers=readers, aliases=real / "brats_idh.csv").read()
    twice = [study.study_id for study in cohort.studies if "TCGA-DU-7294" in (study.patient_id, *study.aliases)]
    assert twice == ["BraTS2021_01500", "TCGA-DU-7294"]
    assert len({study.patient_id for study in cohort.studies}) == 53
