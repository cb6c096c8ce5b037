"""A damaged copy of a study for every check: the fault is found, named, and nothing else is."""

import dataclasses
import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
from tiny_studies import (
    RADII_MM,
    in_brain,
    in_tumour,
    points_mm,
    ras_affine,
    rotation,
    sequence_values,
    write,
    write_study,
)

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.errors import VolumeError
from idh_lightning.volumes import FaultyStudyError, Preprocessing, VolumeStore
from idh_lightning.volumes.checks import has_wrapped
from idh_lightning.volumes.consistency import check_repeats_between
from idh_lightning.volumes.reading import read_header, read_voxels


def faults_of(study, **settings):
    """Return all faults of a study, whether or not it could be prepared."""
    try:
        return Preprocessing(24, **settings)(study).faults
    except FaultyStudyError as error:
        return error.faults


def only(study, check, severity, file=None, **settings):
    """Assert that a study has one fault, of this kind, and return it."""
    faults = faults_of(study, **settings)
    assert [(fault.check, fault.severity) for fault in faults] == [(check, severity)]
    assert faults[0].study_id == study.study_id
    assert study.study_id in faults[0].where
    if file is not None:
        assert file.name in faults[0].where
    assert faults[0].remedy.endswith(".")
    return faults[0]


def changed(path, change=None, affine=None, dtype=np.int16):
    """Write a file again with other voxels or another affine."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    return write(path, voxels if change is None else change(voxels), image.affine if affine is None else affine, dtype)


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def test_a_sound_study_has_no_faults(study):
    assert faults_of(study) == ()


def test_a_missing_file(study):
    study.files["T1"].unlink()
    fault = only(study, "missing_file", "error", study.files["T1"])
    assert str(study.files["T1"]) in fault.found


def test_an_ending_in_capitals_is_that_of_a_nifti_file(study):
    upper = study.files["T1"].rename(study.files["T1"].with_name("T1.NII.GZ"))
    assert not faults_of(dataclasses.replace(study, files={**study.files, "T1": upper}))


def test_a_file_that_is_no_nifti(study):
    study.files["T1"].write_bytes(b"not an image at all" * 100)
    only(study, "unreadable_file", "error", study.files["T1"])
    renamed = study.files["T1"].rename(study.files["T1"].with_name("T1.dcm"))
    study = dataclasses.replace(study, files={**study.files, "T1": renamed})
    assert "not named as a NIfTI" in only(study, "unreadable_file", "error", renamed).found


@pytest.mark.parametrize("keep", [0.001, 0.01, 0.5, 0.99])
def test_a_truncated_compressed_file(study, keep):
    content = study.files["T2"].read_bytes()
    study.files["T2"].write_bytes(content[: int(keep * len(content))])
    only(study, "unreadable_file", "error", study.files["T2"])


def test_a_compressed_file_that_lost_its_last_byte(study):
    content = study.files["T2"].read_bytes()
    study.files["T2"].write_bytes(content[:-1])
    only(study, "unreadable_file", "error", study.files["T2"])


def test_a_truncated_uncompressed_file(study):
    path = study.files["T2"].with_name("T2.nii")
    path.write_bytes(gzip.decompress(study.files["T2"].read_bytes())[:-1])
    study = dataclasses.replace(study, files={**study.files, "T2": path})
    fault = only(study, "unreadable_file", "error", path)
    assert "bytes are there" in fault.found


def test_a_byte_that_changed_in_a_compressed_file(study):
    content = bytearray(study.files["T2"].read_bytes())
    content[len(content) // 2] ^= 0xFF
    study.files["T2"].write_bytes(bytes(content))
    only(study, "unreadable_file", "error", study.files["T2"])


def test_a_header_of_impossible_size_is_refused_before_memory_is_taken(study):
    raw = bytearray(gzip.decompress(study.files["T2"].read_bytes()))
    raw[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    study.files["T2"].write_bytes(gzip.compress(bytes(raw)))
    fault = only(study, "image_size", "error", study.files["T2"])
    assert "30000 x 30000 x 30000" in fault.found


def test_a_single_slice(study):
    write(study.files["T2"], np.ones((40, 48, 1)), np.eye(4))
    only(study, "image_size", "error", study.files["T2"])


def test_a_4d_file(study):
    changed(study.files["T2"], lambda voxels: np.stack([voxels, voxels], axis=-1))
    assert "40 x 48 x 38 x 2" in only(study, "not_3d", "error", study.files["T2"]).found


def test_a_fourth_dimension_of_one_is_no_dimension(study):
    before = Preprocessing(24)(study).image
    changed(study.files["T2"], lambda voxels: voxels[..., None])
    assert nib.load(study.files["T2"]).ndim == 4
    assert np.array_equal(before, Preprocessing(24)(study).image)


def test_colour_voxels(study):
    rgb = np.zeros((40, 48, 38), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, ras_affine()), study.files["T2"])
    only(study, "voxel_type", "error", study.files["T2"])


def test_a_sheared_affine(study):
    affine = ras_affine()
    affine[0, 2] = 0.8
    image = nib.Nifti1Image(np.asarray(nib.load(study.files["T1"]).dataobj), affine)
    image.set_sform(affine, 1)
    nib.save(image, study.files["T1"])
    only(study, "sheared_affine", "error", study.files["T1"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite(study, value):
    raw = bytearray(gzip.decompress(study.files["T1"].read_bytes()))
    raw[280:284] = struct.pack("<f", value)  # srow_x[0]
    study.files["T1"].write_bytes(gzip.compress(bytes(raw)))
    only(study, "non_finite_affine", "error", study.files["T1"])


@pytest.mark.parametrize("factor", [0.001, 10])
def test_an_implausible_spacing(study, factor):
    changed(study.files["T1"], affine=ras_affine() * factor)
    only(study, "implausible_spacing", "error", study.files["T1"])


def test_a_header_without_orientation(study):
    image = nib.Nifti1Image(np.asarray(nib.load(study.files["T1"]).dataobj), None)
    image.header.set_zooms((4, 4, 4))
    path = study.files["T1"]
    nib.save(image, path)
    single = dataclasses.replace(study, files={"T1": path}, mask=None)
    faults = Preprocessing(24)(single, ["T1"]).faults
    assert [(fault.check, fault.severity) for fault in faults] == [("left_right_unknown", "warning")]


def test_a_header_whose_two_transforms_are_mirror_images(study):
    image = nib.load(study.files["T1"])
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ image.affine, 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), study.files["T1"])
    only(study, "left_right_conflict", "error", study.files["T1"])


def test_a_header_whose_two_transforms_lie_apart(study):
    image = nib.load(study.files["T1"])
    moved = image.affine.copy()
    moved[2, 3] += 12
    image.set_qform(moved, 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), study.files["T1"])
    assert "12.0 mm apart" in only(study, "two_geometries", "warning", study.files["T1"]).found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(study, value):
    def spoil(voxels):
        voxels = voxels.astype(np.float32)
        voxels[3, 4, 5] = value
        return voxels

    changed(study.files["T1c"], spoil, dtype=np.float32)
    assert "1 of 72960" in only(study, "non_finite_voxels", "error", study.files["T1c"]).found


def test_a_constant_image(study):
    changed(study.files["T1c"], lambda voxels: np.full_like(voxels, 7))
    assert "every voxel is 7" in only(study, "constant_image", "error", study.files["T1c"]).found


# Numbers that did not fit --------------------------------------------------------------------------------------------


def brightest_wrapped(voxels):
    """Stretch an image so that its brightest voxels do not fit 16 bits, and let them go round."""
    bright = voxels * (32768 / np.percentile(voxels[voxels > 0], 98))
    return bright.astype(np.int64).astype(np.int16)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_bright_voxels_that_went_round_to_negative_numbers_are_refused(study, name, dtype):
    changed(study.files[name], brightest_wrapped, dtype=dtype)
    assert "negative" in only(study, "wrapped_voxels", "error", study.files[name]).found


def test_bright_scalp_that_went_round_is_refused(tmp_path, brains_at_once):
    size = (50, 58, 44)
    study = write_study(tmp_path, affine=ras_affine(size=size), size=size, skull=True)
    smooth = scipy.ndimage.gaussian_filter  # a scalp of several voxels, as scanners see it
    changed(study.files["T1"], lambda voxels: smooth(voxels * 90.0, 0.8).astype(np.int64).astype(np.int16))
    assert "wrapped_voxels" in {fault.check for fault in faults_of(study)}


SOUND_NEGATIVES = {
    "z-scores": lambda v: np.where(v > 0, (v - v[v > 0].mean()) / v[v > 0].std(), 0),
    "z-scores above their background": lambda v: np.where(v > 0, (v - v[v > 0].mean()) / v[v > 0].std(), -9),
    "z-scores stretched over 16 bits": lambda v: np.where(v > 0, (v - 340) * 80.0, 0).clip(-32768, 32767).round(),
    "air of -1000": lambda v: np.where(v > 0, v / 8.0, -1000),
    "padding of -32768 at the corners": lambda v: np.where(np.indices(v.shape).sum(0) < 9, -32768, v),
    "ringing": lambda v: scipy.ndimage.shift(v.astype(np.float32), 0.4, order=3),
    "ringing of a fifth": lambda v: v + 0.2 * scipy.ndimage.laplace(v.astype(np.float32)).clip(-v.max(), 0),
    "one dark voxel": lambda v: np.where(np.arange(v.size).reshape(v.shape) == 38000, -300, v),
}


@pytest.mark.parametrize("kind", SOUND_NEGATIVES)
def test_negative_numbers_that_belong_there_are_not_taken_for_wrapped_ones(study, kind):
    for path in study.files.values():
        voxels = SOUND_NEGATIVES[kind](np.asarray(nib.load(path).dataobj))
        assert not has_wrapped(np.asarray(voxels, dtype=np.float32).T), path.name


# A background that is not one number ---------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
RESIDUES = {
    "of 1e-3": lambda v: np.where(v > 0, v, 1e-3 * RANDOM.random(v.shape)),
    "on both sides of 0": lambda v: v + RANDOM.normal(0, 1e-3 * v.max(), v.shape),
    "about -1": lambda v: v - 1 + RANDOM.normal(0, 1e-3, v.shape),
    "none, all is 0.5 higher": lambda v: v + 0.5,
    "none, all is 1e-3 higher": lambda v: v + 1e-3,
    "of z-scores": lambda v: SOUND_NEGATIVES["z-scores"](v) + RANDOM.normal(0, 1e-3, v.shape),
    "of z-scores above it": lambda v: (
        SOUND_NEGATIVES["z-scores above their background"](v) + RANDOM.random(v.shape) / 1e3
    ),
}


@pytest.mark.parametrize("kind", RESIDUES)
def test_a_residue_where_a_stripped_image_should_be_zero_is_no_skull(study, kind):
    before = Preprocessing(32)(study)
    for path in study.files.values():
        changed(path, lambda voxels: RESIDUES[kind](voxels), dtype=np.float64)
    after = Preprocessing(32)(study)
    assert after.faults == ()
    assert dice(after.brain, before.brain) > 0.99
    assert np.abs(after.image - before.image)[:, (after.brain & before.brain) > 0].mean() < 0.03


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.int16, marks=pytest.mark.slow)])
def test_what_splines_swing_beside_the_brain_is_no_brain(study, dtype):
    affine = ras_affine(spacing=(2.0, 2.0, 2.0), size=(80, 96, 76))
    for path in (*study.files.values(), study.mask):
        order, kept = (0, np.uint8) if path == study.mask else (3, dtype)
        settings = {"order": order, "mode": "grid-constant", "grid_mode": True}
        changed(path, lambda v: scipy.ndimage.zoom(v.astype(np.float32), 2, **settings), affine, kept)  # noqa: B023
    volume = Preprocessing(32)(study)
    assert volume.faults == ()
    truth = 4 / 3 * np.pi * np.prod(RADII_MM)
    assert volume.brain.sum() * (200 / 32) ** 3 == pytest.approx(truth, rel=0.08)


def dice(one, other):
    return 2 * ((one > 0) & (other > 0)).sum() / ((one > 0).sum() + (other > 0).sum())


# Parts that were lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blank", "severity"), [(slice(26, None), "error"), (slice(19, 22), "error"), (slice(29, None), "warning")]
)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_of_which_a_part_is_blank_is_found_where_a_cohort_is_prepared(study, name, blank, severity):
    def without(voxels):
        voxels[:, :, blank] = 0
        return voxels

    changed(study.files[name], without)
    lost = [fault for fault in faults_of(study) if fault.check == "lost_part"]
    assert [fault.severity for fault in lost] == [severity]
    assert lost[0].found.startswith(f"{name} shows nothing in ")


def test_an_empty_mask(study):
    changed(study.mask, np.zeros_like, dtype=np.uint8)
    only(study, "empty_mask", "error", study.mask)


def test_a_mask_without_background(study):
    changed(study.mask, np.ones_like, dtype=np.uint8)
    only(study, "full_mask", "error", study.mask)


def test_a_mask_of_probabilities(study):
    changed(study.mask, lambda voxels: voxels * 0.7, dtype=np.float32)
    only(study, "mask_not_labels", "error", study.mask)


@pytest.mark.parametrize("factor", [1.0000153, 0.99999])
def test_labels_that_were_saved_again_as_nearly_whole_numbers_are_the_same_mask(study, factor):
    changed(study.mask, lambda voxels: voxels * 4, dtype=np.uint8)
    before = Preprocessing(24)(study)
    changed(study.mask, lambda voxels: voxels * factor + np.where(voxels == 0, 1e-5, 0), dtype=np.float32)
    after = Preprocessing(24)(study)
    assert after.faults == ()
    assert np.array_equal(after.mask, before.mask)


@pytest.mark.parametrize("factor", [0.3, 100.3, 1 / 255])
def test_probabilities_are_refused_whatever_their_unit(study, factor):
    changed(study.mask, lambda voxels: voxels * factor, dtype=np.float32)
    only(study, "mask_not_labels", "error", study.mask)


def test_a_probability_in_256_steps_is_no_mask(study):
    steps = np.random.default_rng(0).integers(1, 255, (40, 48, 38))
    changed(study.mask, lambda voxels: voxels * steps, dtype=np.uint8)
    assert "different values" in only(study, "mask_not_labels", "error", study.mask).found


@pytest.mark.parametrize(
    ("change", "voxels_below"),
    [
        (lambda tumour, brain: np.where(tumour, 1, -1), "-1 stands in 99"),
        (lambda tumour, brain: np.where(tumour, 4, np.where(brain, 0, -1)), "-1 stands in"),
        (lambda tumour, brain: np.where(tumour, 0, -1), "-1 stands in 99"),
        (lambda tumour, brain: np.where(tumour, -1, 0), "-1 stands in 0"),
    ],
    ids=["-1 and 1", "-1 beside the head, 0 in it", "-1 and 0", "the tumour is -1"],
)
def test_a_mask_with_negative_numbers_is_read_and_what_they_are_taken_for_is_said(study, change, voxels_below):
    before = Preprocessing(24)(study).mask
    points = points_mm(ras_affine(), (40, 48, 38))
    changed(study.mask, lambda voxels: change(voxels > 0, in_brain(points)), dtype=np.int16)
    assert voxels_below in only(study, "negative_labels", "warning", study.mask).found
    assert np.array_equal(Preprocessing(24)(study).mask, before)


def test_a_mask_that_is_inverted_is_called_full(study):
    changed(study.mask, lambda voxels: 1 - voxels, dtype=np.uint8)
    assert "99" in only(study, "full_mask", "error", study.mask).found


@pytest.mark.parametrize("tissues", [3, 1], ids=["a segmentation of three tissues", "a brain mask"])
def test_a_mask_that_covers_the_brain_is_not_taken_for_a_tumour(study, tissues):
    brain = in_brain(points_mm(ras_affine(), (40, 48, 38)))
    labels = 1 + np.random.default_rng(0).integers(0, tissues, brain.shape)
    changed(study.mask, lambda voxels: brain * labels, dtype=np.uint8)
    fault = only(study, "mask_of_the_brain", "error", study.mask)
    assert "100% of the brain" in fault.found
    assert "labels: 1 100%" in fault.found if tissues == 1 else "labels: 1 3" in fault.found


def test_grey_matter_alone_is_not_taken_for_a_tumour(study):
    points = points_mm(ras_affine(), (40, 48, 38))
    changed(study.mask, lambda voxels: in_brain(points) & ~in_brain(points / 0.85), dtype=np.uint8)
    fault = only(study, "mask_of_the_brain", "error", study.mask)
    assert "covers 39% of the brain (its labels: 1 100%) and spans 100% of its length" in fault.found


def test_a_tumour_that_fills_a_third_of_the_brain_is_one(study):
    points = points_mm(ras_affine(), (40, 48, 38))
    changed(study.mask, lambda voxels: in_brain(points) & (points[..., 0] < -12), dtype=np.uint8)
    assert not {fault.check for fault in faults_of(study)} & {"mask_of_the_brain", "misaligned_mask"}


def test_a_mask_of_several_labels_is_a_mask(study):
    before = Preprocessing(24)(study).mask
    changed(study.mask, lambda voxels: voxels * 4, dtype=np.float32)
    assert np.array_equal(Preprocessing(24)(study).mask, before)


def test_a_mask_outside_the_brain(study):
    changed(study.mask, lambda voxels: np.roll(voxels, -13, axis=0), dtype=np.uint8)
    only(study, "misaligned_mask", "error", study.mask)


def test_a_mask_of_which_a_little_lies_outside_the_brain(study):
    changed(study.mask, lambda voxels: np.roll(voxels, -5, axis=0), dtype=np.uint8)
    found = only(study, "cut_tumour", "warning", study.mask).found
    kept = Preprocessing(24)(study).found.tumour_kept
    assert 0.8 < kept < 0.98
    assert found.startswith(f"{1 - kept:.1%} of the tumour mask lies outside the brain")


def test_a_mask_mirrored_to_the_other_side(study):
    points = points_mm(ras_affine(), (40, 48, 38)) * [-1, 1, 1]
    write(study.mask, in_tumour(points), ras_affine(), np.uint8)
    assert "the mask" in only(study, "left_right_doubt", "warning").found


@pytest.mark.parametrize("name", SEQUENCES[1:])
def test_a_sequence_mirrored_to_the_other_side(study, name):
    points = points_mm(ras_affine(), (40, 48, 38)) * [-1, 1, 1]
    write(study.files[name], sequence_values(name, points), ras_affine())
    assert only(study, "left_right_doubt", "warning").found.startswith(f"{name} fits FLAIR")


def test_a_sequence_whose_field_of_view_lies_elsewhere(tmp_path):
    elsewhere = ras_affine(centre=(5.0, -8.0, 60.0))
    study = write_study(tmp_path, others={"T1": (elsewhere, (40, 48, 38))})
    only(study, "disagreeing_fields_of_view", "error", study.files["T1"])


def test_an_oblique_sequence_only_needs_resampling(tmp_path):
    size = (50,) * 3
    affine = ras_affine(size=size, axes=tuple((rotation(10, 0) @ rotation(5, 1)).T))
    study = write_study(tmp_path, others={"T1": (affine, size)})
    only(study, "different_grid", "warning", study.files["T1"], registration="never")


def test_a_head_with_its_skull(tmp_path, brains_at_once):
    size = (50, 58, 44)
    study = write_study(tmp_path, affine=ras_affine(size=size), size=size, skull=True)
    only(study, "skull_not_stripped", "warning", study.files["FLAIR"])


def test_a_brain_too_small_to_be_one(tmp_path):
    study = write_study(tmp_path, affine=ras_affine(spacing=(4, 4, 4)))
    for path in (*study.files.values(), study.mask):
        affine = nib.load(path).affine.copy()
        affine[:3] *= 0.6
        changed(path, affine=affine)
    only(study, "small_brain", "warning", study.files["FLAIR"])


def test_one_image_under_two_sequence_names(study):
    study.files["T1c"].write_bytes(study.files["T1"].read_bytes())
    assert "T1c is the same image as T1" in only(study, "repeated_sequence", "warning").found


def test_crop_tumour_without_a_mask(tmp_path):
    study = write_study(tmp_path, mask=False)
    only(study, "no_mask", "error", crop="tumour")
    assert faults_of(study) == ()


def test_all_faults_of_a_study_are_reported_at_once(study):
    study.files["T1"].unlink()
    changed(study.files["T2"], np.zeros_like)
    changed(study.mask, np.zeros_like, dtype=np.uint8)
    with pytest.raises(FaultyStudyError, match="no file") as caught:
        Preprocessing(24)(study)
    assert [fault.check for fault in caught.value.faults] == ["missing_file", "constant_image", "empty_mask"]
    assert isinstance(caught.value, VolumeError)


def test_reading_a_damaged_file_names_it(study):
    from idh_lightning.volumes.checks import Place

    path = study.files["T1"]
    header = read_header(path, Place("s", path.name))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FaultyStudyError, match=rf"{path.name}, study s: the file is truncated or damaged"):
        read_voxels(path, header, Place("s", path.name))


# Across the cohort ---------------------------------------------------------------------------------------------------


def test_the_same_image_in_two_studies_is_found_whatever_its_header_and_compression(tmp_path):
    one = write_study(tmp_path, "one", patient_id="A", seed=1)
    two = write_study(tmp_path, "two", patient_id="B", seed=2)
    three = write_study(tmp_path, "three", patient_id="C", seed=3)
    # The image of "one" stored in another orientation, with another type and compression.
    flipped = nib.load(one.files["T1"]).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    write(two.files["T1"], np.asarray(flipped.dataobj), flipped.affine, np.float32)
    store = VolumeStore(tmp_path / "store", Preprocessing(16), SEQUENCES)
    for _ in range(2):  # from the files, and from the store
        faults = [
            fault for fault in store.prepare([two, one, three], workers=1).faults if fault.check == "duplicate_image"
        ]
        assert [(fault.study_id, fault.severity) for fault in faults] == [("two", "error")]
        assert "T1 of study one" in faults[0].found


@pytest.mark.parametrize(
    ("patients", "labels", "severity"), [("AB", (1, 1), "error"), ("AA", (0, 1), "error"), ("AA", (1, 1), "warning")]
)
def test_a_repeated_image_is_an_error_unless_patient_and_label_agree(tmp_path, patients, labels, severity):
    studies = [
        write_study(tmp_path, f"study-{index}", patient_id=patient, label=label, sequences=("T1",), mask=False)
        for index, (patient, label) in enumerate(zip(patients, labels, strict=True))
    ]
    faults = list(check_repeats_between(studies, {study.study_id: {"T1": "same"} for study in studies}))
    assert [(fault.study_id, fault.severity) for fault in faults] == [("study-1", severity)]


def test_a_bad_study_does_not_disturb_the_others(tmp_path):
    good = [write_study(tmp_path, f"good-{index}", seed=index) for index in range(3)]
    bad = write_study(tmp_path, "bad", seed=9)
    bad.files["T2"].write_bytes(bad.files["T2"].read_bytes()[:500])
    alone = VolumeStore(tmp_path / "alone", Preprocessing(16), SEQUENCES)
    mixed = VolumeStore(tmp_path / "mixed", Preprocessing(16), SEQUENCES)
    assert alone.prepare(good, workers=1).faults == ()
    report = mixed.prepare([good[0], bad, *good[1:]], workers=1)
    assert [(fault.study_id, fault.check) for fault in report.faults] == [("bad", "unreadable_file")]
    assert (report.built, report.reused) == (3, 0)
    for study in good:
        assert np.array_equal(alone.open(study).image, mixed.open(study).image)
    with pytest.raises(VolumeError, match="study bad: there is no entry"):
        mixed.open(bad)


def test_the_made_up_brain_has_the_volume_of_a_brain():
    brain_ml = in_brain(points_mm(ras_affine(), (40, 48, 38))).sum() * 0.064
    assert brain_ml == pytest.approx(4 / 3 * np.pi * np.prod(RADII_MM) / 1000, rel=0.02)
