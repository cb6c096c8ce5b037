"""Preprocessing: orientation, scale, intensities, and the way back to the patient."""

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from tiny_studies import (
    TUMOUR_RAS_MM,
    in_brain,
    in_tumour,
    points_mm,
    ras_affine,
    rotation,
    sequence_values,
    write,
    write_study,
)

from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.errors import ConfigError, VolumeError
from idh_lightning.volumes import FaultyStudyError, Preprocessing, VolumeStore, to_patient_space, write_map
from idh_lightning.volumes.brain import BrainRecord, bounding_box, find_brain
from idh_lightning.volumes.preprocessing import resample
from idh_lightning.volumes.reading import Geometry

ORIENTATIONS = {
    "RAS": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "LPS": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
    "coronal": ((-1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "oblique": tuple((rotation(14, 0) @ rotation(-9, 2)).T),
    "oblique LPS": tuple((rotation(-11, 1) @ rotation(7, 0) @ np.diag([-1.0, -1.0, 1.0])).T),
}


def lps_points(volume):
    """Return the RAS position of every voxel of a volume, [D, H, W, 3], from its LPS affine."""
    d, h, w = volume.brain.shape
    indices = np.stack(np.meshgrid(np.arange(d), np.arange(h), np.arange(w), indexing="ij")[::-1], axis=-1)
    return (indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]


def stored_like(volume, study_id="study-1"):
    """Return what a store would give for a volume."""
    from idh_lightning.volumes import StoredVolume

    return StoredVolume(
        study_id=study_id,
        key="",
        image=volume.image.astype(np.float16),
        mask=volume.mask,
        brain=volume.brain,
        presence=volume.presence,
        affine=volume.affine,
        geometry=volume.native,
        fingerprints=volume.fingerprints,
        found=volume.found,
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_arrays_run_to_superior_posterior_and_left_whatever_the_file(tmp_path, orientation):
    study = write_study(tmp_path, affine=ras_affine(size=(48,) * 3, axes=ORIENTATIONS[orientation]), size=(48,) * 3)
    volume = Preprocessing(40)(study)
    tumour = np.argwhere(volume.mask).mean(0)
    brain = np.argwhere(volume.brain).mean(0)
    # The tumour lies 12 mm above, 18 mm behind and 32 mm to the left of the middle; voxels have 5.0 mm.
    assert np.all(tumour - brain > [1, 2, 4])
    # With 200 mm over 40 voxels, along the axis nearest to each anatomical one.
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), 5.0)
    assert np.all(np.diag(volume.affine)[:3] > 0.9 * 5.0)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_shows_what_is_at_its_place_in_the_patient(tmp_path, orientation):
    size = (54,) * 3
    affine = ras_affine(spacing=(3.5,) * 3, size=size, axes=ORIENTATIONS[orientation])
    volume = Preprocessing(40, clip_percentiles=(0, 100))(write_study(tmp_path, affine=affine, size=size))
    points = lps_points(volume)
    inner = in_brain(points, 0.9) & ~(((points - TUMOUR_RAS_MM) ** 2).sum(-1) < 28**2) & (volume.brain > 0)
    assert inner.sum() > 2000
    for channel, name in enumerate(SEQUENCES):
        truth = sequence_values(name, points)[inner]
        assert np.corrcoef(truth, volume.image[channel][inner])[0, 1] > 0.995
    assert np.mean(in_tumour(points) == (volume.mask > 0)) > 0.995
    assert np.mean(in_brain(points) == (volume.brain > 0)) > 0.98


def test_the_same_patient_gives_the_same_volume_from_an_ras_and_an_lps_file(tmp_path):
    size = (41, 49, 39)
    ras = write_study(tmp_path / "ras", affine=ras_affine(size=size, axes=ORIENTATIONS["RAS"]), size=size)
    lps = write_study(tmp_path / "lps", affine=ras_affine(size=size, axes=ORIENTATIONS["LPS"]), size=size)
    one, other = Preprocessing(32)(ras), Preprocessing(32)(lps)
    assert np.allclose(one.image, other.image, atol=1e-4)
    assert np.array_equal(one.mask, other.mask)
    assert np.allclose(one.affine, other.affine)
    assert not np.allclose(one.native.affine, other.native.affine)


def test_preprocessing_is_deterministic(tmp_path):
    study = write_study(tmp_path)
    one, other = Preprocessing(32)(study), Preprocessing(32)(study)
    assert one.image.tobytes() == other.image.tobytes()
    assert one.mask.tobytes() == other.mask.tobytes()


def test_intensities_are_z_scores_of_the_brain_and_zero_elsewhere(tmp_path):
    volume = Preprocessing(32)(write_study(tmp_path))
    brain = volume.brain > 0
    for channel in volume.image:
        assert abs(channel[brain].mean()) < 1e-4
        assert abs(channel[brain].std() - 1) < 1e-4
        assert np.all(channel[~brain] == 0)


def test_gain_of_the_scanner_does_not_matter(tmp_path):
    study = write_study(tmp_path)
    image = nib.load(study.files["T2"])
    write(study.files["T2"].with_name("loud.nii.gz"), 7 * np.asarray(image.dataobj), image.affine)
    loud = dataclasses.replace(study, files={**study.files, "T2": study.files["T2"].with_name("loud.nii.gz")})
    assert np.allclose(Preprocessing(32)(study).image, Preprocessing(32)(loud).image, atol=1e-3)


def test_a_bright_outlier_is_clipped(tmp_path):
    study = write_study(tmp_path)
    image = nib.load(study.files["T1c"])
    voxels = np.asarray(image.dataobj).copy()
    voxels[20, 24, 19] = 30000
    write(study.files["T1c"], voxels, image.affine)
    assert Preprocessing(48)(study).image[2].max() < 8
    assert Preprocessing(48, clip_percentiles=(0, 100))(study).image[2].max() > 20


def test_air_does_not_darken_the_edge_of_the_brain(tmp_path):
    study = write_study(tmp_path, sequences=("FLAIR",), mask=False)
    image = nib.load(study.files["FLAIR"])
    rng = np.random.default_rng(0)
    voxels = np.where(np.asarray(image.dataobj) > 0, rng.choice([400, 401], image.shape), 0)
    write(study.files["FLAIR"], voxels, image.affine)
    volume = Preprocessing(20, clip_percentiles=(0, 100))(study, ["FLAIR"])
    # Averages of 400 and 401 only: an edge mixed with air would be tens of standard deviations below.
    assert volume.image.min() > -6


def test_voxels_keep_one_size_across_patients_unless_the_brain_does_not_fit(tmp_path):
    small = Preprocessing(32, edge_mm=200)(write_study(tmp_path, "small"))
    assert np.allclose(np.linalg.norm(small.affine[:3, :3], axis=0), 200 / 32)
    tight = Preprocessing(32, edge_mm=100, margin_mm=6)(write_study(tmp_path, "tight"))
    # The brain is 164 mm long in voxels of 4 mm: 40 to 42 of them have their centres in it.
    spacing = np.linalg.norm(tight.affine[:3, :3], axis=0)
    assert np.allclose(spacing, spacing[0])
    assert (40 * 4 + 12) / 32 - 1e-6 <= spacing[0] <= (42 * 4 + 12) / 32 + 1e-6
    edges = np.concatenate([np.take(tight.brain, side, axis).ravel() for axis in range(3) for side in (0, -1)])
    assert not edges.any()


def test_a_grid_of_three_numbers_keeps_voxels_cubic_and_holds_the_brain(tmp_path):
    volume = Preprocessing([24, 40, 32])(write_study(tmp_path))
    assert volume.image.shape == (4, 24, 40, 32)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(spacing, spacing[0])
    brain_mm3 = volume.brain.sum() * np.prod(spacing)
    assert brain_mm3 == pytest.approx(4 / 3 * np.pi * 66 * 82 * 60, rel=0.03)


def test_crop_tumour_is_a_cube_around_the_tumour(tmp_path):
    volume = Preprocessing(32, crop="tumour")(write_study(tmp_path))
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), 96 / 32)
    assert np.allclose(np.argwhere(volume.mask).mean(0), 15.5, atol=1.0)
    assert volume.mask.sum() * 27 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.1)


