"""Splits: patients stay together, both labels everywhere, and nothing but patients and seed decides."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from idh_lightning.cohort import (
    AllTest,
    Cohort,
    GivenSplit,
    HoldOut,
    KFold,
    LeaveSiteOut,
    Study,
    cohort_table,
    verify_split,
    without_left_out,
)
from idh_lightning.cohort.splits import SPLIT_COLUMNS, SPLITS
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import SplitError


def cohort_of(labels: list[int], follow_ups: list[int] | None = None, sites: list[str] | None = None) -> Cohort:
    """Return one patient per label, with further studies as counted in follow_ups and a site each."""
    studies = []
    for index, label in enumerate(labels):
        carried = {"site": sites[index]} if sites else {}
        for visit in range(1 + (follow_ups[index] if follow_ups else 0)):
            studies.append(
                Study(
                    study_id=f"P{index:04d}v{visit}", patient_id=f"P{index:04d}", label=label, files={},
                    age_years=40.0 + index, follow_up=visit > 0, carried=carried,
                )
            )  # fmt: skip
    return Cohort(name="test", sequences=("T1",), studies=tuple(studies))


def patients_in(table: pd.DataFrame, split: str) -> set[str]:
    return set(table["patient_id"][table["split"] == split])


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    labels = draw(st.lists(st.integers(0, 1), min_size=20, max_size=80))
    labels += [0] * 8 + [1] * 8
    follow_ups = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=len(labels), max_size=len(labels)))
    sites = draw(st.none() | st.lists(st.sampled_from("ABC"), min_size=len(labels), max_size=len(labels)))
    return cohort_of(labels, follow_ups, sites)


@settings(max_examples=40, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 2**31))
def test_a_hold_out_partitions_patients_into_parts_of_the_size_asked_for(cohort: Cohort, seed: int) -> None:
    table = HoldOut(seed=seed)(cohort)
    n = len({study.patient_id for study in cohort.studies})
    parts = {split: patients_in(table, split) for split in SPLITS}
    assert table["study_id"].tolist() == sorted(study.study_id for study in cohort.studies)
    assert sum(map(len, parts.values())) == n == len(set.union(*parts.values()))
    assert len(parts["test"]) == len(parts["validation"]) == int(0.15 * n + 0.5 + 1e-9)
    by_label = table.drop_duplicates("patient_id").groupby(["split", "label"]).size()
    for label, total in table.drop_duplicates("patient_id")["label"].value_counts().items():
        assert abs(by_label["test", label] - 0.15 * total) < 2.5  # exact to rounding, more so without sites


@settings(max_examples=10, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 2**31 - 100), folds=st.integers(2, 6), repeats=st.integers(1, 2))
def test_folds_partition_patients_once_per_repeat(cohort: Cohort, seed: int, folds: int, repeats: int) -> None:
    everyone = {study.patient_id for study in cohort.studies}
    for repeat in range(repeats):
        tested: list[str] = []
        for fold in range(repeat * folds, (repeat + 1) * folds):
            table = KFold(seed=seed, fold=fold, folds=folds, repeats=repeats)(cohort)
            verify_split(table)
            assert set(table["fold"]) == {fold}
            assert len(patients_in(table, "validation")) == int(0.15 * len(everyone) + 0.5 + 1e-9)
            tested += patients_in(table, "test")
        assert sorted(tested) == sorted(everyone)


@settings(max_examples=15, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
def test_neither_the_order_of_studies_nor_other_randomness_matters(
    cohort: Cohort, seed: int, shuffle: random.Random
) -> None:
    shuffled = list(cohort.studies)
    shuffle.shuffle(shuffled)
    other = replace(cohort, studies=tuple(shuffled))
    for split in (HoldOut(seed=seed), KFold(seed=seed, fold=1)):
        first = split(cohort)
        np.random.seed(shuffle.randrange(1000))  # global state, which must not matter
        random.seed(shuffle.random())
        pd.testing.assert_frame_equal(first, split(other))


def test_the_test_set_of_280_patients_at_15_percent_has_42() -> None:
    table = HoldOut(seed=3)(cohort_of([0] * 222 + [1] * 58))
    counts = table.groupby(["split", "label"]).size()
    assert [len(patients_in(table, split)) for split in SPLITS] == [196, 42, 42]
    assert counts["test", 1] in (8, 9)
    assert counts["validation", 1] in (8, 9)


def test_different_seeds_draw_different_patients() -> None:
    cohort = cohort_of([0, 1] * 50)
    assert len({frozenset(patients_in(HoldOut(seed=seed)(cohort), "test")) for seed in range(5)}) == 5


def test_follow_up_scans_share_the_split_of_their_patient() -> None:
    cohort = cohort_of([0, 1] * 30, follow_ups=[1] * 60)
    for seed in range(10):
        assert HoldOut(seed=seed)(cohort).groupby("patient_id")["split"].nunique().max() == 1


def test_each_site_is_represented_in_each_part() -> None:
    cohort = cohort_of([0, 1] * 60, sites=["A"] * 80 + ["B"] * 40)
    table = HoldOut(seed=0)(cohort)
    shares = table[table["split"] == "test"].groupby(["site", "label"]).size()
    assert shares.to_dict() == {("A", 0): 6, ("A", 1): 6, ("B", 0): 3, ("B", 1): 3}


def test_a_site_with_a_single_patient_joins_the_largest_one() -> None:
    cohort = cohort_of([0, 1] * 30 + [1], sites=["A"] * 60 + ["B"])
    for seed in range(5):
        verify_split(HoldOut(seed=seed)(cohort))
        verify_split(KFold(seed=seed)(cohort))


def test_the_table_has_the_agreed_columns_then_the_carried_ones() -> None:
    cohort = cohort_of([0, 1] * 20)
    studies = tuple(replace(study, carried={"grade": "4", "split": "mine"}) for study in cohort.studies)
    table = HoldOut(seed=0)(replace(cohort, studies=studies))
    assert list(table.columns) == [*SPLIT_COLUMNS, "grade", "carried_split"]
    assert set(table["carried_split"]) == {"mine"}


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.15), (0.15, 0.0), (0.5, 0.5), (-0.1, 0.2)])
def test_shares_out_of_range_are_refused(validation: float, test: float) -> None:
    with pytest.raises(SplitError, match=r"expected shares above 0"):
        HoldOut(seed=0, validation=validation, test=test)(cohort_of([0, 1] * 20))


@pytest.mark.parametrize("labels", [[0] * 30, [0] * 30 + [1], [0, 1], [], [0, 1] * 4])
def test_a_cohort_too_small_for_both_labels_in_each_part_is_refused_with_the_remedy(labels: list[int]) -> None:
    with pytest.raises(SplitError, match=r"expected .*both labels.* add patients"):
        HoldOut(seed=0)(cohort_of(labels))


def test_more_folds_than_patients_of_a_label_are_refused() -> None:
    with pytest.raises(SplitError, match=r"3 patients of one label; expected at least one for each of 5 folds"):
        KFold(seed=0)(cohort_of([0] * 30 + [1] * 3))


@pytest.mark.parametrize("setting", [{"fold": 5}, {"fold": -1}, {"folds": 1}, {"repeats": 0}])
def test_a_fold_that_does_not_exist_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(SplitError, match=r"expected at least 2 folds, 1 repeat, and 0 <= fold"):
        KFold(seed=0, **setting)(cohort_of([0, 1] * 30))


# One site left out


@settings(max_examples=15, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000), names=st.sampled_from(["AB", "ABC", "DCBA"]))
def test_each_site_is_tested_once_by_what_learnt_from_none_of_its_patients(
    cohort: Cohort, seed: int, names: str
) -> None:
    number = {patient: n for n, patient in enumerate(sorted({study.patient_id for study in cohort.studies}))}
    studies = tuple(
        replace(s, carried={"site": names[number[s.patient_id] // 2 % len(names)]}, label=number[s.patient_id] % 2)
        for s in cohort.studies
    )
    tested: list[str] = []
    for fold, site in enumerate(sorted(names)):
        table = LeaveSiteOut(seed=seed, fold=fold, folds=len(names))(replace(cohort, studies=studies))
        verify_split(table)
        assert set(table["site"][table["split"] == "test"]) == {site}
        assert site not in set(table["site"][table["split"] != "test"])
        others = len(number) - len(patients_in(table, "test"))
        assert len(patients_in(table, "validation")) == int(0.15 * others + 0.5 + 1e-9)
        tested += patients_in(table, "test")
    assert sorted(tested) == sorted(number)


def test_a_patient_seen_at_two_sites_belongs_to_the_first_and_the_other_study_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cohort = cohort_of([0, 1] * 40, follow_ups=[1] * 80, sites=["A", "A", "B", "B"] * 20)
    moved = [replace(s, carried={"site": "B"}) if s.study_id == "P0000v1" else s for s in cohort.studies]
    cohort = replace(cohort, studies=tuple(moved))
    for fold, split in enumerate(("test", "train")):
        table = LeaveSiteOut(seed=0, fold=fold, folds=2)(cohort).set_index("study_id")
        assert "P0000v1" not in table.index
        assert (table.loc["P0000v0", "split"] == "test") == (split == "test")
        (left,) = without_left_out(cohort, table.reset_index()).exclusions
        assert (left.study_id, left.reason) == ("P0000v1", "seen at another site first: split")
    assert "1 studies of patients who were seen at another site first are left out" in caplog.text


def test_a_site_too_small_to_be_tested_is_trained_on_in_each_fold(caplog: pytest.LogCaptureFixture) -> None:
    cohort = cohort_of([0, 1] * 40 + [1, 0, 0], sites=["A", "A", "B", "B"] * 20 + ["C", "C", "D"])
    for fold in range(2):
        table = LeaveSiteOut(seed=0, fold=fold, folds=2, minimum_group=2)(cohort)
        assert "test" not in set(table["split"][table["site"].isin(["C", "D"])])
    assert "trained on in each fold: C, D" in caplog.text
    assert LeaveSiteOut(seed=0, folds=3).sites(cohort) == ["A", "B", "C"], "D lacks a label"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "Hospital",
            r"no column 'site' \(split.site\); found 'Hospital', 'grade'. If this is it, add split.site=Hospital",
        ),
        ("x", r"no column 'site' \(split.site\); found 'x', 'grade'. Name the column that tells sites apart"),
    ],
)
def test_a_cohort_that_names_no_site_is_refused_with_the_columns_that_it_has(column: str, message: str) -> None:
    cohort = cohort_of([0, 1] * 20)
    studies = tuple(replace(study, carried={column: "A", "grade": "4"}) for study in cohort.studies)
    with pytest.raises(SplitError, match=message):
        LeaveSiteOut(seed=0)(replace(cohort, studies=studies))


@pytest.mark.parametrize("other", ["köln", "Ko\u0308ln", " Köln", "KÖLN"])
def test_two_spellings_of_a_site_are_refused_since_one_would_teach_the_other(other: str) -> None:
    cohort = cohort_of([0, 1] * 30, sites=["Köln", "Köln", "B", "B", other, other] * 10)
    if other.strip() == "Köln":
        assert LeaveSiteOut(seed=0, folds=2).sites(cohort) == ["B", "Köln"]
        return
    with pytest.raises(SplitError, match="expected one spelling of a site"):
        LeaveSiteOut(seed=0, folds=3)(cohort)


def test_sites_that_cannot_be_left_out_are_refused_with_the_remedy() -> None:
    cohort = cohort_of([0, 1] * 30, sites=["A", "A", "B", "B", "C", "C"] * 10)
    with pytest.raises(SplitError, match=r"3 sites to test: A, B, C; expected one fold for each. Add split.folds=3$"):
        LeaveSiteOut(seed=0, folds=2)(cohort)
    with pytest.raises(SplitError, match=r"fold 3 of 3, and 3 sites"):
        LeaveSiteOut(seed=0, folds=3, fold=3)(cohort)
    with pytest.raises(
        SplitError, match=r"too few sites with .*\(0; A: 10 wildtype, 10 mutant.*Lower split.minimum_group"
    ):
        LeaveSiteOut(seed=0, minimum_group=11)(cohort)
    with pytest.raises(SplitError, match=r"no site for P0001v0; expected one for every study"):
        LeaveSiteOut(seed=0)(cohort_of([0, 1] * 30, sites=["A", " "] + ["B", "C"] * 29))


# Given splits


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("key", ["study_id", "patient_id"])
def test_a_split_that_was_written_down_is_reproduced(tmp_path: Path, kind: str, key: str) -> None:
    cohort = cohort_of([0, 1] * 30, follow_ups=[0, 1] * 30)
    table = KFold(seed=1, fold=2)(cohort)
    path = tmp_path / f"splits.{kind}"
    small = table[[key, "split", "fold"]].sample(frac=1, random_state=0)
    if kind == "parquet":
        small.to_parquet(path)
    else:
        small.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    pd.testing.assert_frame_equal(GivenSplit(file=path)(cohort), table)


def given_file(tmp_path: Path, table: pd.DataFrame) -> GivenSplit:
    table.to_csv(tmp_path / "splits.csv", index=False)
    return GivenSplit(file=tmp_path / "splits.csv")


def test_a_given_split_may_name_more_studies_than_the_cohort_has(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 30)
    split = given_file(tmp_path, HoldOut(seed=1)(cohort))
    assert len(split(replace(cohort, studies=cohort.studies[3:]))) == 57


def test_a_patient_in_two_given_splits_is_named(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 30, follow_ups=[1] * 60)
    table = HoldOut(seed=1)(cohort)
    table.loc[table["study_id"] == "P0007v1", "split"] = "test"
    table.loc[table["study_id"] == "P0007v0", "split"] = "train"
    with pytest.raises(SplitError, match=r"patient P0007 in two splits; expected every patient in one"):
        given_file(tmp_path, table)(cohort)


def test_a_study_that_a_given_split_forgets_is_named(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 30)
    with pytest.raises(SplitError, match=r"splits.csv: says nothing about P0000v0"):
        given_file(tmp_path, HoldOut(seed=1)(cohort).iloc[1:])(cohort)


def test_a_study_with_two_given_splits_is_named(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 30)
    folds = pd.concat([KFold(seed=1, fold=fold)(cohort) for fold in range(2)])
    with pytest.raises(SplitError, match=r"P0000v0, .* in two splits or folds"):
        given_file(tmp_path, folds)(cohort)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"split is \['dev'\]; expected one of"),
        ({"split": "train"}, "no wildtype and no mutant patient in validation"),
        ({"fold": "x"}, r"fold is \['x'\]; expected one whole number"),
    ],
)
def test_a_given_split_with_other_words_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    cohort = cohort_of([0, 1] * 30)
    with pytest.raises(SplitError, match=message):
        given_file(tmp_path, HoldOut(seed=1)(cohort).assign(**change))(cohort)


@pytest.mark.parametrize("key", ["study_id", "patient_id"])
def test_a_given_split_with_usual_names_is_that_split(tmp_path: Path, key: str) -> None:
    cohort = cohort_of([0, 1] * 30, follow_ups=[0, 1] * 30)
    table = HoldOut(seed=1)(cohort)
    usual = table[[key]].rename(columns={"study_id": "ID", "patient_id": "Subject"})
    given = given_file(tmp_path, usual.assign(Split=table["split"].str.title()))
    pd.testing.assert_frame_equal(given(cohort), table)
    with pytest.raises(
        SplitError, match=r"no column \['patient_id', 'split'\]; found 'name', 'part'; expected study_id"
    ):
        given_file(tmp_path, pd.DataFrame({"name": ["a"], "part": ["train"]}))(cohort)
    with pytest.raises(
        SplitError, match=r"columns 'ID', 'case' could all be study_id; expected one. Rename the others"
    ):
        given_file(tmp_path, usual.assign(ID="a", case="b", split="train").drop(columns="Subject", errors="ignore"))(
            cohort
        )


def test_a_given_split_without_its_columns_or_file_is_refused(tmp_path: Path) -> None:
    cohort = cohort_of([0, 1] * 30)
    with pytest.raises(SplitError, match=r"no column \['split'\]"):
        given_file(tmp_path, HoldOut(seed=1)(cohort).drop(columns="split"))(cohort)
    with pytest.raises(SplitError, match=r"none.csv: no such file.*split.file"):
        GivenSplit(file=tmp_path / "none.csv")(cohort)


# The check itself


def test_a_part_with_one_label_is_refused() -> None:
    table = HoldOut(seed=0)(cohort_of([0, 1] * 20))
    table.loc[(table["split"] == "test") & (table["label"] == 1), "split"] = "train"
    with pytest.raises(SplitError, match=r"no mutant patient in test; expected both labels in each part"):
        verify_split(table)


def test_a_study_twice_is_refused() -> None:
    table = HoldOut(seed=0)(cohort_of([0, 1] * 20))
    with pytest.raises(SplitError, match=r"study P0003v0 twice"):
        verify_split(pd.concat([table, table.iloc[[3]]]))


def test_an_unknown_split_is_refused() -> None:
    table = HoldOut(seed=0)(cohort_of([0, 1] * 20)).assign(split="holdout")
    with pytest.raises(SplitError, match=r"\['holdout'\]; expected one of"):
        verify_split(table)


def test_a_patient_with_two_labels_is_refused() -> None:
    cohort = cohort_of([0, 1] * 20, follow_ups=[1] * 40)
    studies = (replace(cohort.studies[0], label=1), *cohort.studies[1:])
    with pytest.raises(SplitError, match=r"patient P0000 has two labels"):
        HoldOut(seed=0)(replace(cohort, studies=studies))


def test_joining_a_table_with_itself_changes_nothing() -> None:
    cohort = cohort_of([0, 1] * 20)
    table = KFold(seed=0, fold=3)(cohort)
    pd.testing.assert_frame_equal(cohort_table(cohort, table), table)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("holdout", HoldOut), ("kfold", KFold), ("given", GivenSplit), ("leave_site_out", LeaveSiteOut)],
)
def test_the_keys_of_a_configuration_file_are_the_arguments_of_its_class(name: str, kind: type) -> None:
    section = yaml.safe_load((CONF_DIR / "split" / f"{name}.yaml").read_text())
    assert section.pop("_target_") == f"idh_lightning.cohort.{kind.__name__}"
    assert set(section) == {f.name for f in fields(kind)}


def test_a_table_that_lacks_a_study_of_the_cohort_is_refused() -> None:
    cohort = cohort_of([0, 1] * 20)
    with pytest.raises(SplitError, match=r"says nothing about P0000v0; expected every study"):
        cohort_table(cohort, HoldOut(seed=0)(cohort).iloc[1:])


def test_a_cohort_that_only_judges_is_all_test_and_needs_both_labels():
    studies = tuple(Study(study_id=f"S{i}", patient_id=f"P{i}", label=i % 2, files={}) for i in range(6))
    cohort = Cohort(name="other", sequences=("FLAIR",), studies=studies)
    table = AllTest()(cohort)
    assert set(table["split"]) == {"test"}
    assert list(table["study_id"]) == [study.study_id for study in studies]
    with pytest.raises(SplitError, match="cohort other: no mutant patient among 3 studies"):
        AllTest()(replace(cohort, studies=studies[::2]))
