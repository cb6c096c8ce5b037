"""Who a checkpoint has seen, found again under other names and not to be read from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from idh_lightning.cohort import DevelopmentPatients, Study


def study(study_id: str, patient_id: str | None = None, label: int = 0) -> Study:
    return Study(study_id=study_id, patient_id=patient_id or study_id, label=label, files={})


OLD = [study("UCSF-PDGM-0001"), study("UCSF-PDGM-0002"), study("UCSF-PDGM-0003")]
SPLITS = {"UCSF-PDGM-0001": "train", "UCSF-PDGM-0002": "validation", "UCSF-PDGM-0003": "test"}
IMAGES = {one.study_id: [f"{one.study_id}-flair", f"{one.study_id}-t1"] for one in OLD}


@pytest.fixture(scope="module")
def seen() -> DevelopmentPatients:
    return DevelopmentPatients.of(OLD, SPLITS, IMAGES)


def test_a_patient_is_found_by_identifier_however_it_is_spelt(seen: DevelopmentPatients) -> None:
    new = [study("a", "UCSF-PDGM-001"), study("b", "UCSF-PDGM-0002"), study("c", "UCSF-PDGM-0004")]
    found = seen.find(new, {"a": [], "b": [], "c": []})
    assert [(s.study.study_id, s.split, s.means) for s in found] == [
        ("a", "train", "patient_id"),
        ("b", "validation", "patient_id"),
    ]
    assert found[0].reason.startswith("seen in training: ")


def test_the_same_image_is_found_under_another_name_and_takes_all_studies_of_its_patient_along(
    seen: DevelopmentPatients,
) -> None:
    new = [study("x1", "X"), study("x2", "X"), study("y", "Y")]
    images = {"x1": ["unknown"], "x2": ["UCSF-PDGM-0001-t1"], "y": ["another"]}
    found = seen.find(new, images)
    assert [(s.study.study_id, s.means) for s in found] == [("x1", "image"), ("x2", "image")]


def test_cohorts_that_number_their_patients_alike_can_be_told_apart_by_their_images(seen: DevelopmentPatients) -> None:
    new = [study("UCSF-PDGM-0001")]
    assert seen.find(new, {"UCSF-PDGM-0001": ["other"]})
    assert not seen.find(new, {"UCSF-PDGM-0001": ["other"]}, means=["image"])


def test_test_patients_are_not_among_the_seen_but_can_be_asked_for(seen: DevelopmentPatients) -> None:
    new = [study("UCSF-PDGM-0003")]
    images = {"UCSF-PDGM-0003": IMAGES["UCSF-PDGM-0003"]}
    assert not seen.find(new, images)
    assert [s.split for s in seen.find(new, images, splits=("test",))] == ["test"]


def test_the_checkpoint_holds_no_name_and_differs_from_salt_to_salt(seen: DevelopmentPatients) -> None:
    state = seen.to_dict()
    assert "PDGM" not in json.dumps(state)
    assert DevelopmentPatients.from_dict(json.loads(json.dumps(state))) == seen
    other = DevelopmentPatients.of(OLD, SPLITS, IMAGES)
    assert other.salt != seen.salt
    assert not other.patients["train"] & seen.patients["train"]
    assert not other.images["train"] & seen.images["train"]


def test_patients_of_the_network_that_a_training_began_with_are_known_by_their_images(
    seen: DevelopmentPatients,
) -> None:
    own = [study("A-1")]
    later = replace(DevelopmentPatients.of(own, {"A-1": "train"}, {"A-1": ["a"]}), earlier=seen)
    later = DevelopmentPatients.from_dict(json.loads(json.dumps(later.to_dict())))
    new = [study("A-1"), study("x", "X"), study("UCSF-PDGM-0001"), study("y", "Y")]
    images = {"A-1": [], "x": ["UCSF-PDGM-0002-t1"], "UCSF-PDGM-0001": ["another"], "y": IMAGES["UCSF-PDGM-0003"]}
    found = later.find(new, images)
    assert [(s.study.study_id, s.split, s.means) for s in found] == [
        ("A-1", "train", "patient_id"),
        ("x", "validation", "image"),
    ]