def test_crop_none_is_the_plain_resize_of_the_field_of_view(tmp_path):
    size = (32, 48, 24)
    study = write_study(
        tmp_path,
        affine=ras_affine(spacing=(5, 4, 6), size=size, axes=ORIENTATIONS["LPS"]),
        size=size,
        sequences=("T2",),
    )
    volume = Preprocessing([12, 24, 16], crop="none")(study, ["T2"])
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), [10, 8, 12])
    # By hand, far from the edge of the brain: along each axis, voxels weigh 1, 3, 3, 1 when two become one.
    voxels = np.asarray(nib.load(study.files["T2"]).dataobj).astype(float).transpose(2, 1, 0)
    d, h, w = 6, 12, 8
    block = voxels[2 * d - 1 : 2 * d + 3, 2 * h - 1 : 2 * h + 3, 2 * w - 1 : 2 * w + 3]
    other = voxels[2 * d - 1 : 2 * d + 3, 2 * h + 1 : 2 * h + 5, 2 * w - 1 : 2 * w + 3]
    third = voxels[2 * d + 1 : 2 * d + 5, 2 * h - 1 : 2 * h + 3, 2 * w - 1 : 2 * w + 3]
    kernel = np.einsum("i,j,k", *[np.array([1, 3, 3, 1]) / 8] * 3)
    a, b, c = ((kernel * part).sum() for part in (block, other, third))
    ours = volume.image[0]
    assert (a - b) / (a - c) == pytest.approx(
        (ours[d, h, w] - ours[d, h + 1, w]) / (ours[d, h, w] - ours[d + 1, h, w]), rel=1e-3
    )


