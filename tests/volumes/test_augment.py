"""Augmentation: TorchIO's effects, fused. TorchIO's own transforms are the reference throughout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from idh_lightning.errors import ConfigError, VolumeError
from idh_lightning.volumes.augmentation import Augmentation, RandomSequenceDropout, SequenceDropout
from idh_lightning.volumes.intensity import Intensity, RandomIntensity
from idh_lightning.volumes.spatial import RandomSpatial, Spatial

CONF = str(Path(__file__).parents[2] / "conf")
ORIENTATIONS = {
    "RAS": np.diag([1.0, 1.0, 1.0]),
    "LPS, uneven voxels": np.diag([-1.5, -1.0, 1.2]),
    "SLP, uneven voxels": np.array([[0, -1.2, 0], [0, 0, -1.0], [1.5, 0, 0]]),
    "oblique": np.diag([-1.2, -1.0, 1.1]) @ np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]]),
}
AFFINE = {"scales": (1.1, 0.9, 1.15), "degrees": (10.0, -20.0, 15.0), "translation": (2.0, -3.0, 4.0)}


def smooth_study(linear: np.ndarray = ORIENTATIONS["RAS"], channels: int = 1) -> tio.Subject:
    """A lopsided blob, smooth, and zero well before the border; the mask is its core."""
    shape = (40, 44, 36)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, (5, -7, 9)
    x, y, z = np.moveaxis(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ linear.T, -1, 0)
    x, y, z = x - x.mean(), y - y.mean(), z - z.mean()
    envelope = np.clip(np.exp(-((x / 8) ** 2) - (y / 7) ** 2 - (z / 6) ** 2) - 0.02, 0, None)
    volume = np.stack(
        [envelope * (3 + np.sin(x / 6 + c) + np.cos(y / 5 + 1) + np.sin(z / 7 + 2)) for c in range(channels)]
    )
    tensor = torch.tensor(volume, dtype=torch.float32)
    mask = (tensor[:1] > 1).to(torch.uint8)
    return tio.Subject(
        image=tio.ScalarImage(tensor=tensor, affine=affine), mask=tio.LabelMap(tensor=mask, affine=affine)
    )


def brain(channels: int = 2, size: int = 20, seed: int = 0) -> tio.Subject:
    """Z-normalised noise inside a ball, zero outside: for intensity laws."""
    generator = torch.Generator().manual_seed(seed)
    lines = torch.linspace(-1, 1, size)
    inside = sum(axis**2 for axis in torch.meshgrid(lines, lines, lines, indexing="ij")) < 0.8
    values = torch.randn(channels, size, size, size, generator=generator) * inside
    return tio.Subject(image=tio.ScalarImage(tensor=values))


def control_points(max_mm: float = 3.0, points: int = 7) -> np.ndarray:
    torch.manual_seed(5)
    return tio.RandomElasticDeformation.get_params((points,) * 3, (max_mm,) * 3, 2)


def everything(**changes: object) -> Augmentation:
    entries: dict[str, object] = {
        "flip": tio.RandomFlip(("LR",), 0.5),
        "affine": tio.RandomAffine((0.9, 1.1), 10, 5),
        "elastic": tio.RandomElasticDeformation(7, 2.0),
        "gamma": tio.RandomGamma(0.3),
        "bias_field": tio.RandomBiasField(0.3),
        "noise": tio.RandomNoise(std=(0.05, 0.1)),
        "sequence_dropout": RandomSequenceDropout(p=0.5),
    }
    return Augmentation(**{**entries, **changes})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ space


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_identity_parameters_give_the_input(linear: np.ndarray) -> None:
    study = smooth_study(linear)
    # Zero displacement still takes the whole road through splines and resampling.
    same = Spatial(control_points=np.zeros((7, 7, 7, 3)))(study)
    torch.testing.assert_close(same.image.data, study.image.data, atol=1e-4, rtol=0)
    assert torch.equal(same.mask.data, study.mask.data)
    assert torch.equal(Spatial()(study).image.data, study.image.data)


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("patient_axis", [0, 1, 2])
def test_flipping_twice_is_the_identity(linear: np.ndarray, patient_axis: int) -> None:
    study = smooth_study(linear)
    flip = Spatial(flips=tuple(axis == patient_axis for axis in range(3)))
    assert not torch.equal(flip(study).image.data, study.image.data)
    assert torch.equal(flip(flip(study)).image.data, study.image.data)
    assert torch.equal(flip(flip(study)).mask.data, study.mask.data)


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_a_flip_is_left_right_in_the_patient_whatever_the_array_axes(linear: np.ndarray) -> None:
    study = smooth_study(linear)
    ours = RandomSpatial(flip=tio.RandomFlip(("LR",), 1.0))(study)
    reference = tio.Flip(("LR",))(study)
    assert torch.equal(ours.image.data, reference.image.data)
    assert torch.equal(ours.mask.data, reference.mask.data)


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("center", ["image", "origin"])
def test_the_affine_map_is_that_of_torchio(linear: np.ndarray, center: str) -> None:
    study = smooth_study(linear)
    ours = Spatial(**AFFINE, center=center)(study)
    reference = tio.Affine(**AFFINE, center=center, default_pad_value=0)(study)
    assert (reference.image.data - study.image.data).abs().max() > 0.5
    torch.testing.assert_close(ours.image.data, reference.image.data, atol=2e-3, rtol=0)
    assert (ours.mask.data != reference.mask.data).sum() <= 2  # ties of rounding


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("points", [5, 7])
def test_the_elastic_deformation_is_that_of_torchio(linear: np.ndarray, points: int) -> None:
    study, coarse = smooth_study(linear), control_points(points=points)
    ours = Spatial(control_points=coarse)(study)
    reference = tio.ElasticDeformation(coarse, (3, 3, 3))(study)
    assert (reference.image.data - study.image.data).abs().max() > 0.1
    torch.testing.assert_close(ours.image.data, reference.image.data, atol=2e-3, rtol=0)
    assert (ours.mask.data != reference.mask.data).sum() <= 2


@pytest.mark.parametrize("linear", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_one_resampling_equals_torchios_three_within_interpolation_error(linear: np.ndarray) -> None:
    study, coarse = smooth_study(linear), control_points()
    ours = Spatial(flips=(True, False, False), **AFFINE, control_points=coarse)(study)
    steps = [tio.Flip(("LR",)), tio.Affine(**AFFINE, default_pad_value=0), tio.ElasticDeformation(coarse, (3, 3, 3))]
    reference = tio.Compose(steps)(study)
    error = (ours.image.data - reference.image.data).abs()
    moved = (study.image.data - reference.image.data).abs()
    assert error.max() < 0.06 * moved.max()
    assert error.mean() < 0.03 * moved.mean()
    assert (ours.mask.data != reference.mask.data).float().mean() < 0.01


def test_affine_and_elastic_together_equal_torchios_single_resampling() -> None:
    study, coarse = smooth_study(ORIENTATIONS["LPS, uneven voxels"]), control_points()
    ours = Spatial(**AFFINE, control_points=coarse)(study)
    reference = tio.transforms.AffineElasticDeformation(
        True, {**AFFINE, "default_pad_value": 0}, {"control_points": coarse, "max_displacement": (3, 3, 3)}
    )(study)
    torch.testing.assert_close(ours.image.data, reference.image.data, atol=2e-3, rtol=0)


def test_background_fills_what_moves_into_view() -> None:
    study = smooth_study()
    study.image.set_data(study.image.data + 7)
    shifted = {
        background: Spatial(translation=(0, 0, 60), background=background)(study).image.data
        for background in (-2.0, 7.0, "minimum")
    }
    assert torch.equal(shifted[-2.0], torch.full_like(shifted[-2.0], -2))
    torch.testing.assert_close(shifted[7.0], torch.full_like(shifted[7.0], 7))
    torch.testing.assert_close(shifted["minimum"], shifted[7.0])


def test_a_part_out_of_view_changes_nothing_of_the_rest() -> None:
    """The resampling is confined to the box that is not background; the box must never be too small."""
    study = smooth_study()
    torch.manual_seed(0)
    transform = RandomSpatial(
        affine=tio.RandomAffine((0.7, 1.4), 40, 15), elastic=tio.RandomElasticDeformation(5, 6.0, locked_borders=0)
    )
    for _ in range(10):
        drawn = transform.draw()
        confined = drawn(study).image.data
        # With a background that no voxel has, every voxel of input and output is resampled.
        whole = Spatial(**{**drawn._get_named_arguments(), "background": -1e-9})(study).image.data
        torch.testing.assert_close(confined, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("threads", [2, 3])
def test_cores_that_share_a_study_give_what_one_gives(threads: int) -> None:
    study = smooth_study(channels=2)
    alone = everything().transforms[0].draw()
    expected = alone(study)
    torch.set_num_threads(threads)
    try:
        found = alone(study)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(found[name].data, expected[name].data) for name in study.get_images_dict(False))


def test_a_tumour_keeps_its_volume_but_for_the_scaling() -> None:
    study = smooth_study()
    scaled = Spatial(scales=(1.2, 1.2, 1.2), degrees=(20, 10, -15))(study)
    assert scaled.mask.data.sum() / study.mask.data.sum() == pytest.approx(1.2**3, rel=0.05)
    assert set(scaled.mask.data.unique().tolist()) == {0, 1}
    assert scaled.mask.data.dtype == torch.uint8


def test_an_empty_study_stays_empty() -> None:
    study = brain()
    study.image.set_data(torch.zeros_like(study.image.data))
    study.add_image(tio.LabelMap(tensor=torch.zeros(1, 20, 20, 20)), "mask")
    out = everything()(study)
    assert not out.image.data.any()
    assert not out.mask.data.any()


def test_the_order_of_axes_in_memory_changes_nothing() -> None:
    study = smooth_study(ORIENTATIONS["LPS, uneven voxels"], channels=3)
    other = tio.Subject(
        {
            name: type(image)(
                tensor=image.data.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1), affine=image.affine
            )
            for name, image in study.get_images_dict(intensity_only=False).items()
        }
    )
    assert other.image.data.stride() != study.image.data.stride()
    augment = everything(noise=None)
    results = []
    for subject in (study, other):
        torch.manual_seed(3)
        results.append(augment(subject))
    torch.testing.assert_close(results[0].image.data, results[1].image.data, atol=1e-4, rtol=0)
    assert torch.equal(results[0].mask.data, results[1].mask.data)


def test_sequences_as_separate_images_fare_as_channels_of_one() -> None:
    study = smooth_study(channels=3)
    parts = {f"s{c}": tio.ScalarImage(tensor=study.image.data[c, None], affine=study.image.affine) for c in range(3)}
    separate = tio.Subject(**parts, mask=study.mask)
    outs = []
    for subject in (study, separate):
        torch.manual_seed(11)
        outs.append(everything()(subject))
    assert torch.equal(outs[0].image.data, torch.cat([outs[1][name].data for name in parts]))
    assert torch.equal(outs[0].mask.data, outs[1].mask.data)


# -------------------------------------------------------------------------------------------------------- intensity


def test_powers_are_those_of_torchio_and_keep_the_sign() -> None:
    study = brain()
    reference = tio.Gamma({"image": [0.8, 1.3]})(study)
    torch.testing.assert_close(Intensity(gamma=[0.8, 1.3])(study).image.data, reference.image.data)


def test_the_bias_field_is_that_of_torchio_on_any_grid() -> None:
    study = brain(channels=1)
    uneven = torch.randn(1, 9, 14, 20) + 3
    study.image.set_data(uneven)
    torch.manual_seed(1)
    coefficients = tio.RandomBiasField().get_params(3, (-0.5, 0.5))
    reference = tio.BiasField({"image": coefficients}, {"image": 3})(study)
    torch.testing.assert_close(Intensity(coefficients=[coefficients])(study).image.data, reference.image.data)


def test_gamma_and_bias_field_in_one_pass_equal_one_after_the_other() -> None:
    study = brain(channels=1)
    coefficients = tio.RandomBiasField().get_params(2, (-0.5, 0.5))
    reference = tio.Compose([tio.Gamma({"image": [1.2]}), tio.BiasField({"image": coefficients}, {"image": 2})])(study)
    ours = Intensity(gamma=[1.2], coefficients=[coefficients])(study)
    torch.testing.assert_close(ours.image.data, reference.image.data, atol=1e-5, rtol=1e-5)


def test_noise_has_the_mean_and_deviation_asked_for_and_differs_between_sequences() -> None:
    study = brain(channels=2, size=48)
    inside = study.image.data != 0
    noisy = Intensity(noise=[(0.1, 0.3, 1), (-0.2, 0.05, 2)])(study).image.data - study.image.data
    for channel, (mean, std) in enumerate([(0.1, 0.3), (-0.2, 0.05)]):
        values = noisy[channel][inside[channel]]
        assert values.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(len(values)))
        assert values.std().item() == pytest.approx(std, rel=0.03)
    assert abs(np.corrcoef(*(noisy[:, inside.all(0)].numpy()))[0, 1]) < 0.05


@pytest.mark.parametrize("background", [0.0, -1.5, "minimum"])
def test_background_stays_as_it_is(background: float | str) -> None:
    study = brain()
    outside = study.image.data == 0
    value = -9.0 if background == "minimum" else float(background)
    study.image.set_data(torch.where(outside, torch.tensor(value), study.image.data))
    ranges = {"gamma": tio.RandomGamma(0.3), "bias_field": tio.RandomBiasField(0.3), "noise": tio.RandomNoise(1, 0.2)}
    out = RandomIntensity(**ranges, background=background)(study).image.data
    assert (out[outside] == value).all()
    assert (out[~outside] != study.image.data[~outside]).all()


def test_dropout_blanks_one_sequence_and_never_the_only_one() -> None:
    study = brain(channels=3)
    torch.manual_seed(0)
    blanked = set()
    for _ in range(30):
        out = RandomSequenceDropout()(study).image.data
        gone = [c for c in range(3) if not out[c].any()]
        kept = [c for c in range(3) if torch.equal(out[c], study.image.data[c])]
        assert (len(gone), len(kept)) == (1, 2)
        blanked.update(gone)
    assert blanked == {0, 1, 2}
    assert torch.equal(RandomSequenceDropout()(brain(channels=1)).image.data, brain(channels=1).image.data)


# -------------------------------------------------------------------------------------------- draws, history, batches


def test_replaying_the_history_reproduces_the_study() -> None:
    study = smooth_study(ORIENTATIONS["SLP, uneven voxels"], channels=3)
    torch.manual_seed(2)
    out = everything(sequence_dropout=RandomSequenceDropout())(study)
    assert [type(t) for t in out.history] == [Spatial, Intensity, SequenceDropout]
    replayed = out.get_composed_history()(study)
    assert torch.equal(replayed.image.data, out.image.data)
    assert torch.equal(replayed.mask.data, out.mask.data)


def test_the_seed_of_torch_fixes_the_draws() -> None:
    study, augment, outs = smooth_study(channels=2), everything(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(augment(study).image.data)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_the_study_given_is_left_as_it_was() -> None:
    study = smooth_study(channels=2)
    image, mask = study.image.data.clone(), study.mask.data.clone()
    for entries in ({}, {"flip": None, "affine": None, "elastic": None}):
        out = everything(sequence_dropout=RandomSequenceDropout(), **entries)(study)
        assert not torch.equal(out.image.data, image)
        assert out.history
    assert torch.equal(study.image.data, image)
    assert torch.equal(study.mask.data, mask)
    assert not study.history


def test_each_effect_happens_as_often_as_asked() -> None:
    torch.manual_seed(0)
    space = RandomSpatial(flip=tio.RandomFlip(("LR",), 0.5, p=0.5), elastic=tio.RandomElasticDeformation(p=0.3))
    drawn = [space.draw() for _ in range(2000)]
    flipped = np.mean([t is not None and t.flips[0] for t in drawn])
    deformed = np.mean([t is not None and t.control_points is not None for t in drawn])
    assert flipped == pytest.approx(0.25, abs=0.04)
    assert deformed == pytest.approx(0.3, abs=0.04)
    intensity = RandomIntensity(gamma=tio.RandomGamma(p=0), noise=tio.RandomNoise(p=0.4))
    noisy = [intensity.draw(4) for _ in range(2000)]
    assert all(t is None or t.gamma is None for t in noisy)
    assert np.mean([t is not None for t in noisy]) == pytest.approx(0.4, abs=0.05)


def test_draws_stay_in_the_ranges_of_the_entries() -> None:
    torch.manual_seed(0)
    space = RandomSpatial(affine=tio.RandomAffine((0.8, 1.3), (-5, 10), 4, isotropic=True))
    drawn = [space.draw() for _ in range(300)]
    scales = np.array([t.scales for t in drawn])
    assert (scales.min(), scales.max()) == (pytest.approx(0.8, abs=0.02), pytest.approx(1.3, abs=0.02))
    assert (scales == scales[:, :1]).all()
    degrees = np.array([t.degrees for t in drawn])
    assert (degrees.min(), degrees.max()) == (pytest.approx(-5, abs=0.3), pytest.approx(10, abs=0.3))
    assert np.abs([t.translation for t in drawn]).max() == pytest.approx(4, abs=0.1)


def test_no_entries_do_nothing() -> None:
    study = smooth_study()
    assert torch.equal(Augmentation()(study).image.data, study.image.data)


def test_the_queue_augments_in_its_worker_processes() -> None:
    studies = [smooth_study(channels=2) for _ in range(3)]
    queue = tio.Queue(
        tio.SubjectsDataset(studies, transform=everything()),
        max_length=3,
        samples_per_volume=1,
        sampler=tio.UniformSampler(studies[0].spatial_shape),
        num_workers=2,
    )
    batches = list(tio.SubjectsLoader(queue, batch_size=3, num_workers=0))
    images = batches[0]["image"][tio.DATA]
    assert images.shape == (3, 2, *studies[0].spatial_shape)
    assert not torch.equal(images[0], images[1])


# ------------------------------------------------------------------------------------------------ configuration, errors


def configured(*overrides: str) -> Augmentation:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(overrides=["+data.missing=error", *overrides])
    return instantiate(config.augment, _convert_="all")


def test_entries_are_removed_and_changed_by_name() -> None:
    space, intensity, dropout = configured("+augment=default", "~augment.elastic", "augment.noise.std=0.5").transforms
    assert space.elastic is None
    assert space.affine.scales == (0.95, 1.05) * 3
    assert intensity.noise.std_range == (0, 0.5)
    assert dropout.probability == 0
    assert configured("+augment=default", "data.missing=zero").transforms[2].probability == 0.2
    assert configured("+augment=default", "augment.flip.p=0").transforms[0].flip.probability == 0
    study = smooth_study()
    assert torch.equal(configured("+augment=none")(study).image.data, study.image.data)


def test_the_stock_yardstick_has_the_same_entries() -> None:
    stock, fused = configured("+augment=torchio"), configured("+augment=default")
    space, intensity, _ = fused.transforms
    ours = [space.flip, space.affine, space.elastic, intensity.gamma, intensity.bias_field, intensity.noise]
    assert [type(t) for t in stock.transforms[:6]] == [type(t) for t in ours]
    for theirs, own in zip(stock.transforms, ours, strict=False):
        assert str({**vars(theirs)}) == str({**vars(own)})
    assert stock.transforms[1].default_pad_value == 0
    study = smooth_study(channels=2)
    torch.manual_seed(0)
    assert not torch.equal(stock(study).image.data, study.image.data)


def test_a_misspelt_key_fails() -> None:
    with pytest.raises(Exception, match="maximum_displacement"):
        configured("+augment=default", "+augment.elastic.maximum_displacement=3")


def test_axes_by_number_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment.flip.axes: .*'LR'"):
        Augmentation(flip=tio.RandomFlip(0))


def test_other_interpolation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment.affine.image_interpolation: is 'bspline'"):
        Augmentation(affine=tio.RandomAffine(image_interpolation="bspline"))
    with pytest.raises(ConfigError, match=r"augment.noise.exclude"):
        Augmentation(noise=tio.RandomNoise(exclude=["t1"]))
    assert Augmentation(affine=tio.RandomAffine(image_interpolation="bspline"), fused=False)


def test_images_on_different_grids_are_refused() -> None:
    study = smooth_study()
    study.add_image(tio.ScalarImage(tensor=torch.rand(1, 40, 44, 36), affine=np.diag([2, 2, 2, 1.0])), "t1")
    with pytest.raises(VolumeError, match=r"image.*t1.*different grids"):
        Spatial(flips=(True, False, False))(study)


def test_deformations_that_may_fold_are_announced() -> None:
    with pytest.warns(RuntimeWarning, match="the image may fold"):
        Spatial(control_points=control_points(max_mm=30.0))(smooth_study())
