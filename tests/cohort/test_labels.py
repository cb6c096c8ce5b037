"""IDH status from text: a closed vocabulary, nothing guessed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idh_lightning.cohort.labels import IDH_VOCABULARY, MUTANT, WILDTYPE, normalise
from idh_lightning.cohort.targets import IDH
from idh_lightning.errors import CohortError, ConfigError

UCSF_SPELLINGS = {
    "wildtype": WILDTYPE,
    "mutated (NOS)": MUTANT,
    "IDH1 p.R132H": MUTANT,
    "IDH1 p.R132C": MUTANT,
    "IDH1 p.R132G": MUTANT,
    "IDH1 p.R132S": MUTANT,
    "IDH2 p.R172K": MUTANT,
    "IDH2 p.Arg172Trp": MUTANT,
    "IDH1 p.Arg132His": MUTANT,
}
UNDECIDED = ["", " ", "unknown", "Unknown", "indeterminate", "pending", "NOS", "NOS/NEC", "n/a", "nan", "None", "-1"]


@pytest.mark.parametrize(("text", "label"), UCSF_SPELLINGS.items())
def test_every_spelling_of_the_ucsf_table_has_its_label(text: str, label: int) -> None:
    assert IDH.label_of(text) == label


@pytest.mark.parametrize("text", UNDECIDED)
def test_a_status_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(CohortError, match=re.escape(f"IDH is {text!r}; expected 'wildtype'")):
        IDH.label_of(text)


@pytest.mark.parametrize(
    "text", ["wildtyp", "not wildtype", "IDH1", "IDH1 p.R132R", "IDH3 p.R132H", "0", "1", "mutant?"]
)
def test_a_near_miss_is_refused(text: str) -> None:
    with pytest.raises(CohortError, match=r"expected 'wildtype', 'mutant' or a mutation name"):
        IDH.label_of(text)


@given(st.sampled_from(sorted(IDH_VOCABULARY)), st.data())
def test_case_and_white_space_do_not_matter(spelling: str, data: st.DataObject) -> None:
    flips = data.draw(st.lists(st.booleans(), min_size=len(spelling), max_size=len(spelling)))
    text = "".join(c.upper() if flip else c for c, flip in zip(spelling, flips, strict=True))
    text = data.draw(st.sampled_from(["", " ", "\t"])) + text.replace(" ", "  \n") + " "
    assert IDH.label_of(text) == IDH_VOCABULARY[spelling]


@given(st.text())
def test_any_text_is_a_known_spelling_or_refused(text: str) -> None:
    known = normalise(text) in IDH_VOCABULARY
    if known:
        assert IDH.label_of(text) in (WILDTYPE, MUTANT)
    else:
        with pytest.raises(CohortError):
            IDH.label_of(text)


def test_the_vocabulary_can_be_extended_for_one_cohort() -> None:
    extended = IDH.extended({"IDH1 p.R132V": "mutant", "Negativ": "wildtype"})
    assert extended.label_of("idh1 P.R132V") == MUTANT
    assert extended.label_of("negativ") == WILDTYPE
    with pytest.raises(CohortError, match=r"IDH is 'negativ'"):
        IDH.label_of("negativ")


def test_a_number_in_the_configuration_is_a_spelling_too() -> None:
    extended = IDH.extended({0: "wildtype", 1: "mutant"})  # type: ignore[dict-item]
    assert [extended.label_of(text) for text in ("0", "1")] == [WILDTYPE, MUTANT]


@pytest.mark.parametrize("text", ["unknown", "Pending", "NOS", "", "wild type"])
def test_no_setting_turns_an_undecided_or_contrary_spelling_into_mutant(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot mean 'mutant'"):
        IDH.extended({text: "mutant"})


def test_a_meaning_other_than_the_two_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'abc' means 'maybe'; expected 'wildtype' or 'mutant'"):
        IDH.extended({"abc": "maybe"})


HOSPITAL_SPELLINGS = {
    MUTANT: [
        "IDH-mut", "IDH mutated", "R132H", "IDH1 R132H", "IDH1-R132H", "IDH1 (R132H)", "p.R132C", "IDH2 R172K", "R140Q",
        "mut", "Mutant ", "IDHmut", "mut (R132H)", "IDH1-mutant", "IDH_mut", "IDH1:p.R132H",
    ],
    WILDTYPE: [
        "WT", "wt", "IDH-wt", "IDHwt", "IDH_WT", "Wild type", "wild-type", "not mutated", "Non-mutated", "IDH1/2 wt",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "label"), [(text, label) for label, texts in HOSPITAL_SPELLINGS.items() for text in texts]
)
def test_the_spellings_of_hospitals_have_their_label(text: str, label: int) -> None:
    assert IDH.label_of(text) == label


@pytest.mark.parametrize(
    "text", ["negative", "positive", "R132H negative", "IDH1 wildtype", "IDH1-wt", "IDH1", "yes", "no"]
)
def test_a_word_that_leaves_another_mutation_open_is_refused(text: str) -> None:
    with pytest.raises(CohortError, match=r"expected 'wildtype', 'mutant'"):
        IDH.label_of(text)


def test_a_minus_before_a_number_is_no_dash_between_words() -> None:
    extended = IDH.extended({"0": "wildtype", "1": "mutant"})
    with pytest.raises(CohortError):
        extended.label_of("-1")


def test_a_vocabulary_may_list_the_spellings_of_a_label_and_not_contradict_itself() -> None:
    extended = IDH.extended({"mutant": ["positive", "IDH+"], "wildtype": ["negative"]})
    assert [extended.label_of(text) for text in ("positive", "idh+", "negative")] == [MUTANT, MUTANT, WILDTYPE]
    with pytest.raises(ConfigError, match=r"'P' cannot mean 'wildtype'"):
        IDH.extended({"p": "mutant", "P": "wildtype"})
