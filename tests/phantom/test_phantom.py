"""The synthetic cohort: patients follow the table of signs, images show them, files are like the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from sklearn.metrics import roc_auc_score

import idh_lightning.phantom.cohort as phantom_cohort
from idh_lightning.cohort import MUTANT, SEQUENCES, WILDTYPE
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.phantom import CONTROLS, GROUPS, SIGNS, PhantomCohort, SignMasks, draw_patients, read_signs
from idh_lightning.phantom.__main__ import main
from idh_lightning.phantom.anatomy import (
    ANYWHERE,
    Push,
    draw_pose,
    field_grid,
    interpolated,
    load_template,
    lobe_of,
    make_anatomy,
    smooth_field,
    tumour_seeds,
)
from idh_lightning.phantom.groups import CLINICAL_COLUMNS, draw_signs, group_sizes, list_studies
from idh_lightning.phantom.lesion import (
    ENHANCING,
    NECROTIC_OR_SOLID,
    OEDEMA,
    Focus,
    Signs,
    gliosis,
    grow_lesion,
    place_foci,
)
from idh_lightning.phantom.physics import TISSUES, signal
from idh_lightning.phantom.render import Images, render_study

MANY = 9990
PLAIN = Signs(
    enhancing=False,
    ring_necrosis=False,
    mismatch=False,
    multifocal=False,
    cyst=False,
    solid=True,
    sharp_margin=True,
    lobe="frontal",
    side="left",
    volume_ml=70.0,
    oedema_share=0.3,
    water=0.0,
    mark=False,
)


@lru_cache
def rendered(signs: Signs, *, spacing_mm: float = 3.0, seed: int = 1) -> Images:
    return render_study(
        signs,
        spacing_mm=spacing_mm,
        patient_seed=np.random.SeedSequence([seed, 2]),
        study_seed=np.random.SeedSequence([seed, 3]),
    )


def over_white(images: Images, sequence: str, where: np.ndarray) -> float:
    """Return the median signal of some voxels relative to white matter far from the tumour.

    White matter is the brightest tenth of the normal brain on T1.
    """
    t1 = images.sequences["T1"].astype(float)
    normal = (t1 > 0) & (images.labels == 0)
    white = normal & (t1 > np.quantile(t1[normal], 0.9))
    values = images.sequences[sequence].astype(float)
    return float(np.median(values[where]) / np.median(values[white]))


def carrying(images: Images, code: SignMasks) -> np.ndarray:
    return (images.evidence & code) > 0


def bayes_score(patients: pd.DataFrame) -> np.ndarray:
    """Return the log-odds for mutant given the table's signs, written out from the table itself."""
    likelihood = {WILDTYPE: np.zeros(len(patients)), MUTANT: np.zeros(len(patients))}
    for group in GROUPS:
        probability = np.full(len(patients), float(group.count))
        for sign in SIGNS:
            frequency = getattr(group, sign)
            chance = np.where(patients[sign], frequency, 1 - frequency)
            if sign == "ring_necrosis":
                chance = np.where(patients["enhancing"], chance, 1.0)
            probability *= chance
        likelihood[group.label] += probability
    return np.log(likelihood[MUTANT]) - np.log(likelihood[WILDTYPE])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def small(folder: Path, **settings: object) -> PhantomCohort:
    defaults: dict[str, object] = {"patients": 12, "spacing_mm": 6.0, "workers": 1}
    return PhantomCohort(folder, **(defaults | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PhantomCohort:
    cohort = small(tmp_path_factory.mktemp("phantom"), patients=24, spacing_mm=5.0)
    cohort.write()
    return cohort


# Who the patients are


@given(st.integers(10, 2000))
def test_group_sizes_add_up_and_are_within_one_of_their_share(patients: int) -> None:
    sizes = group_sizes(patients)
    assert sum(sizes) == patients
    for group, size in zip(GROUPS, sizes, strict=True):
        assert abs(size - patients * group.count / 495) < 1


def test_four_in_five_patients_are_wildtype_at_the_default_size() -> None:
    patients = draw_patients(280, seed=0)
    assert patients["label"].sum() == 58


@pytest.mark.parametrize("patients", [60, MANY])
def test_signs_occur_as_often_as_the_table_says(patients: int) -> None:
    table = draw_patients(patients, seed=3)
    for group in GROUPS:
        rows = table[table["group"] == group.name]
        for sign in SIGNS:
            among = rows[rows["enhancing"]] if sign == "ring_necrosis" else rows
            # The number of carriers is the expected one, rounded up or down.
            assert abs(among[sign].sum() - getattr(group, sign) * len(among)) < 1 + 1e-9


def test_signs_are_independent_within_a_group() -> None:
    rows = draw_patients(MANY, seed=4).query("group == 'wildtype_grade_4'")
    signs = [sign for sign in SIGNS if sign not in ("ring_necrosis", "mismatch")]
    correlation = rows[signs].astype(float).corr().to_numpy()
    assert np.abs(correlation - np.eye(len(signs))).max() < 4.5 / np.sqrt(len(rows))


def test_necrosis_in_a_ring_needs_enhancement() -> None:
    table = draw_patients(MANY, seed=5)
    assert not (table["ring_necrosis"] & ~table["enhancing"]).any()


def test_the_signs_allow_an_auc_of_0_954_and_no_more() -> None:
    table = draw_patients(MANY, seed=6)
    assert roc_auc_score(table["label"], bayes_score(table)) == pytest.approx(0.954, abs=0.008)


def test_ages_and_volumes_have_the_moments_of_their_group() -> None:
    table = draw_patients(MANY, seed=7)
    for group in GROUPS:
        rows = table[table["group"] == group.name]
        age = rows["Age at MRI"]
        assert age.mean() == pytest.approx(group.age_years[0], abs=4 * group.age_years[1] / np.sqrt(len(rows)) + 0.7)
        assert age.std() == pytest.approx(group.age_years[1], rel=0.15)
        assert rows["volume_ml"].mean() == pytest.approx(group.volume_ml[0], rel=0.12)


def test_most_oedema_is_in_wildtype_tumours() -> None:
    share = draw_patients(MANY, seed=8).groupby("label")["oedema_share"].mean()
    assert share[WILDTYPE] > share[MUTANT] + 0.15


def test_the_same_seed_draws_the_same_patients_and_another_seed_others() -> None:
    pd.testing.assert_frame_equal(draw_patients(50, seed=1), draw_patients(50, seed=1))
    assert not draw_patients(50, seed=1).equals(draw_patients(50, seed=2))


# Controls


def test_null_labels_are_told_by_neither_image_nor_age_nor_sex() -> None:
    table = draw_patients(MANY, seed=9, control="null")
    assert table["label"].mean() == pytest.approx(102 / 495, abs=0.01)
    for score in (bayes_score(table), -table["Age at MRI"], table["volume_ml"], table["Sex"] == "M"):
        assert roc_auc_score(table["label"], score) == pytest.approx(0.5, abs=0.025)


def test_null_keeps_label_and_diagnosis_of_a_row_together() -> None:
    table = draw_patients(300, seed=9, control="null")
    assert ((table["IDH"] != "wildtype") == (table["label"] == MUTANT)).all()
    assert (table["Final pathologic diagnosis (WHO 2021)"].str.contains("mutant") == (table["label"] == 1)).all()


def test_trivial_patients_are_told_by_enhancement_alone() -> None:
    table = draw_patients(300, seed=9, control="trivial")
    assert (table["enhancing"] == (table["label"] == WILDTYPE)).all()
    assert table["ring_necrosis"].equals(table["enhancing"])


@pytest.mark.parametrize("label", [WILDTYPE, MUTANT])
def test_the_shortcut_agrees_with_nine_in_ten_labels_of_each_class(label: int) -> None:
    rows = draw_patients(990, seed=9, control="shortcut").query(f"label == {label}")
    assert (rows["mark"] == (rows["label"] == MUTANT)).mean() == pytest.approx(0.9, abs=0.5 / len(rows) + 1e-9)


def test_only_the_shortcut_has_marks() -> None:
    assert [c for c in CONTROLS if draw_patients(100, seed=0, control=c)["mark"].any()] == ["shortcut"]


def test_the_mark_is_bright_in_every_sequence_and_far_from_the_tumour() -> None:
    images = rendered(replace(PLAIN, mark=True))
    mark = carrying(images, SignMasks.MARK)
    assert 1.0 < mark.sum() * 0.027 < 3.0
    assert not (mark & (images.labels > 0)).any()
    assert all(over_white(images, sequence, mark) > 1.3 for sequence in SEQUENCES)
    centre = np.argwhere(mark).mean(axis=0)
    tumour = np.argwhere(images.labels > 0)
    assert np.linalg.norm((tumour - centre) * 3.0, axis=1).min() > 30


def test_without_a_mark_the_same_patient_looks_the_same_elsewhere() -> None:
    with_mark, without = rendered(replace(PLAIN, mark=True)), rendered(PLAIN)
    assert not carrying(without, SignMasks.MARK).any()
    np.testing.assert_array_equal(with_mark.labels, without.labels)


# What the images show


def test_fluid_is_dark_on_flair_and_t1_and_bright_on_t2() -> None:
    assert signal(TISSUES["csf"], "FLAIR") < 1e-6
    assert signal(TISSUES["csf"], "T1") < 0.2 * signal(TISSUES["white"], "T1")
    assert signal(TISSUES["csf"], "T2") > 2 * signal(TISSUES["white"], "T2")


def test_tissue_without_contrast_agent_looks_alike_on_t1_and_t1c() -> None:
    tissue = replace(TISSUES["enhancing"], agent_mm=0.0)
    assert signal(tissue, "T1") == signal(tissue, "T1c")


@pytest.mark.parametrize(("sequence", "sign"), [("T1", -1), ("T1c", -1), ("T2", 1)])
def test_watery_tumours_are_darker_on_t1_and_brighter_on_t2(sequence: str, sign: int) -> None:
    for name in ("solid", "oedema"):
        assert sign * (signal(TISSUES[name].watered(0.1), sequence) - signal(TISSUES[name], sequence)) > 0


def test_the_mismatch_core_is_bright_on_t2_and_dark_on_flair_within_a_bright_rim() -> None:
    images = rendered(replace(PLAIN, mismatch=True, solid=False, oedema_share=0.05), spacing_mm=2.0)
    mismatch = carrying(images, SignMasks.MISMATCH)
    core = sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(mismatch.astype(np.uint8)), [3, 3, 3])) > 0
    inner = sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(mismatch.astype(np.uint8)), [1, 1, 1])) > 0
    rim = mismatch & ~inner
    assert core.sum() > 500
    assert over_white(images, "T2", core) > 2.0
    assert over_white(images, "FLAIR", core) < 0.9
    assert over_white(images, "FLAIR", rim) > 1.3
    flair = images.sequences["FLAIR"][core].astype(float)
    assert flair.std() / flair.mean() < 0.25


