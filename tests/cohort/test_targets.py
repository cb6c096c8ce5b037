"""Targets other than IDH: their columns and words in every layout, and what leaks nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cohort_files import write_ucsf_cohort

from idh_lightning.cohort import (
    EGD,
    IDH,
    TARGETS,
    UPENNGBM,
    Cohort,
    Combined,
    HoldOut,
    Reader,
    Table,
    Target,
    cohort_flow,
    cohort_table,
    raise_or_exclude,
    target_of,
)
from idh_lightning.errors import CohortError, ConfigError, SplitError
from idh_lightning.phantom.groups import CLINICAL_COLUMNS, draw_patients, list_studies

SPELLINGS = {
    "mgmt": (["Unmethylated", "not methylated", "MGMT unmethylated"], ["methylated", "MGMT methylated", "METHYLATED "]),
    "codeletion_1p19q": (
        ["intact", "non-codeleted", "Non-codel", "not co-deleted", "1p/19q intact"],
        ["codeleted", "co-deletion", "Codel", "1p/19q co-deleted"],
    ),
    "grade4": (["2", "3", "II", "grade 3", "WHO grade II"], ["4", "IV", "Grade 4", "WHO IV", "WHO grade 4"]),
}


def table_of(root: Path, column: str, words: list[str], **further: list[str]) -> Path:
    """Write a table with one study per word, and an empty file for each."""
    for number in range(len(words)):
        (root / f"{number}.nii").touch()
    names = [str(number) for number in range(len(words))]
    files = [f"{name}.nii" for name in names]
    frame = pd.DataFrame({"study_id": [f"S{name}" for name in names], column: words, **further, "FLAIR": files})
    frame.to_csv(root / "t.csv", index=False)
    return root / "t.csv"


def read(reader: Reader | Combined) -> Cohort:
    return raise_or_exclude(reader.read(), on_error="raise")


@pytest.mark.parametrize(
    ("name", "label", "text"),
    [(name, label, text) for name, both in SPELLINGS.items() for label, texts in enumerate(both) for text in texts],
)
def test_the_spellings_of_a_target_have_their_class(name: str, label: int, text: str) -> None:
    assert TARGETS[name].label_of(text) == label


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "text", ["unknown", "indeterminate", "", "n/a", "-1", "0", "1", "positive", "negative", "maybe"]
)
def test_what_leaves_a_target_open_is_no_class(name: str, text: str) -> None:
    with pytest.raises(CohortError, match="Correct the table"):
        TARGETS[name].label_of(text)


def test_a_grade_that_is_none_of_a_diffuse_glioma_of_adults_and_a_relative_codeletion_are_refused() -> None:
    for name, text in (("grade4", "1"), ("grade4", "5"), ("codeletion_1p19q", "relative co-deletion")):
        with pytest.raises(CohortError):
            TARGETS[name].label_of(text)


def test_no_two_classes_of_a_target_share_a_spelling_and_each_class_is_one_of_its_own() -> None:
    for target in TARGETS.values():
        assert [target.label_of(name) for name in target.classes] == [0, 1]
        assert not target.undecided & target.vocabulary.keys()


@pytest.mark.parametrize(("name", "column"), [("mgmt", "MGMT status"), ("codeletion_1p19q", "1p/19q")])
def test_with_another_target_idh_is_carried_and_is_no_covariate(tmp_path: Path, name: str, column: str) -> None:
    copy = write_ucsf_cohort(tmp_path)
    negative, positive = ("negative", "positive") if name == "mgmt" else ("intact", "co-deletion")
    copy.table[column] = [negative, positive] * 6 + [negative]
    copy.save()
    cohort = read(copy.reader(target=name))
    assert cohort.target == TARGETS[name]
    assert {study.study_id: study.label for study in cohort.studies}["UCSF-PDGM-0002"] == 1
    for study in cohort.studies:
        assert column not in study.carried
        assert study.carried["IDH"] in ("wildtype", "IDH1 p.R132H")
    listed = cohort_table(cohort, HoldOut(validation=0.3, test=0.3, seed=0)(cohort))
    assert column not in listed
    assert set(listed["IDH"]) == {"wildtype", "IDH1 p.R132H"}
    assert set(cohort_flow(cohort)["label"]) == {"", *TARGETS[name].classes}
    for role in ("age_years", "sex"):
        with pytest.raises(ConfigError, match="gives the label away"):
            copy.reader(target=name, columns={role: "IDH"})


def test_positive_is_methylated_in_the_table_of_ucsf_alone(tmp_path: Path) -> None:
    path = table_of(tmp_path, "MGMT", ["positive", "unmethylated"])
    (fault,) = [one for one in Table(table=path, target="mgmt").read().faults if one.check == "unknown_label"]
    assert "'cohort.vocabulary={positive: methylated}'" in fault.remedy
    cohort = read(Table(table=path, target="mgmt", vocabulary={"positive": "methylated"}))
    assert [study.label for study in cohort.studies] == [1, 0]


def test_numbers_are_a_class_where_the_layout_or_the_vocabulary_says_so(tmp_path: Path) -> None:
    path = table_of(tmp_path, "mgmt", ["0", "1"])
    faults = Table(table=path, target="mgmt").read().faults
    assert sum("'cohort.vocabulary={0: unmethylated, 1: methylated}'" in fault.remedy for fault in faults) == 2
    folder = tmp_path / "SUBJECTS"
    for number in (1, 2, 3):
        for what in ("FLAIR", "T1", "T1GD", "T2", "MASK"):
            (folder / f"EGD-000{number}").mkdir(parents=True, exist_ok=True)
            (folder / f"EGD-000{number}" / f"{what}.nii.gz").touch()
    frame = pd.DataFrame(
        {
            "Subject": ["EGD-0001", "EGD-0002", "EGD-0003"],
            "IDH": ["1"] * 3,
            "1p19q": ["0", "1", "-1"],
            "Grade": list("234"),
        }
    )
    frame.to_csv(tmp_path / "egd.csv", index=False)
    egd = EGD(folder=folder, table=tmp_path / "egd.csv", target="codeletion_1p19q", on_error="exclude").read()
    assert [study.label for study in egd.studies] == [0, 1]
    assert [study.carried["IDH"] for study in egd.studies] == ["1", "1"]
    grades = read(EGD(folder=folder, table=tmp_path / "egd.csv", target="grade4"))
    assert [study.label for study in grades.studies] == [0, 0, 1]


def test_any_column_can_be_predicted_once_its_classes_are_named(tmp_path: Path) -> None:
    path = table_of(tmp_path, "ATRX", ["kept", "lost", "1"], idh=["mutant", "wildtype", "mutant"])
    cohort = read(Table(table=path, target="ATRX", classes=["kept", "lost"], vocabulary={"1": "lost"}))
    assert [study.label for study in cohort.studies] == [0, 1, 1]
    assert cohort.target.classes == ("kept", "lost")
    assert cohort.target.named(1) == "ATRX lost"
    assert [study.carried["idh"] for study in cohort.studies] == ["mutant", "wildtype", "mutant"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": "ATRX"},
            r"cohort.target: 'ATRX'; expected idh, .* cohort.target=ATRX 'cohort.classes=",
        ),
        ({"target": "MGMT"}, r"Did you mean mgmt\?"),
        ({"target": "ATRX", "classes": ["0", "1"]}, r"cohort.classes: .* neither a number"),
        ({"target": "ATRX", "classes": ["lost", "Lost"]}, r"two different words"),
        ({"target": "ATRX", "classes": ["lost", "both"]}, r"expected two different words"),
        ({"target": "ATRX", "classes": ["lost", "unknown"]}, r"expected two different words"),
        ({"target": "mgmt", "classes": ["no", "yes"]}, r"cohort.classes: .* of the target 'mgmt'"),
        ({"target": "sex", "classes": ["man", "woman"]}, r"cohort.target: 'sex' has another role"),
        ({"target": "mgmt", "vocabulary": {"x": "mutant"}}, r"expected 'unmethylated' or 'methylated'"),
    ],
)
def test_a_target_that_is_not_clear_is_refused_at_once(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(table="t.csv", **settings)  # type: ignore[arg-type]


def test_what_is_predicted_cannot_be_known_as_age_or_sex(tmp_path: Path) -> None:
    frame = {"ID": ["UPENN-GBM-00001_11"], "IDH1": ["Wildtype"], "Age_at_scan_years": ["60"], "Gender": ["F"]}
    pd.DataFrame(frame).to_csv(tmp_path / "t.csv", index=False)
    settings: dict[str, Any] = {"folder": tmp_path, "table": tmp_path / "t.csv", "classes": ["F", "M"]}
    with pytest.raises(CohortError, match=r"column 'Gender' is Gender and sex; .*cohort.columns.sex=null"):
        UPENNGBM(target="Gender", **settings).read()
    assert UPENNGBM(target="Gender", columns={"sex": ""}, **settings).read().studies == ()


def test_a_table_without_the_column_of_the_target_is_refused_by_its_name(tmp_path: Path) -> None:
    path = table_of(tmp_path, "idh", ["mutant", "wildtype"])
    with pytest.raises(CohortError, match=r"no column 'mgmt' \(mgmt\)"):
        Table(table=path, target="mgmt").read()
    with pytest.raises(CohortError, match=r"no column 'codeletion_1p19q'"):
        read(UPENNGBM(folder=tmp_path, table=path, target="codeletion_1p19q", columns={"study_id": "study_id"}))


def test_sources_of_a_combination_have_one_target(tmp_path: Path) -> None:
    path = table_of(tmp_path, "idh", ["mutant", "wildtype"], mgmt=["methylated", "unmethylated"])
    readers = {"one": Table(table=path), "two": Table(table=path, target="mgmt")}
    with pytest.raises(
        ConfigError, match=r"differ \(one: idh, wildtype or mutant; two: mgmt, .*readers.two.target=idh"
    ):
        Combined(readers=readers).read()
    turned = {
        name: Table(table=path, target="mgmt_told", classes=classes, columns={"mgmt_told": "mgmt"})
        for name, classes in (("one", ["methylated", "unmethylated"]), ("two", ["unmethylated", "methylated"]))
    }
    with pytest.raises(
        ConfigError, match=r"readers.two.target=mgmt_told 'cohort.readers.two.classes=\[methylated,unme"
    ):
        Combined(readers=turned).read()
    assert Combined(readers={"two": readers["two"]}).read().target.name == "mgmt"


def test_faults_and_splits_speak_of_the_classes_of_the_target(tmp_path: Path) -> None:
    path = table_of(tmp_path, "mgmt", ["methylated", "unmethylated"], patient_id=["P", "P"])
    with pytest.raises(CohortError, match=r"two labels: S0 methylated, S1 unmethylated; expected one MGMT promoter"):
        read(Table(table=path, target="mgmt"))
    few = table_of(tmp_path, "mgmt", ["methylated"] * 9 + ["unmethylated"])
    with pytest.raises(SplitError, match=r"1 unmethylated, 9 methylated"):
        HoldOut(seed=0)(read(Table(table=few, target="mgmt")))


def test_a_target_is_stored_in_words_and_one_that_is_not_stored_is_idh() -> None:
    for target in (*TARGETS.values(), target_of("ATRX", ["kept", "lost"])):
        assert Target.of_record(target.to_dict()) == target
        assert set(map(type, target.to_dict().values())) == {str}
    assert Target.of_record(None) is IDH
    assert IDH.extended({"x": "mutant"}) == IDH, "another hospital's spellings make no other target"


# The phantom


def test_nothing_that_a_synthetic_image_is_drawn_from_tells_mgmt() -> None:
    patients = draw_patients(4000, seed=1)
    status = patients["MGMT status"] == "positive"
    hidden = patients.drop(columns=[c for c in CLINICAL_COLUMNS if c in patients]).select_dtypes(["number", "bool"])
    hidden = hidden.drop(columns="patient_number").astype(float)
    # The correlation of 4000 independent pairs has a standard deviation of 0.016.
    assert hidden.corrwith(status.astype(float)).abs().max() < 4 * 0.016


@pytest.mark.parametrize("name", ["mgmt", "codeletion_1p19q", "grade4"])
def test_every_synthetic_patient_has_each_label_and_codeletion_is_that_of_the_diagnosis(name: str) -> None:
    patients = draw_patients(200, seed=0)
    column = {"mgmt": "MGMT status", "codeletion_1p19q": "1p/19q", "grade4": "WHO CNS Grade"}[name]
    target = TARGETS[name].extended({"positive": "methylated", "negative": "unmethylated"} if name == "mgmt" else {})
    labels = [target.label_of(str(text)) for text in patients[column]]
    assert 0 < sum(labels) < len(labels)
    if name == "codeletion_1p19q":
        assert labels == [int("codeleted" in text) for text in patients["Final pathologic diagnosis (WHO 2021)"]]


def test_the_images_of_the_phantom_are_drawn_as_before_there_were_other_targets() -> None:
    drawn = list_studies(
        draw_patients(60, seed=3), seed=3, missing_sequence=0.2, sequences=["FLAIR", "T1", "T1c", "T2"]
    )
    assert drawn["volume_ml"].sum() == pytest.approx(4009.2)
    assert drawn["water"].sum() == pytest.approx(0.008)
    assert Counter(drawn["missing"]) == {"": 49, "T1": 2, "T1c": 5, "T2": 3, "FLAIR": 2}


@pytest.mark.parametrize("vocabulary", [{"0": False}, {False: ["0"]}, {"0": 0}, {"0": "negative"}])
def test_a_spelling_that_means_no_class_is_told_with_the_lines_to_paste(vocabulary: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected 'wildtype' or 'mutant', the names of the classes") as told:
        IDH.extended(vocabulary)
    assert "'cohort.vocabulary={0: wildtype}' or 'cohort.vocabulary={0: mutant}'" in str(told.value)
