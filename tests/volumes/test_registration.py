"""Registration: known moves are found again, what is in place stays as it is, and what cannot be trusted is said."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from tiny_studies import in_brain, in_tumour, points_mm, ras_affine, rotation, write

from idh_lightning.cohort import Cohort
from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.commands.preparing import registrations_table, write_refused_panels, write_study_panels
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.runs.preparation import prepare_cohort
from idh_lightning.volumes import FaultyStudyError, Geometry, Preprocessing, VolumeStore, alignment, consistency
from idh_lightning.volumes.brain import find_brain
from idh_lightning.volumes.consistency import FAILED, POOR
from idh_lightning.volumes.information import PointSample, mutual_information, points_of
from idh_lightning.volumes.registration import (
    REGISTRATION,
    Registration,
    ShiftCheck,
    agreement,
    moved_mm,
    register,
    turned_degrees,
)

TWO = ("FLAIR", "T1c")
SIZE, SPACING, CENTRE = (44, 50, 40), (4.0, 4.0, 4.0), np.array([5.0, -8.0, 3.0])
GRID = ras_affine(SPACING, SIZE)
THICK = (ras_affine((3.0, 3.0, 5.0), (60, 66, 34)), (60, 66, 34))
CURVES = {"FLAIR": (0.0, 1.0), "T1": (1.0, -0.8), "T1c": (0.9, -0.5), "T2": (0.2, 0.7)}


def move(mm=(0, 0, 0), degrees=0, axis=2):
    """Return a rigid RAS affine [4, 4] that turns about the centre of the head and shifts."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees, axis)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ CENTRE + mm
    return affine


def values(name, points, patient):
    """Return the intensities of one sequence of a head with folds of some mm, at points of RAS mm."""
    random = np.random.default_rng(patient)
    cells = ndimage.gaussian_filter(random.normal(size=(40, 40, 40)), 1.0)
    tissue = ndimage.map_coordinates(cells, np.moveaxis((points + 120) / 8, -1, 0), order=1, mode="wrap")
    tissue = tissue / cells.std()
    level, slope = CURVES[name]
    bright = 300 + 100 * (level + slope * tissue + 0.2 * np.sin(3 * tissue))
    return np.where(in_brain(points), np.clip(bright + 150 * (in_tumour(points) & (patient == 0)), 20, None), 0)


def study_of(folder, moves=None, grids=None, patients=None, sequences=TWO, mask_grid=None):
    """Write a study and return it; the head of a sequence lies where `moves` puts it, whatever the others show."""
    files, folder = {}, Path(folder)
    for name in sequences:
        affine, size = (grids or {}).get(name, (GRID, SIZE))
        inverse = np.linalg.inv((moves or {}).get(name, np.eye(4)))
        points = points_mm(affine, size) @ inverse[:3, :3].T + inverse[:3, 3]
        files[name] = write(folder / f"{name}.nii.gz", values(name, points, (patients or {}).get(name, 0)), affine)
    mask = None
    if mask_grid is not None:
        (affine, size), inverse = mask_grid[0], np.linalg.inv(mask_grid[1])
        tumour = in_tumour(points_mm(affine, size) @ inverse[:3, :3].T + inverse[:3, 3])
        mask = write(folder / "mask.nii.gz", tumour, affine, np.uint8)
    return Study(study_id="head", patient_id="head", label=1, files=files, mask=mask)


def prepared(study, sequences=TWO, **settings):
    return Preprocessing(32, **settings)(study, sequences)