def test_a_ring_enhances_on_t1c_only_around_necrosis() -> None:
    images = rendered(replace(PLAIN, enhancing=True, ring_necrosis=True, solid=False), spacing_mm=2.0)
    ring, necrosis = carrying(images, SignMasks.ENHANCEMENT), carrying(images, SignMasks.RING_NECROSIS)
    assert over_white(images, "T1c", ring) > 1.3
    assert over_white(images, "T1", ring) < 0.9
    for sequence in ("T1", "T1c"):
        assert over_white(images, sequence, necrosis) < 0.6
    assert over_white(images, "T2", necrosis) > 1.8
    assert over_white(images, "FLAIR", carrying(images, SignMasks.OEDEMA)) > 1.2
    # The necrosis is closed in: its surface touches the ring and little else.
    grown = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(necrosis.astype(np.uint8)), [1, 1, 1])) > 0
    surface = grown & ~necrosis
    assert ring[surface].mean() > 0.7


@pytest.mark.parametrize("signs", [PLAIN, replace(PLAIN, solid=False), replace(PLAIN, mismatch=True, cyst=True)])
def test_a_tumour_that_does_not_enhance_has_no_enhancing_voxel(signs: Signs) -> None:
    images = rendered(signs)
    assert not (images.labels == ENHANCING).any()
    assert not carrying(images, SignMasks.ENHANCEMENT).any()
    assert over_white(images, "T1c", images.labels > 0) < 0.9


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        ("cyst", SignMasks.CYST),
        ("mismatch", SignMasks.MISMATCH),
        ("solid", SignMasks.SOLID),
        ("multifocal", SignMasks.FURTHER_FOCUS),
        ("enhancing", SignMasks.ENHANCEMENT),
    ],
)
def test_a_sign_has_evidence_exactly_when_it_was_drawn(sign: str, code: SignMasks) -> None:
    base = replace(PLAIN, solid=False)
    assert carrying(rendered(replace(base, **{sign: True})), code).sum() * 0.027 > 1.0
    assert not carrying(rendered(base), code).any()