def test_resampling_to_finer_voxels_is_linear_interpolation():
    from idh_lightning.volumes.preprocessing import _weights

    rng = np.random.default_rng(1)
    voxels = rng.normal(size=(9, 10, 11)).astype(np.float32)
    source = Geometry((11, 10, 9), (2.0, 3.0, 4.0), (1.0, 2.0, 3.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    target = Geometry((12, 13, 14), (1.1, 1.2, 1.3), (4.0, 6.5, 8.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    ours = resample(voxels, _weights(source, target))
    theirs = sitk.Resample(
        source.image(voxels), target.image(np.zeros((14, 13, 12), np.float32)), sitk.Transform(), sitk.sitkLinear, 0.0
    )
    assert np.allclose(ours, sitk.GetArrayFromImage(theirs), atol=1e-5)


def test_resampling_to_coarser_voxels_does_not_alias():
    from idh_lightning.volumes.preprocessing import _weights

    checkerboard = (np.indices((40, 40, 40)).sum(0) % 2).astype(np.float32)
    source = Geometry((40,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    target = Geometry((10,) * 3, (3.0,) * 3, (6.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    assert np.abs(resample(checkerboard, _weights(source, target)) - 0.5).max() < 0.02


def test_a_tumour_smaller_than_a_voxel_is_kept(tmp_path):
    study = write_study(tmp_path)
    image = nib.load(study.mask)
    voxels = np.zeros(image.shape, np.uint8)
    voxels[14, 22, 20] = 4
    write(study.mask, voxels, image.affine, np.uint8)
    mask = Preprocessing(16)(study).mask
    assert 1 <= mask.sum() <= 8
    assert set(np.unique(mask)) == {0, 1}


def test_a_missing_sequence_is_zero_and_flagged_when_asked_for_and_refused_otherwise(tmp_path):
    study = write_study(tmp_path, sequences=("FLAIR", "T1", "T1c"))
    volume = Preprocessing(24, missing="zero")(study)
    assert volume.presence.tolist() == [1, 1, 1, 0]
    assert not volume.image[3].any()
    assert volume.image[2].any()
    with pytest.raises(FaultyStudyError, match="T2 is missing; expected all sequences"):
        Preprocessing(24)(study)
    assert Preprocessing(24)(study, ["FLAIR", "T1c"]).image.shape[0] == 2


def test_without_flair_the_first_sequence_gives_the_geometry(tmp_path):
    study = write_study(tmp_path, sequences=("T1", "T2"))
    volume = Preprocessing(24, missing="zero")(study)
    assert volume.presence.tolist() == [0, 1, 0, 1]
    assert np.allclose(volume.native.affine_ras, nib.load(study.files["T1"]).affine)


def test_a_sequence_on_another_grid_is_brought_to_that_of_flair(tmp_path):
    size = (60, 64, 20)
    other = (ras_affine(spacing=(3, 3, 7), size=size, axes=((-1, 0, 0), (0, 1, 0), (0, 0, 1))), size)
    plain = Preprocessing(32)(write_study(tmp_path, "plain"))
    mixed = Preprocessing(32, registration="never")(
        write_study(tmp_path, "mixed", others={"T1c": other, "mask": other})
    )
    assert [(fault.check, fault.severity) for fault in mixed.faults] == [("different_grid", "warning")] * 2
    assert np.corrcoef(plain.image[2][plain.brain > 0], mixed.image[2][plain.brain > 0])[0, 1] > 0.9
    assert np.array_equal(plain.image[0], mixed.image[0])
    overlap = (plain.mask & mixed.mask).sum() / (plain.mask | mixed.mask).sum()
    assert overlap > 0.75


def test_the_brain_is_the_largest_piece_with_what_it_encloses():
    random, enclosed = np.random.default_rng(0), 0
    for number in range(8):
        shown = ndimage.gaussian_filter(random.normal(size=(20, 24, 22)), 1.0) > 0.01 * number - 0.14
        inner = np.pad(np.ones((18, 22, 20), dtype=bool), 1)
        shown = inner if number == 7 else shown & inner  # with air all round
        labels, _ = ndimage.label(shown)
        largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        image = Geometry((22, 24, 20), (4.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel())).image(shown * np.float32(100))
        brain, stripped = find_brain(image)
        assert stripped
        np.testing.assert_array_equal(brain, ndimage.binary_fill_holes(largest))
        enclosed += np.count_nonzero(brain & ~largest)
        assert bounding_box(brain) == ndimage.find_objects(brain.astype(np.uint8))[0]
    assert enclosed > 100


@pytest.mark.slow
def test_the_brain_is_found_in_a_head_with_skull(tmp_path, monkeypatch):
    size, spacing = (56, 66, 50), 3.5
    affine = ras_affine(spacing=(spacing,) * 3, size=size, axes=ORIENTATIONS["LPS"])
    study = write_study(tmp_path, affine=affine, size=size, skull=True)
    image = sitk.DICOMOrient(sitk.ReadImage(str(study.files["FLAIR"]), sitk.sitkFloat32), "LPS")
    brain, stripped = find_brain(image)
    truth = in_brain(points_mm(affine, size)).transpose(2, 1, 0)
    assert not stripped
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.97
    monkeypatch.setattr("idh_lightning.volumes.brain.extract_brain", lambda _: brain)  # once is enough
    volume = Preprocessing(32)(study)
    assert [fault.check for fault in volume.faults] == ["skull_not_stripped"]
    assert volume.found == BrainRecord(
        volume_ml=brain.sum() * spacing**3 / 1000, extracted=True, tumour_kept=1.0, sequence="FLAIR"
    )
    assert not volume.image[:, volume.brain == 0].any()


@pytest.mark.slow
def test_a_bias_field_is_divided_out_when_asked(tmp_path):
    study = write_study(tmp_path, sequences=("T2",))
    plain = Preprocessing(24)(study, ("T2",))
    image = nib.load(study.files["T2"])
    slope = np.linspace(0.6, 1.4, image.shape[0])[:, None, None]
    write(study.files["T2"], np.asarray(image.dataobj) * slope, image.affine)
    biased, corrected = (Preprocessing(24, bias_correction=wanted)(study, ("T2",)) for wanted in (False, True))

    def likeness(volume):
        return np.corrcoef(plain.image[0][plain.brain > 0], volume.image[0][plain.brain > 0])[0, 1]

    assert np.array_equal(corrected.brain, plain.brain)
    assert likeness(corrected) > likeness(biased) + 0.05


def test_entries_keep_their_names_where_no_bias_is_corrected():
    assert "bias_correction" not in Preprocessing(24).settings()
    assert Preprocessing(24, bias_correction=True).settings()["bias_correction"]


def test_z_scores_have_no_bias_field_to_divide_by(tmp_path):
    study = write_study(tmp_path)
    for path in study.files.values():
        image = nib.load(path)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        scores = np.where(voxels > 0, (voxels - np.median(voxels[voxels > 0]) - 0.5) / 50, 0)
        write(path, scores, image.affine, np.float32)
    assert np.array_equal(Preprocessing(24, bias_correction=True)(study).image, Preprocessing(24)(study).image)


def test_a_constant_background_that_is_not_zero_is_background_too(tmp_path):
    study = write_study(tmp_path)
    shifted = {}
    for name, path in study.files.items():
        image = nib.load(path)
        shifted[name] = write(path.with_name(f"shifted_{path.name}"), np.asarray(image.dataobj) - 100, image.affine)
    other = dataclasses.replace(study, files=shifted)
    assert np.allclose(Preprocessing(24)(study).image, Preprocessing(24)(other).image, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": [64, 64]}, "data.grid"),
        ({"grid": 2}, "data.grid"),
        ({"grid": [64.0, 64.0, 64.0]}, "data.grid"),
        ({"crop": "head"}, "data.crop is 'head'"),
        ({"missing": "mean"}, "data.missing is 'mean'"),
        ({"clip_percentiles": [99, 1]}, "clip_percentiles"),
        ({"margin_mm": -1}, "margin_mm"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**settings)


# Back to the patient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_map_returns_to_its_place_on_the_grid_of_the_file(tmp_path, orientation):
    size = (50, 52, 54)
    affine = ras_affine(spacing=(3.5, 3.6, 3.7), size=size, axes=ORIENTATIONS[orientation]).astype(np.float32)
    study = write_study(tmp_path, affine=affine.astype(np.float64), size=size)
    volume = Preprocessing(48)(study)
    points = lps_points(volume)
    blob = np.exp(-((points - TUMOUR_RAS_MM) ** 2).sum(-1) / (2 * 12**2))
    path = tmp_path / "maps" / "cam.nii.gz"
    write_map(blob, stored_like(volume), path)

    flair, written = nib.load(study.files["FLAIR"]), nib.load(path)
    assert written.shape == flair.shape
    assert np.array_equal(written.affine, flair.affine)
    assert written.get_data_dtype() == np.float32
    values = written.get_fdata()
    assert 0 <= values.min() <= values.max() <= 1
    truth = np.exp(-((points_mm(flair.affine, flair.shape) - TUMOUR_RAS_MM) ** 2).sum(-1) / (2 * 12**2))
    assert np.abs(values - truth).max() < 0.06
    # The other library, which has its own reading of the header, sees it on the FLAIR too.
    ours, theirs = sitk.ReadImage(str(path)), sitk.ReadImage(str(study.files["FLAIR"]))
    assert np.allclose(Geometry.of(ours).affine, Geometry.of(theirs).affine, atol=1e-4)
    assert sorted(file.name for file in path.parent.iterdir()) == ["cam.nii.gz"]


def test_the_array_and_geometry_of_a_map_are_those_of_the_file(tmp_path):
    study = write_study(tmp_path)
    volume = Preprocessing(24)(study)
    array, geometry = to_patient_space(np.ones(volume.brain.shape), stored_like(volume))
    assert array.shape == nib.load(study.files["FLAIR"]).shape[::-1] == geometry.size[::-1]
    assert array.max() == 1
    assert np.allclose(geometry.affine_ras, nib.load(study.files["FLAIR"]).affine)


def test_a_map_that_does_not_fit_is_refused(tmp_path):
    stored = stored_like(Preprocessing(24)(write_study(tmp_path)))
    with pytest.raises(VolumeError, match=r"study-1: the map has shape \(3, 3, 3\); expected \(24, 24, 24\)"):
        to_patient_space(np.zeros((3, 3, 3)), stored)
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(VolumeError, match="expected 0 to 1"):
            to_patient_space(np.full((24, 24, 24), bad), stored)
    with pytest.raises(VolumeError, match=r"must end in \.nii\.gz"):
        write_map(np.zeros((24, 24, 24)), stored, tmp_path / "map.png")


# Real MRI ------------------------------------------------------------------------------------------------------------

REAL = os.environ.get("IDH_REAL_DATA")


def real_study(folder, names):
    files = {name: next(folder.glob(pattern)) for name, pattern in names.items() if name != "mask"}
    return Study(
        study_id=folder.name, patient_id=folder.name, label=1, files=files, mask=next(folder.glob(names["mask"]))
    )


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="IDH_REAL_DATA is not set")
@pytest.mark.parametrize(
    ("folder", "names"),
    [
        (
            "brats2018/Brats18_TCIA10_637_1",
            {"FLAIR": "*_flair*", "T1": "*_t1.nii.gz", "T1c": "*_t1ce*", "T2": "*_t2*", "mask": "*_seg*"},
        ),
        (
            "brats2023/BraTS-GLI-00012-000",
            {"FLAIR": "*-t2f*", "T1": "*-t1n*", "T1c": "*-t1c*", "T2": "*-t2w*", "mask": "*-seg*"},
        ),
    ],
)
def test_real_studies_look_as_the_field_expects(tmp_path, folder, names):
    study = real_study(Path(REAL) / folder, names)
    store = VolumeStore(tmp_path, Preprocessing(64), SEQUENCES)
    report = store.prepare([study], workers=1)
    assert report.faults == ()
    stored = store.open(study)
    brain, mask = stored.brain > 0, stored.mask > 0
    flair, t1, _, t2 = (stored.image[channel].astype(float) for channel in range(4))
    assert flair[mask].mean() > flair[brain & ~mask].mean() + 1  # a glioma is bright on FLAIR and T2, dark on T1
    assert t2[mask].mean() > t2[brain & ~mask].mean() + 0.5
    assert t1[mask].mean() < t1[brain & ~mask].mean()
    # The cerebellum: the lowest part of the brain lies behind its middle; the widest slice is in the upper half.
    low = np.argwhere(brain[: np.argwhere(brain).min(0)[0] + 12])
    assert low.mean(0)[1] > np.argwhere(brain).mean(0)[1]
    widths = np.ptp(np.argwhere(brain), axis=0) * 3.0
    assert widths[1] > widths[2]  # longer than wide
    assert 1000 < brain.sum() * 0.027 < 2000
    write_map(mask.astype(np.float32), stored, tmp_path / "map.nii.gz")
    flair_file, map_file = nib.load(study.files["FLAIR"]), nib.load(tmp_path / "map.nii.gz")
    assert np.array_equal(flair_file.affine, map_file.affine)
    own = np.asarray(nib.load(study.mask).dataobj) > 0
    back = map_file.get_fdata() > 0.5
    assert 2 * (own & back).sum() / (own.sum() + back.sum()) > 0.85
