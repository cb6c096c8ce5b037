"""The training range: a stated rate of false alarms, and the same verdicts after a checkpoint."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_cohort, write_checkpoint

from idh_lightning.cohort import new_studies
from idh_lightning.inference import Predictor
from idh_lightning.ood import OutOfDistributionDetector
from idh_lightning.ood.descriptor import PERCENTILES, StudyDescriptor, turned, turns
from idh_lightning.ood.detector import TOLD_ODDS

NAMES = ("FLAIR", "T1", "T1c", "T2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), tiny_cohort(tmp_path_factory.mktemp("cohort")))


def some_studies(number: int, seed: int, *, shift: float = 0.0) -> list[StudyDescriptor]:
    """Return studies in numbers, drawn around one mean; `shift` moves their features and intensities."""
    random = np.random.default_rng(seed)
    shape = np.random.default_rng(0).normal(size=(5, 12, 12, 12))
    return [
        StudyDescriptor(
            geometry={"least_voxel_edge_mm": 1.0, "brain_ml": 1400 + 100 * random.uniform(-1, 1)},
            profiles=np.linspace(-2, 2, len(PERCENTILES)) + 0.1 * random.normal(size=(4, 1)) + shift,
            roughness=-1 + 0.1 * random.normal(size=4),
            skewness=np.array([1.0, -1, 0, 2]) + 0.1 * random.normal(size=4),
            correlation=np.eye(4) + 0.3 * (1 - np.eye(4)) * np.sign(np.subtract.outer(range(4), range(4))) ** 2,
            contrast=np.subtract.outer([0.0, 1, 2, 3], [0.0, 1, 2, 3]) + 0.1 * random.normal(size=(4, 4)),
            picture=shape + 0.1 * random.normal(size=shape.shape),
            features=random.normal(size=16) + shift,
        )
        for _ in range(number)
    ]


def learnt(validation: int = 199) -> OutOfDistributionDetector:
    chosen, validated = some_studies(100, 1), some_studies(validation, 2)
    return OutOfDistributionDetector.learn(chosen, validated, sequences=NAMES)


def test_new_studies_of_the_same_kind_are_flagged_as_often_as_was_said() -> None:
    found = learnt()
    assert found.expected_false_alarms == pytest.approx(0.05)
    beyond = np.mean([found.score(study) > found.limit for study in some_studies(2000, 3)])
    assert beyond == pytest.approx(found.expected_false_alarms, abs=0.04)


def test_few_validation_patients_cannot_promise_a_small_rate() -> None:
    assert learnt(validation=4).expected_false_alarms == pytest.approx(1 / 5)


def test_studies_of_another_kind_are_withheld_and_the_reason_is_given() -> None:
    found = learnt()
    (far,) = some_studies(1, 4, shift=8.0)
    doubts = found.doubts(far, present=NAMES)
    assert {"features", "intensity_of_T1"} <= {doubt.check for doubt in doubts if doubt.withheld}
    (near,) = some_studies(1, 5)
    assert not found.doubts(near, present=NAMES)


def test_another_naming_is_told_where_it_is_likelier_not_where_two_are_equally_far_away() -> None:
    found = learnt()
    (study,) = some_studies(1, 6)
    order = [1, 0, 2, 3]
    swapped = replace(study, contrast=study.contrast[order][:, order], skewness=study.skewness[order])
    (doubt,) = (one for one in found.doubts(swapped, present=NAMES) if one.check == "sequence_identity")
    assert doubt.withheld == doubt.text.startswith("Likely exchanged") is True
    random, told = np.random.default_rng(0), []
    middle = replace(
        study,
        contrast=(study.contrast + swapped.contrast) / 2,
        skewness=(study.skewness + swapped.skewness) / 2,
    )
    for _ in range(20):
        odd = replace(middle, contrast=middle.contrast + 0.002 * random.normal(size=(4, 4)))
        ratio, _ = found._other_naming(odd)
        if found.order_limit <= ratio < 1:
            likelier = np.exp(found.order.distance(odd.order(range(4))) ** 2 * (1 - ratio**2) / 2)
            named = "sequence_identity" in {doubt.check for doubt in found.doubts(odd, present=NAMES)}
            assert named == (likelier >= TOLD_ODDS)
            assert not any(doubt.text.startswith("Likely exchanged") for doubt in found.doubts(odd, present=NAMES))
            told.append(named)
    assert not all(told)


def test_every_warning_says_what_was_measured_the_training_range_and_what_to_do() -> None:
    found = learnt()
    (far,) = some_studies(1, 4, shift=8.0)
    far = replace(far, geometry={"least_voxel_edge_mm": 5.0, "brain_ml": 700.0}, roughness=far.roughness + 2)
    texts = {doubt.check: doubt.text for doubt in found.doubts(far, present=NAMES)}
    low, high = found.geometry["brain_ml"]
    brain = (
        f"The volume of the brain is 700 mL; the 100 training studies have {low:.0f} to {high:.0f} mL, so this is 0.5"
    )
    assert texts["brain_ml"].startswith(brain)
    assert "times the least. Check the spacing" in texts["brain_ml"]
    assert re.search(
        r"shortest edge of a voxel is 5 mm; the 100 training studies all have 1 mm, so this is 5.00 times that\. \w+",
        texts["least_voxel_edge_mm"],
    )
    number = r"−?\d+\.\d\d"
    measured = rf"{number} \(100 training studies: {number} to {number}\)"
    kept = "which 95% of patients like the 199 validation ones keep in everything that is measured here"
    far = rf"From 1.5 times .*, an answer is withheld unless withhold=false; this is {number} times"
    assert re.fullmatch(
        rf"Intensities of T1: \S+% of the brain has a z-score below {measured}\. Averaged over such percentiles, T1 "
        rf"differs from the mean training study by {number} z-scores; the limit is {number}, {kept}\. {far}\. Check .*",
        texts["intensity_of_T1"],
    ), texts["intensity_of_T1"]
    assert re.search(
        rf"neighbouring voxels differ by {measured} z-scores; the limit is {number}, {kept}", texts["roughness_of_T2"]
    )
    assert re.search(
        rf"{measured} standard deviations from the mean training study \(Mahalanobis distance, which allows for .*No",
        texts["features"],
    )
    same = replace(some_studies(1, 5)[0], correlation=np.ones((4, 4)))
    (first, *_) = found.doubts(same, present=NAMES)
    assert "FLAIR and T1 are the same image (correlation 1.0000" in first.text
    assert all(
        text.endswith((".", ")")) and text[0].isupper() and not re.search(r"-\d", text) for text in texts.values()
    )


def test_a_rough_study_beyond_the_limit_lies_beyond_the_number_that_is_named_as_the_limit() -> None:
    found = learnt()
    (study,) = some_studies(1, 5)
    for change in (-1.0, 1.0):
        doubts = found.doubts(replace(study, roughness=study.roughness + change), present=NAMES)
        text = next(doubt.text for doubt in doubts if doubt.check == "roughness_of_T2")
        here, limit = (float(re.search(rf"{words} ([\d.]+)", text)[1]) for words in ("differ by", "the limit is"))
        mean = np.exp(float(found.roughness[NAMES.index("T2")]))
        assert here < limit < mean if change < 0 else here > limit > mean


def test_a_range_gives_the_same_verdicts_after_a_checkpoint() -> None:
    found = learnt()
    file = io.BytesIO()
    torch.save(found.to_dict(), file)
    file.seek(0)
    again = OutOfDistributionDetector.from_dict(torch.load(file, weights_only=True))
    for study in some_studies(20, 6, shift=0.5):
        assert again.doubts(study, present=NAMES) == found.doubts(study, present=NAMES)


def test_no_turn_is_the_identity_or_a_mirror_image() -> None:
    picture = np.random.default_rng(0).normal(size=(2, 4, 4, 4))
    seen = [turned(picture, *turn) for turn in turns(cubic=True)]
    assert len(seen) == 23
    for one in seen:
        assert not np.array_equal(one, picture)
        assert not np.array_equal(one, picture[..., ::-1])


@pytest.mark.slow
@pytest.mark.real
def test_a_real_study_is_answered_or_refused_with_a_reason_and_its_map_fits(
    run: Path,
    tmp_path: Path,
) -> None:
    place = Path(os.environ["IDH_REAL_DATA"]) / "brats2023" / "BraTS-GLI-00012-000"
    (answer,) = Predictor(run).answers(new_studies(place), tmp_path)
    assert answer.given or answer.reasons
    cam, flair = nib.load(answer.map_file), nib.load(place / "BraTS-GLI-00012-000-t2f.nii.gz")
    assert cam.shape == flair.shape
    np.testing.assert_allclose(cam.affine, flair.affine, atol=1e-5)