def test_further_foci_are_separate_from_the_main_tumour() -> None:
    images = rendered(replace(PLAIN, multifocal=True, oedema_share=0.05))
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray((images.labels == NECROTIC_OR_SOLID).astype(np.uint8)))
    sizes = np.bincount(sitk.GetArrayFromImage(parts).ravel())[1:] * 0.027
    assert (sizes > 2.0).sum() >= 2


def test_a_diffuse_margin_is_wider_than_a_sharp_one() -> None:
    def width(sharp: bool) -> float:
        # Voxels of the transition between normal and solid tissue on T2, per voxel of tumour.
        field, rng = field_grid(2.0), np.random.default_rng(0)
        anatomy = make_anatomy(field, draw_pose(rng), [], rng)
        focus = Focus(tumour_seeds()["frontal", "left"][0], 60.0, 0.1)
        lesion = grow_lesion(anatomy, [focus], replace(PLAIN, sharp_margin=sharp), 0.9, np.random.default_rng(1))
        solid = lesion.parts["solid"]
        return float(((solid > 0.1) & (solid < 0.9)).sum() / (solid > 0.5).sum())

    assert width(False) > 2 * width(True)


def test_oedema_follows_white_matter_and_spares_cortex() -> None:
    field, rng = field_grid(3.0), np.random.default_rng(0)
    anatomy = make_anatomy(field, draw_pose(rng), [], rng)
    focus = Focus(tumour_seeds()["parietal", "right"][0], 20.0, 60.0)
    lesion = grow_lesion(anatomy, [focus], PLAIN, 0.9, np.random.default_rng(1))
    oedema = lesion.parts["oedema"]
    assert (oedema * anatomy.white).sum() / oedema.sum() > 0.75
    assert oedema.sum() * anatomy.grid.voxel_ml == pytest.approx(60, rel=0.2)