def error_of(found: Registration, truth_ras):
    """Return how far a registration is from the truth, in mm over a head and in degrees."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    rest = np.linalg.inv(flip @ truth_ras @ flip) @ found.affine
    return moved_mm(rest, flip[:3, :3] @ CENTRE), turned_degrees(rest)


def image_of(path):
    return sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")


@pytest.mark.parametrize(
    ("mm", "degrees", "axis", "grid"),
    [
        ((2, 0, 0), 0, 0, "same"),
        ((0, 5, 0), 3, 0, "same"),
        ((0, 0, -20), 10, 1, "other"),
        ((-12, 0, 9), -6, 2, "other"),
    ],
)
def test_a_known_move_is_found_within_a_millimetre_and_a_degree(tmp_path, mm, degrees, axis, grid):
    truth = move(mm, degrees, axis)
    grids = {"T1c": THICK} if grid == "other" else {}
    volume = prepared(study_of(tmp_path, {"T1c": truth}, grids))
    (found,) = volume.registrations
    assert (found.sequence, found.reference) == ("T1c", "FLAIR")
    assert found.reason == ("grid" if grids else "shift")
    apart, angle = error_of(found, truth)
    assert apart < 1
    assert angle < 1
    assert found.quality > POOR
    assert [fault.check for fault in volume.faults] == ["registered"]
    still = prepared(study_of(tmp_path / "still"))
    inside = volume.brain > 0
    assert np.corrcoef(volume.image[1][inside], still.image[1][inside])[0, 1] > 0.85
    assert np.array_equal(volume.image[0], still.image[0])


def test_a_study_in_place_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "register", lambda *_: pytest.fail("registered what lies in place"))
    study = study_of(tmp_path, mask_grid=((GRID, SIZE), np.eye(4)))
    auto, never = (prepared(study, registration=choice) for choice in ("auto", "never"))
    assert auto.registrations == never.registrations == auto.faults == never.faults == ()
    assert np.array_equal(auto.image, never.image)
    assert np.array_equal(auto.mask, never.mask)


def test_never_believes_the_headers(tmp_path):
    never = prepared(study_of(tmp_path, grids={"T1c": THICK}), registration="never")
    assert never.registrations == ()
    assert [fault.check for fault in never.faults] == ["different_grid"]
    with pytest.raises(ConfigError, match=r"data\.registration is 'sometimes'; expected 'auto', 'always' or 'never'"):
        Preprocessing(32, registration="sometimes")


def test_always_registers_what_lies_in_place_too(tmp_path):
    (found,) = prepared(study_of(tmp_path), registration="always").registrations
    assert (found.sequence, found.reason) == ("T1c", "always")
    assert error_of(found, np.eye(4))[0] < 1


def test_the_same_images_give_the_same_bits_on_any_number_of_threads(tmp_path):
    study = study_of(tmp_path, {"T1c": move((3, -6, 2), 5)})
    images = [image_of(path) for path in study.files.values()]
    before, found = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), []
    try:
        for threads in (1, 1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(register(*images))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_another_head_whose_header_turns_it_is_refused_with_the_name_of_its_file(tmp_path):
    study = study_of(tmp_path, {"T1c": move(degrees=90)}, {"T1c": THICK}, {"T1c": 7})
    with pytest.raises(FaultyStudyError) as refused:
        prepared(study)
    (fault,) = refused.value.faults
    assert (fault.check, fault.severity) == ("poor_registration", "error")
    assert "T1c.nii.gz" in fault.where
    assert "`prepare` and `train` with data.registration=never" in fault.remedy  # `predict` has no such setting


def test_quality_is_what_a_move_loses_and_tells_a_right_place_from_a_wrong_one(tmp_path):
    study = study_of(tmp_path)
    fixed, moving = (image_of(path) for path in study.files.values())
    brain, _ = find_brain(fixed)
    off = np.eye(4)
    off[:3, 3] = 15
    (much, good), (little, bad) = agreement(fixed, moving, brain), agreement(fixed, moving, brain, off)
    assert good > POOR > FAILED > bad
    assert much > 3 * little
    same, _ = agreement(fixed, fixed, brain)
    assert same > much


def test_mutual_information_of_an_image_with_itself_is_its_entropy_and_with_an_independent_one_nothing():
    levels = np.repeat(np.arange(4, dtype=np.uint8), 100)
    assert mutual_information(levels, levels) == pytest.approx(np.log(4))
    assert mutual_information(levels, np.tile(np.arange(4, dtype=np.uint8), 100)) == pytest.approx(0, abs=1e-12)


def test_a_move_is_measured_as_the_mean_over_the_points_of_a_sphere():
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ move((3, 1, -2), 9, 1) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    centre = np.array([10.0, 20.0, -5.0])
    points = np.random.default_rng(0).uniform(-80, 80, (200_000, 3))
    points = points[(points**2).sum(axis=1) <= 80**2] + centre
    moved = points @ affine[:3, :3].T + affine[:3, 3]
    assert moved_mm(affine, centre) == pytest.approx(np.sqrt(((moved - points) ** 2).sum(axis=1).mean()), rel=0.01)
    assert turned_degrees(affine) == pytest.approx(9)
    assert turned_degrees(np.eye(4)) == 0


def test_a_mask_goes_with_the_sequence_whose_grid_it_has(tmp_path):
    truth = move((8, -6, 0), 5)
    still = prepared(study_of(tmp_path / "still", mask_grid=((GRID, SIZE), np.eye(4))))
    moved = prepared(study_of(tmp_path / "moved", {"T1c": truth}, {"T1c": THICK}, mask_grid=(THICK, truth)))
    assert [fault.check for fault in moved.faults] == ["registered", "different_grid"]
    assert "lies on the grid of T1c and was moved with it" in moved.faults[1].found
    assert (still.mask & moved.mask).sum() / (still.mask | moved.mask).sum() > 0.8
    alone = prepared(study_of(tmp_path / "alone", mask_grid=(THICK, np.eye(4))))
    assert [fault.check for fault in alone.faults] == ["different_grid"]
    assert (still.mask & alone.mask).sum() / (still.mask | alone.mask).sum() > 0.8


def test_without_flair_the_finest_sequence_takes_in_the_others(tmp_path):
    study = study_of(tmp_path, grids={"T1": THICK}, sequences=("T1", "T1c"))
    volume = prepared(study, ("T1", "T1c"))
    assert volume.found.sequence == "T1c"
    assert np.allclose(volume.native.affine_ras, GRID)
    assert [(one.sequence, one.reference) for one in volume.registrations] == [("T1", "T1c")]


def test_an_entry_says_in_its_name_and_its_content_what_was_registered(tmp_path, monkeypatch):
    study = study_of(tmp_path, {"T1c": move((0, 7, 0))})
    store = VolumeStore(tmp_path / "store", Preprocessing(16), TWO)
    first = store.prepare([study], workers=1)
    assert store.open(study).key == f"{store.key(study)}_{REGISTRATION}"
    assert "registration" not in Preprocessing(16).settings()  # entries from before there was a choice keep their names
    never = VolumeStore(tmp_path / "store", Preprocessing(16, registration="never"), TWO)
    assert never.key(study) != store.key(study)
    monkeypatch.setattr(Preprocessing, "__call__", lambda *_: pytest.fail("decoded a study again"))
    again = VolumeStore(tmp_path / "store", Preprocessing(16), TWO)
    assert again.open(study).registrations == store.open(study).registrations
    second = again.prepare([study], workers=1)
    assert (second.reused, second.faults) == (1, first.faults)


def test_prepare_draws_and_lists_what_was_registered(tmp_path):
    study = study_of(tmp_path, {"T1c": move((0, 7, 0))})
    store = VolumeStore(tmp_path / "store", Preprocessing(16), TWO)
    store.prepare([study], workers=1)
    cohort = Cohort(name="one", studies=(study,), sequences=TWO, exclusions=())
    (row,) = registrations_table(cohort, store).to_dict("records")
    assert (row["sequence"], row["reason"]) == ("T1c", "shift")
    assert row["moved_mm"] == pytest.approx(7, abs=1)
    write_study_panels(cohort, store, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"head.png", "head_T1c_registered.png"}


def test_prepare_draws_a_refused_registration_once_registered_and_nothing_of_an_earlier_run(tmp_path, monkeypatch):
    study = study_of(tmp_path, {"T1c": move((0, 7, 0))})
    monkeypatch.setattr(consistency, "FAILED", 2.0)
    monkeypatch.setattr(consistency, "POOR", 2.0)
    calls = []
    monkeypatch.setattr(alignment, "register", lambda *images: calls.append(1) or register(*images))
    cohort, figures = Cohort(name="one", studies=(study,), sequences=TWO, exclusions=()), tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    (figures / "gone_T1_registered.png").touch()
    with pytest.raises(CohortError, match="poor registration"):
        prepare_cohort(
            SimpleNamespace(read=lambda: cohort, on_error="raise"),
            lambda sequences: VolumeStore(tmp_path / "store", Preprocessing(16), sequences),
            lambda cohort: pytest.fail("a refused cohort was split"),
            figures.parent,
            inspect=partial(write_refused_panels, folder=figures),
        )
    assert [path.name for path in figures.iterdir()] == ["head_T1c_registered.png"]
    assert len(calls) == 1


def test_a_check_of_several_images_says_of_each_what_a_new_check_says():
    grid, finer_grid = (Geometry(SIZE, (mm,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel())) for mm in (4.0, 3.0))
    cells = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SIZE[::-1]), 2).astype(np.float32)
    fixed, same, shifted = (grid.image(np.roll(cells, by, axis=2)) for by in (0, 0, 1))
    finer = finer_grid.image(cells)
    check = ShiftCheck(fixed)
    found = [check.shift_mm(moving) for moving in (same, shifted, finer, same)]
    assert found == [ShiftCheck(fixed).shift_mm(moving) for moving in (same, shifted, finer, same)]
    assert found[0] == found[3] < alignment.SHIFT_MM < found[1]
    sample = PointSample(fixed, grid, points_of(fixed, 500, 1))
    moves = [np.eye(4), move((5, 0, 0), 4)]
    assert sample.information(shifted, *moves) == [sample.information(shifted, move)[0] for move in moves]


# Real studies --------------------------------------------------------------------------------------------------------


def real(folder, name, sequence):
    return Path(os.environ["IDH_REAL_DATA"]) / folder / name / f"{name}_{sequence}.nii.gz"


@pytest.mark.real
@pytest.mark.parametrize(("folder", "name"), [("four", "BraTS2021_00014"), ("tcga_lgg", "TCGA-DU-5855")])
def test_of_a_real_study_a_known_move_is_found_and_what_lies_in_place_stays(folder, name):
    fixed, moving = (image_of(real(folder, name, sequence)) for sequence in ("FLAIR", "T1"))
    assert ShiftCheck(fixed).shift_mm(moving) < alignment.SHIFT_MM
    centre = np.array(fixed.TransformContinuousIndexToPhysicalPoint([n / 2 for n in fixed.GetSize()]))
    truth = np.eye(4)
    truth[:3, :3] = rotation(8, 0)
    truth[:3, 3] = centre - truth[:3, :3] @ centre + [5, -10, 4]
    voxels = sitk.GetArrayFromImage(moving)
    moved = Geometry.from_affine(moving.GetSize(), truth @ Geometry.of(moving).affine).image(voxels)
    rest = np.linalg.inv(truth) @ register(fixed, moved)
    assert moved_mm(rest, centre) < 1
    assert turned_degrees(rest) < 1


@pytest.mark.real
def test_a_real_study_in_place_comes_out_bit_for_bit_as_without_registration():
    name = "BraTS2021_00005"
    files = {sequence: real("four", name, sequence) for sequence in SEQUENCES}
    study = Study(study_id=name, patient_id=name, label=1, files=files, mask=None)
    auto, never = (Preprocessing((49, 65, 49), registration=choice)(study) for choice in ("auto", "never"))
    assert auto.registrations == auto.faults == ()
    assert np.array_equal(auto.image, never.image)
