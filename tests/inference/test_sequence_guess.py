"""The tags of a series tell its sequence; of a contrast agent the time of acquisition tells more than its tag."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from rich.console import Console
from rich.table import Table
from tiny_dicom import lump

from idh_lightning.commands.predicting import _named
from idh_lightning.errors import ConfigError
from idh_lightning.inference.content import (
    BRIGHTEST_FLUID,
    LEAST_ENHANCEMENT,
    doubts_of_content,
    enhancement,
    fluid_rank,
)
from idh_lightning.inference.sequence_guess import UNSTATED, guess_sequence
from idh_lightning.inference.series import Series, select, settle_contrast
from idh_lightning.volumes.reading import Geometry

DESCRIPTIONS = pd.read_csv(Path(__file__).with_name("series_descriptions.csv"), keep_default_na=False)
KINDS = ("FLAIR", "T1", "T1c", "T2", "other")


def test_of_the_made_up_descriptions_97_in_100_are_right_and_no_contrast_is_missed_without_a_doubt() -> None:
    """`pytest -s` shows the table."""
    counts: Counter[tuple[str, str]] = Counter()
    silent = []
    for row in DESCRIPTIONS.itertuples():
        guess, why = guess_sequence(str(row.description))
        counts[str(row.truth), guess or "other"] += 1
        if row.truth == "T1c" and guess == "T1" and UNSTATED not in why:
            silent.append(row.description)
    table = Table("truth", *KINDS, title="Guessed from the description alone", title_justify="left")
    for truth in KINDS:
        table.add_row(truth, *(str(counts[truth, guess]) for guess in KINDS))
    Console().print(table)
    assert silent == []
    assert sum(counts[kind, kind] for kind in KINDS) >= 0.97 * counts.total()


@pytest.mark.parametrize(
    ("description", "tags", "expected"),
    [
        ("t1_mprage_sag pre contrast", {"contrast": True}, "T1"),
        ("SAG T1 SE", {"contrast": True}, "T1c"),
        ("AX T2 FSE", {"slices": 3}, ""),
        ("", {"echo_ms": 120.0, "repetition_ms": 9000.0, "inversion_ms": 2400.0}, "FLAIR"),
        ("", {"echo_ms": 100.0, "repetition_ms": 4500.0}, "T2"),
        ("", {"echo_ms": 9.0, "repetition_ms": 600.0, "contrast": True}, "T1c"),
        ("", {"echo_ms": 25.0, "repetition_ms": 700.0, "scanning_sequence": "GR"}, ""),
        ("", {"echo_ms": 90.0, "repetition_ms": 5000.0, "scanning_sequence": "EP SE"}, ""),
        ("brain", {}, ""),
        ("AX FLAIR", {"echo_ms": 12.0, "inversion_ms": 860.0}, "T1"),
        ("t2_tirm_cor", {"inversion_ms": 160.0}, ""),
        ("pd+t2_tse", {"echo_ms": 14.0}, ""),
        ("pd+t2_tse", {"echo_ms": 98.0}, "T2"),
        ("AX T2", {"scanning_sequence": "GR", "echo_ms": 20.0}, ""),
        ("T2", {"b_value": 1000.0}, ""),
        ("t1_mprage", {"image_type": ("DERIVED", "SECONDARY", "MPR", "SUB")}, ""),
        ("t1_mprage", {"image_type": ("ORIGINAL", "PRIMARY", "P")}, ""),
        ("t1_mprage", {"image_type": ("DERIVED", "SECONDARY", "MPR")}, "T1"),
    ],
)
def test_the_tags_of_a_series_tell_its_sequence(description: str, tags: dict[str, object], expected: str) -> None:
    assert guess_sequence(description, **tags)[0] == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("underscore", [" ", "_", "-", "."])
def test_an_underscore_parts_words_as_a_space_does(underscore: str) -> None:
    assert guess_sequence(f"t1{underscore}sag{underscore}km")[0] == "T1c"
    assert guess_sequence(f"t2{underscore}swi{underscore}tra")[0] == ""


def series(number: str, description: str, **what: object) -> Series:
    """Series of 24 slices of 5 mm unless said otherwise."""
    spacing, normal = what.pop("spacing_mm", 5.0), what.pop("plane", "axial")
    axes = {"axial": np.eye(3), "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])}[str(normal)]
    slices = int(what.pop("length_mm", 120.0) / spacing)  # type: ignore[operator]
    contrast = bool(what.get("contrast", False))
    guess, why = guess_sequence(description, contrast=contrast)
    usual: dict[str, object] = {
        "uid": f"1.2.{number}", "study_uid": "1", "slices": slices, "folder": Path(), "echo_ms": None,
        "repetition_ms": None, "inversion_ms": None, "contrast": contrast, "acquired": "", "is_3d": None,
        "derived": False, "guess": guess, "why": why, "save": lambda path: path,
        "geometry": Geometry((64, 64, slices), (1.0, 1.0, float(spacing)), (0.0, 0.0, 0.0), tuple(axes.ravel())),  # type: ignore[arg-type]
    }  # fmt: skip
    return Series(number=number, description=description, **(usual | what))  # type: ignore[arg-type]


def settled(*some: Series) -> list[tuple[str, bool]]:
    """Guess of each, and whether there is a doubt."""
    return [(one.guess, bool(one.doubt)) for one in settle_contrast(some)]


def test_a_lone_t1_of_which_nothing_says_whether_contrast_was_given_is_in_doubt() -> None:
    assert settled(series("1", "T1 SE")) == [("T1", True)]
    assert settled(series("1", "T1 SE nativ")) == [("T1", False)]


def test_beside_a_t1_that_states_contrast_the_plain_one_is_not_in_doubt() -> None:
    assert settled(series("1", "T1 SE"), series("2", "T1 SE KM")) == [("T1", False), ("T1c", False)]
    assert settled(series("1", "T1 SE"), series("2", "T1 SE", contrast=True)) == [("T1", False), ("T1c", False)]


def test_what_was_acquired_after_contrast_has_it_whatever_its_description_leaves_out() -> None:
    before, given = series("1", "T1 SE", acquired="2020010110"), series("2", "T1 KM", acquired="2020010111")
    after = series("3", "T1 mprage", acquired="2020010112")
    assert settled(before, given, after) == [("T1", False), ("T1c", False), ("T1c", True)]


def test_a_contrast_tag_copied_to_all_series_is_overruled_by_the_time_with_a_doubt() -> None:
    flair = series("1", "FLAIR", contrast=True, acquired="2020010109")
    before = series("2", "T1 SE", contrast=True, acquired="2020010110")
    said = series("3", "T1 KM", contrast=True, acquired="2020010111")
    unsaid = series("3", "T1 SE", contrast=True, acquired="2020010111")
    assert settled(flair, before, said) == [("FLAIR", False), ("T1", True), ("T1c", False)]
    assert settled(flair, before, unsaid) == [("FLAIR", False), ("T1", True), ("T1c", True)]


def test_a_native_t1_acquired_after_contrast_is_in_doubt() -> None:
    given, late = series("2", "T1 KM", acquired="2020010111"), series("3", "T1 nativ", acquired="2020010112")
    assert settled(given, late) == [("T1c", False), ("T1", True)]


def test_fewer_slices_than_a_head_are_in_doubt() -> None:
    assert settled(series("1", "T2 TSE", length_mm=45.0)) == [("T2", True)]


@pytest.mark.parametrize(
    ("better", "worse", "reason"),
    [
        ({"is_3d": True, "spacing_mm": 3.0}, {"is_3d": False, "spacing_mm": 3.0}, "not 3D"),
        ({"spacing_mm": 1.0, "plane": "sagittal"}, {"spacing_mm": 5.0}, "not 3D"),
        ({"spacing_mm": 3.0, "plane": "sagittal"}, {"spacing_mm": 5.0}, "thicker"),
        ({}, {"plane": "sagittal"}, "not axial"),
        ({}, {"derived": True, "is_3d": True}, "made of other images"),
        ({}, {"length_mm": 60.0, "is_3d": True}, "in doubt"),
    ],
)
def test_of_two_that_fit_the_better_is_taken_and_the_other_says_why_not(
    better: dict[str, object], worse: dict[str, object], reason: str
) -> None:
    found = select([series("1", "T2 TSE", **worse), series("2", "T2 TSE", **better)], named={}, sequences=["T2"])
    assert found.taken["T2"].number == "2"
    assert found.series[0].why.endswith(f"; 2 is taken: {reason}")


def test_two_that_are_alike_are_named_with_a_way_out() -> None:
    some = [series("1", "T2 TSE"), series("2", "T2 TSE")]
    (problem,) = select(some, named={}, sequences=["T2"]).problems
    assert problem == "2 series could be T2: 1 (T2 TSE), 2 (T2 TSE). Name one, for example t2=1"
    assert select(some, named={"T2": "1"}, sequences=["T2"]).taken["T2"].number == "1"


def test_two_with_one_number_are_named_by_their_identifiers() -> None:
    some = [series("1", "T2 TSE", uid="1.2.8"), series("1", "T2 TSE", uid="1.2.9")]
    (problem,) = select(some, named={}, sequences=["T2"]).problems
    assert problem.endswith("Name one by its identifier, for example t2=1.2.8")
    assert select(some, named={"T2": "1.2.9"}, sequences=["T2"]).taken["T2"].uid == "1.2.9"


def test_a_number_that_two_series_have_names_neither_however_they_differ() -> None:
    some = [series("4", "FLAIR", is_3d=True, uid="1.2.8"), series("4", "T2 TSE", uid="1.2.9")]
    found = select(some, named={"T2": "4"}, sequences=["T2"])
    assert found.taken == {}
    assert "1.2.8" in found.problems[0]


def test_a_series_named_for_one_sequence_is_guessed_to_be_no_other() -> None:
    some = [series("7", "T1 SE"), series("8", "T1 SE"), series("4", "T2 TSE")]
    found = select(some, named={"T1c": "8"}, sequences=["T1", "T1c", "T2"])
    assert {name: one.number for name, one in found.taken.items()} == {"T1": "7", "T1c": "8", "T2": "4"}
    assert found.problems == ()
    assert [*select(some[:1], named={"T1c": "1.2.7"}, sequences=["T1", "T1c"]).taken] == ["T1c"]


ECHOES = [series(f"4{letter}", "T2 TSE", uid=uid) for uid in ("1.2.8", "1.2.9") for letter in "ab"]


@pytest.mark.parametrize(
    "some",
    [
        [series("4", "T2 TSE"), series("4", "FLAIR", uid="1.2.5"), series("5", "T2 TSE")],
        [series("", "T2 TSE"), series("4", "T2 TSE")],
        ECHOES,
        [series("a", "T2 TSE", uid="converted (1) T2"), series("b", "T2 TSE", uid="converted (2) T2")],
        [series("4", "T2 TSE", uid="converted (1) T2"), series("4", "T2 TSE", uid="converted (2) T2")],
    ],
    ids=["another sequence has its number", "no number", "echoes", "letters alone", "names with spaces"],
)
def test_the_name_that_is_told_means_one_series_as_a_shell_reads_it(some: list[Series]) -> None:
    (problem,) = select(some, named={}, sequences=["T2"]).problems
    (pasted,) = shlex.split(problem.partition("for example ")[2])
    name = pasted.removeprefix("t2=")
    assert name
    found = select(some, named={"T2": name}, sequences=["T2"])
    assert found.problems == ()
    assert found.taken["T2"].guess == "T2"


def test_one_that_cannot_be_used_says_why() -> None:
    broken = series("7", "T2 TSE", problem="a slice is missing")
    (problem,) = select([broken], named={}, sequences=["T2"]).problems
    assert "7 (T2 TSE): a slice is missing" in problem


def test_a_number_that_no_series_has_is_named() -> None:
    (problem,) = select([series("7", "T2 TSE")], named={"T2": "8"}, sequences=["T2"]).problems
    assert "no series is called 8" in problem
    assert "expected one of 7" in problem


def test_a_number_means_a_series_of_one_study_alone() -> None:
    studies = {"a": [series("2", "T1 SE"), series("3", "T2 TSE")], "b": [series("2", "T2 FLAIR")]}
    with pytest.raises(ConfigError, match=r"t2: a series 2 is in 2 of the 2 studies in input \(a, b\)"):
        _named({"T2": "2"}, studies)
    with pytest.raises(ConfigError, match="t2: a series 9 is in 0 of the 2 studies"):
        _named({"T2": "9"}, studies)
    assert _named({"T2": "3"}, studies) == {"a": {"T2": "3"}, "b": {}}
    assert _named({"T2": "9"}, {"b": studies["b"]}) == {"b": {"T2": "9"}}, "which `select` tells of"


def test_a_series_named_against_its_description_is_told_of() -> None:
    flair = series("2", "T2 FLAIR")
    found = select([flair], named={"T2": "2"}, sequences=["T2"])
    assert found.taken["T2"].number == "2"
    assert "T2 is series 2 (T2 FLAIR), as it was named, and its tags say FLAIR." in found.notes
    assert select([flair], named={"FLAIR": "2"}, sequences=["FLAIR"]).notes == ()


def test_doubts_about_what_is_taken_go_with_the_answer_unless_the_user_has_named_it() -> None:
    lone = series("1", "T1 SE")
    assert UNSTATED in select([lone], named={}, sequences=["T1"]).notes[0]
    assert select([lone], named={"T1": "1"}, sequences=["T1"]).notes == ()


def test_the_images_tell_where_two_sequences_have_changed_places() -> None:
    random = np.random.default_rng(0)
    plain = random.normal(500, 50, (20, 20, 20)).astype(np.float32)
    corner = np.zeros(plain.shape, bool)
    corner[:5, :5, :5] = True
    assert enhancement(plain, plain + 400 * corner) > 0 > LEAST_ENHANCEMENT > enhancement(plain + 400 * corner, plain)
    t2, flair = plain + 400 * corner, plain - 300 * corner
    assert fluid_rank(t2, flair) < BRIGHTEST_FLUID < fluid_rank(t2, t2)


@pytest.mark.parametrize(("thickness_mm", "doubts"), [(2.0, 1), (5.0, 0)])
def test_fluid_is_looked_at_where_slices_are_thin_enough_to_show_it(
    thickness_mm: float, doubts: int, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(lump(24, 48, 44).astype(np.float32))
    image.SetSpacing((3.0, 3.0, thickness_mm))
    sitk.WriteImage(image, str(tmp_path / "t2.nii.gz"))
    files = {"FLAIR": tmp_path / "t2.nii.gz", "T2": tmp_path / "t2.nii.gz"}
    assert len(list(doubts_of_content(files))) == doubts