def test_patients_for_pretraining_are_wider_than_the_table() -> None:
    rng = np.random.default_rng(0)
    signs = {label: [draw_signs(label, rng) for _ in range(300)] for label in (WILDTYPE, MUTANT)}
    volumes = np.array([one.volume_ml for some in signs.values() for one in some])
    assert volumes.min() < 5
    assert volumes.max() > 250
    assert {one.variety for some in signs.values() for one in some} == {1.0}
    # Wildtypes of grade 2 and 3 are a fifth, not a sixteenth: the share that enhances tells.
    enhancing = np.mean([one.enhancing for one in signs[WILDTYPE]])
    assert enhancing == pytest.approx((0.95 * 368**0.5 + 0.5 * 24**0.5) / (368**0.5 + 24**0.5), abs=0.045)
    # The tumour may lie anywhere, below the tentorium too.
    centres = np.array([place_foci(one, rng)[0].centre_mm for some in signs.values() for one in some])
    assert set(lobe_of(*centres.T)) == {-1, 0, 1, 2, 3, 4}
    assert ((centres[:, 0] < -20) & (centres[:, 1] > 45)).any()


@pytest.mark.parametrize("volume_ml", [3.0, 250.0])
def test_a_tumour_of_any_size_may_lie_anywhere(volume_ml: float) -> None:
    images = rendered(replace(PLAIN, lobe=ANYWHERE, cyst=True, volume_ml=volume_ml, variety=1.0))
    assert (images.labels > 0).sum() * 0.027 == pytest.approx(volume_ml, rel=0.6)


