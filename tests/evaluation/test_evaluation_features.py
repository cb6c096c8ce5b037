"""Tumour features of shapes whose answers are known."""

import numpy as np
import pytest

from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation.development import tumour_features


def ball(radii_mm, spacing_mm, size=48, centre=None):
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1) - (centre or [size / 2] * 3)
    return ((grid * spacing_mm / radii_mm) ** 2).sum(axis=-1) <= 1


def features(mask, spacing_mm=(1, 1, 1), images=None):
    images = np.zeros((1, *mask.shape)) if images is None else images
    return tumour_features(
        images, mask.astype(np.uint8), sequences=["FLAIR", "T1"][: len(images)], spacing_mm=spacing_mm
    )


def test_a_ball_has_its_volume_and_is_round_whatever_the_spacing():
    for spacing in ((1, 1, 1), (2, 1, 1), (1, 2, 0.5)):
        found = features(ball(np.array([10, 10, 10]), spacing), spacing)
        assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi, rel=0.03)
        assert found["roundness"] == pytest.approx(1, abs=0.05)
        assert found["elongation"] == pytest.approx(1, abs=0.05)


def test_a_long_ellipsoid_is_elongated_and_a_flat_one_is_flat():
    spacing = (1, 1, 1)
    assert features(ball(np.array([20, 8, 8]), spacing))["elongation"] == pytest.approx(2.5, rel=0.05)
    assert features(ball(np.array([8, 20, 20]), spacing))["flatness"] == pytest.approx(2.5, rel=0.05)


def test_foci_are_counted_without_specks():
    mask = ball(6, (1, 1, 1), centre=[10, 10, 10]) | ball(6, (1, 1, 1), centre=[34, 34, 34])
    assert features(mask)["foci"] == 2
    mask[47, 0, 0] = True
    assert features(mask)["foci"] == 2
    assert features(mask & False | ball(1, (1, 1, 1)))["foci"] == 1


def test_intensities_are_those_inside_the_mask_of_each_sequence():
    mask = ball(8, (1, 1, 1))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *mask.shape)) + 100 * ~mask
    found = features(mask, images=images)
    for channel, name in enumerate(("FLAIR", "T1")):
        assert found[f"{name}_mean"] == pytest.approx(images[channel][mask].mean())
        assert found[f"{name}_sd"] == pytest.approx(images[channel][mask].std())
        assert found[f"{name}_p10"] == pytest.approx(np.percentile(images[channel][mask], 10))
        assert found[f"{name}_p90"] == pytest.approx(np.percentile(images[channel][mask], 90))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (1, 1, 6)])
def test_features_of_a_degenerate_mask_are_finite(shape):
    mask = np.zeros((8, 8, 8), bool)
    mask[tuple(slice(0, length) for length in shape)] = True
    assert np.isfinite(list(features(mask).values())).all()


def test_an_empty_mask_and_another_grid_are_refused():
    with pytest.raises(EvaluationError, match="the mask is empty"):
        features(np.zeros((4, 4, 4), bool))
    with pytest.raises(EvaluationError, match="expected \\(1, 4, 4, 4\\)"):
        tumour_features(np.zeros((2, 4, 4, 4)), np.ones((4, 4, 4), np.uint8), sequences=["T1"], spacing_mm=(1, 1, 1))
