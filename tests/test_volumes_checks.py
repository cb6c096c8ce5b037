"""A damaged copy of a study for every check: the fault is found, named, and nothing else is."""

import dataclasses
import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
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
from idh_lightning.volumes.checks import check_repeats_between
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


def test_an_empty_mask(study):
    changed(study.mask, np.zeros_like, dtype=np.uint8)
    only(study, "empty_mask", "error", study.mask)


def test_a_mask_without_background(study):
    changed(study.mask, np.ones_like, dtype=np.uint8)
    only(study, "full_mask", "error", study.mask)


def test_a_mask_of_probabilities(study):
    changed(study.mask, lambda voxels: voxels * 0.7, dtype=np.float32)
    only(study, "mask_not_labels", "error", study.mask)


def test_a_mask_of_several_labels_is_a_mask(study):
    before = Preprocessing(24)(study).mask
    changed(study.mask, lambda voxels: voxels * 4, dtype=np.float32)
    assert np.array_equal(Preprocessing(24)(study).mask, before)


def test_a_mask_outside_the_brain(study):
    changed(study.mask, lambda voxels: np.roll(voxels, -13, axis=0), dtype=np.uint8)
    only(study, "misaligned_mask", "error", study.mask)


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
    only(study, "different_grid", "warning", study.files["T1"])


def test_a_head_with_its_skull(tmp_path):
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
    faults = check_repeats_between(studies, {study.study_id: {"T1": "same"} for study in studies})
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