def test_variety_changes_the_contrast_of_healthy_tissue() -> None:
    def grey_over_white(variety: float, seed: int) -> float:
        images = rendered(replace(PLAIN, volume_ml=20.0, variety=variety), seed=seed)
        t1 = images.sequences["T1"].astype(float)
        healthy = t1[(t1 > 0) & (images.labels == 0)]
        return float(np.quantile(healthy, 0.3) / np.quantile(healthy, 0.9))

    usual, varied = ([grey_over_white(variety, seed) for seed in range(5)] for variety in (0.0, 1.0))
    assert np.ptp(varied) > 3 * np.ptp(usual)


def test_gliosis_is_white_matter_by_the_ventricles_and_in_spots() -> None:
    field, rng = field_grid(3.0), np.random.default_rng(0)
    anatomy = make_anatomy(field, draw_pose(rng), [], rng)
    shares = [gliosis(anatomy, np.random.default_rng(seed)) for seed in range(30)]
    assert min(share.min() for share in shares) >= 0
    assert max(share.max() for share in shares) <= 1
    sizes_ml = [(share * anatomy.white).sum() * anatomy.grid.voxel_ml for share in shares]
    assert max(sizes_ml) > 3
    assert min(sizes_ml) < 1
    assert max(sizes_ml) < 60
    placed = anatomy.placed(shares[0])  # in the brain, and nowhere else
    assert np.isclose(placed.sum(), shares[0].sum(), rtol=1e-4)
    assert not np.any(placed[~anatomy.brain])


@pytest.mark.parametrize("volume_ml", [25.0, 60.0, 150.0])
def test_the_segmentation_has_about_the_volume_that_was_drawn(volume_ml: float) -> None:
    images = rendered(replace(PLAIN, volume_ml=volume_ml, enhancing=True, ring_necrosis=True))
    assert (images.labels > 0).sum() * 0.027 == pytest.approx(volume_ml, rel=0.3)
    assert set(np.unique(images.labels)) == {0, NECROTIC_OR_SOLID, OEDEMA, ENHANCING}


@pytest.mark.parametrize("side", ["left", "right"])
def test_tumours_lie_on_the_side_and_in_the_lobe_that_were_drawn(side: str) -> None:
    frontal = rendered(replace(PLAIN, side=side, volume_ml=30.0))
    occipital = rendered(replace(PLAIN, side=side, lobe="occipital", volume_ml=30.0))
    brain = np.argwhere(frontal.sequences["T1"] > 0).mean(axis=0)
    for images in (frontal, occipital):
        _, _, width = np.argwhere(images.labels > 0).mean(axis=0) - brain
        assert (width > 3) == (side == "left")  # W grows to the patient's left
    assert (
        np.argwhere(frontal.labels > 0).mean(axis=0)[1] < brain[1] < np.argwhere(occipital.labels > 0).mean(axis=0)[1]
    )


def test_mass_effect_widens_what_is_near_and_leaves_what_is_far() -> None:
    field = field_grid(4.0)
    pose = draw_pose(np.random.default_rng(0))
    push = Push(np.array([20.0, -20.0, 30.0], dtype=np.float32), 25.0, 0.35)
    free = make_anatomy(field, pose, [], np.random.default_rng(1))
    pushed = make_anatomy(field, pose, [push], np.random.default_rng(1))
    distance = np.sqrt((free.z - 20) ** 2 + (free.y + 20) ** 2 + (free.x - 30) ** 2)
    change = np.abs(free.placed(free.white) - pushed.placed(pushed.white))[free.brain]
    assert change[distance < 40].mean() > 0.05
    assert change[distance > 110].mean() < 0.002


def test_smooth_fields_have_unit_spread_and_do_not_depend_on_the_grid() -> None:
    fine = smooth_field(field_grid(2.5), 30.0, np.random.default_rng(0))
    assert fine.mean() == pytest.approx(0, abs=0.15)
    assert fine.std() == pytest.approx(1, abs=0.15)
    part = field_grid(2.5).crop((10, 20, 30), (40, 60, 90))
    np.testing.assert_allclose(smooth_field(part, 30.0, np.random.default_rng(0)), fine[10:40, 20:60, 30:90], atol=2e-5)


def test_maps_are_interpolated_as_scipy_does_it_and_where_all_is_zero_nothing_is_computed() -> None:
    template, rng = load_template(0.0), np.random.default_rng(0)
    shape = np.array(template.brain.shape)
    places = (rng.uniform(-0.1, 1.1, (3, 40, 50, 60)) * shape[:, None, None, None]).astype(np.float32)
    white, brain = interpolated([template.white, template.brain], places)
    expected = map_coordinates(template.white, places, order=1, mode="nearest")
    np.testing.assert_allclose(white, expected, atol=2e-5)
    (near,) = interpolated([template.brain], places, template.near)
    np.testing.assert_array_equal(near, brain)
    assert 0.1 < np.mean(brain > 0) < 0.2


def test_tissues_fill_the_brain_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    anatomy = make_anatomy(field_grid(4.0), draw_pose(rng), [], rng)
    total = anatomy.white + anatomy.grey + anatomy.csf + anatomy.vein
    np.testing.assert_allclose(total, 1, atol=1e-5)
    placed = anatomy.placed(total)
    np.testing.assert_array_equal(placed[anatomy.brain], total)
    assert not placed[~anatomy.brain].any()
    assert 1000 < anatomy.brain.sum() * anatomy.grid.voxel_ml < 1800


# What is on disk


def test_one_millimetre_gives_the_grid_of_the_real_collection() -> None:
    grid = field_grid(1.0)
    assert grid.shape == (155, 240, 240)
    assert grid.origin_mm == (0.0, -239.0, 0.0)


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 3.0])
def test_every_spacing_covers_the_same_field(spacing_mm: float) -> None:
    grid, reference = field_grid(spacing_mm), field_grid(1.0)
    for axis in range(3):
        middle = grid.origin_mm[axis] + spacing_mm * (grid.shape[axis] - 1) / 2
        assert middle == pytest.approx(reference.origin_mm[axis] + (reference.shape[axis] - 1) / 2)
        assert abs(grid.shape[axis] * spacing_mm - reference.shape[axis]) <= spacing_mm / 2


def test_files_are_16_bit_in_lps_orientation_with_an_empty_background(cohort: PhantomCohort) -> None:
    for study in cohort.read().studies[:4]:
        images = {name: sitk.ReadImage(str(path)) for name, path in study.files.items()}
        arrays = {name: sitk.GetArrayFromImage(image) for name, image in images.items()}
        for image in images.values():
            assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
            assert image.GetSpacing() == pytest.approx((5.0, 5.0, 5.0))
            assert image.GetPixelID() == sitk.sitkInt16
        brain = arrays["T1"] > 0
        assert 0.05 < brain.mean() < 0.3
        for array in arrays.values():
            np.testing.assert_array_equal(array > 0, brain)
            assert array.min() == 0


def test_evidence_lies_in_the_tumour_and_the_tumour_in_the_brain(cohort: PhantomCohort) -> None:
    for study in cohort.read().studies:
        assert study.mask is not None
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(study.mask)))
        evidence_file = study.mask.with_name(f"{study.study_id}_evidence.nii.gz")
        evidence = sitk.GetArrayFromImage(sitk.ReadImage(str(evidence_file)))
        brain = sitk.GetArrayFromImage(sitk.ReadImage(str(study.files["T2"]))) > 0
        assert evidence.any()
        assert not (evidence.astype(bool) & (labels == 0)).any()
        assert not ((labels > 0) & ~brain).any()


def test_the_real_reader_reads_every_study_without_an_error(cohort: PhantomCohort) -> None:
    result = cohort.read()
    signs = read_signs(cohort.folder)
    assert result.name == "phantom"
    assert result.sequences == SEQUENCES
    assert not [fault for fault in result.faults if fault.severity == "error"]
    assert {study.study_id: study.label for study in result.studies} == signs["label"].to_dict()
    assert {study.study_id for study in result.studies if study.follow_up} == set(signs.index[signs["follow_up"]])


def test_follow_up_studies_belong_to_a_patient_of_the_cohort(cohort: PhantomCohort) -> None:
    studies = {study.study_id: study for study in cohort.read().studies}
    later = [study for study in studies.values() if study.follow_up]
    assert later
    for study in later:
        first = studies[study.patient_id]
        assert (study.label, study.age_years, study.sex) == (first.label, first.age_years, first.sex)


def test_ids_have_three_digits_in_the_table_and_four_in_the_folders(cohort: PhantomCohort) -> None:
    table = pd.read_csv(cohort.folder / "UCSF-PDGM-metadata_v5.csv", dtype=str, keep_default_na=False)
    assert table["ID"].str.fullmatch(r"UCSF-PDGM-\d{3}|UCSF-PDGM-\d{4}_FU\d{3}d").all()
    folders = sorted(path.name for path in cohort.folder.iterdir() if path.is_dir())
    assert len(folders) == len(table)
    for folder in folders:
        study = folder.removesuffix("_nifti")
        names = {path.name for path in (cohort.folder / folder).iterdir()}
        kinds = (*SEQUENCES, "tumor_segmentation", "evidence")
        assert names == {f"{study}_{kind}.nii.gz" for kind in kinds}


def test_idh_is_spelt_as_in_the_real_table(cohort: PhantomCohort) -> None:
    table = pd.read_csv(cohort.folder / "UCSF-PDGM-metadata_v5.csv", dtype=str)
    assert table["IDH"].nunique() > 1
    assert table["IDH"].str.fullmatch(r"wildtype|mutated \(NOS\)|IDH[12] p\.\w+").all()


@pytest.mark.real
def test_the_clinical_table_has_the_columns_and_words_of_the_real_one() -> None:
    real = pd.read_csv(
        Path(os.environ["IDH_REAL_DATA"]) / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv", dtype=str, keep_default_na=False
    )
    ours = draw_patients(1000, seed=0)
    assert tuple(real.columns) == CLINICAL_COLUMNS
    for column in ("Sex", "Final pathologic diagnosis (WHO 2021)", "MGMT status", "1p/19q", "IDH", "EOR"):
        assert set(ours[column]) <= set(real[column])
    assert set(ours["MGMT index"]) <= {"unknown", *map(str, range(18))}


@pytest.mark.slow
def test_files_are_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    one = small(tmp_path / "one", workers=1).write()
    two = small(tmp_path / "two", workers=2).write()
    assert one.name == two.name
    assert contents(one) == contents(two)


def test_another_seed_gives_other_images_in_another_folder(tmp_path: Path) -> None:
    first, second = small(tmp_path, seed=0), small(tmp_path, seed=1)
    assert first.folder != second.folder
    name = "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1.nii.gz"
    assert (first.write() / name).read_bytes() != (second.write() / name).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [{"patients": 13}, {"spacing_mm": 7.0}, {"control": "null"}, {"control": "trivial"}, {"missing_sequence": 0.1}],
)
def test_different_settings_never_share_a_folder(tmp_path: Path, settings: dict[str, object]) -> None:
    assert small(tmp_path, **settings).folder != small(tmp_path).folder


def test_a_bare_null_in_yaml_means_the_null_control(tmp_path: Path) -> None:
    assert small(tmp_path, control=None).folder == small(tmp_path, control="null").folder


def test_a_complete_cohort_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path).write()
    before = contents(folder)
    monkeypatch.setattr(phantom_cohort, "_write_study", _refuse)
    assert small(tmp_path).write() == folder
    assert contents(folder) == before


def test_an_interrupted_cohort_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(tmp_path / "whole").write()
    cohort = small(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(phantom_cohort, "_write_nifti", _fail_after(20))
        with pytest.raises(KeyboardInterrupt):
            cohort.write()
    partial = cohort.folder.with_name(cohort.folder.name + ".partial")
    assert not cohort.folder.exists()
    finished = {path: path.stat().st_mtime_ns for path in partial.glob("UCSF*/*")}
    assert len(finished) == 18  # three studies of six files; the fourth was broken off
    cohort.write()
    assert not partial.exists()
    assert contents(cohort.folder) == contents(whole)
    for path, written in finished.items():
        assert (cohort.folder / path.relative_to(partial)).stat().st_mtime_ns == written


def _refuse(*_: object) -> None:
    raise AssertionError("a study was written")


def _fail_after(files: int) -> Callable[..., None]:
    original, count = phantom_cohort._write_nifti, 0

    def write(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count > files:
            raise KeyboardInterrupt
        original(*arguments)  # type: ignore[arg-type]

    return write


@pytest.mark.parametrize("damage", ["remove", "alter"])
def test_a_folder_that_is_no_complete_cohort_is_refused(tmp_path: Path, damage: str) -> None:
    manifest = small(tmp_path).write() / "manifest.json"
    if damage == "remove":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 9'))
    with pytest.raises(CohortError, match=r"manifest.json: (not there|other settings); expected .* Delete the folder"):
        small(tmp_path).write()


def test_some_studies_lack_a_sequence_when_asked(tmp_path: Path) -> None:
    cohort = small(tmp_path, patients=20, missing_sequence=0.2, missing="zero")
    lacking = {s.study_id: (set(SEQUENCES) - set(s.files)) for s in cohort.read().studies}
    signs = read_signs(cohort.folder)
    assert {study: missing for study, missing in lacking.items() if missing} == {
        study: {name} for study, name in signs["missing"].items() if name
    }
    assert (signs["missing"] != "").sum() == round(0.2 * len(signs))


def test_excluded_studies_are_left_out_and_recorded(cohort: PhantomCohort) -> None:
    reader = PhantomCohort(cohort.folder.parent, patients=24, spacing_mm=5.0, exclude=["UCSF-PDGM-0004"])
    result = reader.read()
    assert "UCSF-PDGM-0004" not in {study.study_id for study in result.studies}
    assert [exclusion.study_id for exclusion in result.exclusions] == ["UCSF-PDGM-0004"]


def test_a_twentieth_lacks_a_sequence_in_a_large_cohort() -> None:
    patients = draw_patients(500, seed=0)
    studies = list_studies(patients, seed=0, missing_sequence=0.05, sequences=SEQUENCES)
    assert (studies["missing"] != "").sum() == 25
    assert set(studies["missing"]) == {"", *SEQUENCES}
    assert studies["study_id"].is_unique
    assert studies["ID"].is_unique


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control": "nul"}, r"cohort.control: 'nul' is not known; expected one of natural"),
        ({"patients": 3}, r"cohort.patients: 3; expected 10 to 9990"),
        ({"spacing_mm": 0.1}, r"cohort.spacing_mm: 0.1; expected 0.5 to 8 mm"),
        ({"seed": -1}, r"cohort.seed: -1; expected 0 or more"),
        ({"workers": 0}, r"cohort.workers: 0; expected 1 or more"),
        ({"missing_sequence": 1.5}, r"cohort.missing_sequence: 1.5; expected a share"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(tmp_path, **settings)


@pytest.mark.slow
def test_one_command_writes_a_cohort_and_says_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "idh_lightning.phantom", f"paths.data={tmp_path}", "cohort.patients=10"]
    done = subprocess.run(
        [*command, "cohort.spacing_mm=8", "cohort.workers=1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "phantom").glob("natural-10-8mm-????????")
    assert str(folder) in done.stdout
    assert "10 patients (2 mutant)" in done.stdout


def test_a_wrong_setting_is_one_line_and_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["phantom", f"paths.data={tmp_path}", "control=wrong"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert "control: found 'wrong'; expected natural" in error
    assert "Traceback" not in error
