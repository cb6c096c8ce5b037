"""Scores of maps: references, baselines and the rank of the tumour."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score

from idh_lightning.attribution.maps import shares_placed
from idh_lightning.attribution.scores import (
    baselines,
    brain_mask,
    centre_gaussian,
    localisation_scores,
    study_rows,
    tumour_ranks,
)
from idh_lightning.attribution.studies import sign_scores


def head(edge: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return a tumour and the brain around it."""
    places = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"))
    middle = (edge - 1) / 2
    brain = (((places - middle) ** 2).sum(0) < (0.45 * edge) ** 2).astype(np.uint8)
    centre = np.array([middle, middle - 0.2 * edge, middle + 0.1 * edge])[:, None, None, None]
    mask = (((places - centre) ** 2).sum(0) < (0.14 * edge) ** 2).astype(np.uint8)
    return mask, brain


@pytest.mark.parametrize("levels", [2, 7, 100_000])
def test_average_precision_agrees_with_scikit_learn_however_many_voxels_are_equal(levels: int) -> None:
    mask, brain = head()
    cam = np.floor(np.random.default_rng(0).random(mask.shape) * levels).astype(np.float32)
    inside = brain > 0
    expected = average_precision_score(mask[inside], cam[inside])
    assert localisation_scores(cam, mask, brain)["auprc"] == pytest.approx(expected)


def test_of_equally_hot_voxels_the_share_in_the_tumour_counts() -> None:
    mask, brain = head()
    share = mask.sum() / brain.sum()
    assert localisation_scores(brain_mask(brain), mask, brain)["pointing_game"] == pytest.approx(share)


def test_the_rank_of_the_tumour_agrees_with_moving_it_about() -> None:
    mask, brain = head()
    cam = gaussian_filter(np.random.default_rng(1).random(mask.shape), 2) * brain
    tumour = np.argwhere(mask)
    at_home = tuple(tumour.T)
    here, lower, places = cam[at_home].sum() / brain[at_home].sum(), 0.0, 0
    for shift in product(range(-23, 24), repeat=3):
        moved = tumour + shift
        on_the_grid = ((moved >= 0) & (moved < 24)).all(1)
        if on_the_grid.mean() < 0.9:
            continue
        kept = tuple(moved[on_the_grid].T)
        if brain[kept].sum() < 0.9 * len(tumour) or mask[kept].sum() >= 0.5 * len(tumour):
            continue
        places += 1
        lower += cam[kept].sum() / brain[kept].sum() < here
    assert places > 500
    assert tumour_ranks([cam], mask, brain)[0] == pytest.approx(lower / places, abs=0.002)


def test_a_map_of_the_tumour_ranks_it_first_its_opposite_last_and_a_flat_one_in_the_middle() -> None:
    mask, brain = head(40)
    soft = gaussian_filter(mask.astype(float), 2)
    assert tumour_ranks([soft, soft.max() - soft, np.ones(mask.shape)], mask, brain) == [1.0, 0.0, 0.5]


def test_a_tumour_that_fills_the_brain_has_no_rank() -> None:
    _, brain = head()
    assert np.isnan(tumour_ranks([np.ones(brain.shape)], brain, brain)).all()


def test_the_reference_of_a_coarse_grid_is_lower_than_that_of_a_fine_one(small_network) -> None:
    network = small_network().eval()
    mask, brain = head(33)
    masks = torch.from_numpy(mask).float()[None]
    flat = np.ones(mask.shape, np.float32)
    references = {layer: shares_placed(network, layer, masks)[0].numpy() for layer in ("blocks.1", "blocks.4")}
    rows = study_rows({layer: (flat, reference) for layer, reference in references.items()}, mask, brain, None)
    fine, coarse, *known = rows
    for score in ("energy_inside", "auprc", "best_iou"):
        assert coarse[f"{score}_reference"] < fine[f"{score}_reference"] <= 1
        assert coarse[score] < coarse[f"{score}_reference"]
    assert [row["method"] for row in known] == ["baseline: brain mask", "baseline: centre of the brain"]


def test_the_centre_is_where_the_brain_is_and_as_wide() -> None:
    _, brain = head(33)
    moved = np.roll(brain, (1, -1, 1), axis=(0, 1, 2))
    gaussian = centre_gaussian(moved)
    assert np.unravel_index(gaussian.argmax(), gaussian.shape) == (17, 15, 17)
    assert gaussian.max() == 1
    spread = np.argwhere(moved).std(axis=0)[0]
    assert gaussian[17 + round(spread), 15, 17] == pytest.approx(np.exp(-0.5), abs=0.1)


def test_baselines_are_three_where_training_studies_have_masks_and_two_elsewhere() -> None:
    mask, brain = head()
    assert list(baselines(brain, None)) == ["baseline: brain mask", "baseline: centre of the brain"]
    with_mean = baselines(brain, mask / 4)
    assert list(with_mean)[2:] == ["baseline: mean tumour of training"]
    assert localisation_scores(with_mean["baseline: mean tumour of training"], mask, brain)["auprc"] == 1


def test_signs_that_a_study_does_not_show_are_not_scored() -> None:
    mask, brain = head()
    scores = sign_scores(mask.astype(float), {"mismatch": mask, "cyst": np.zeros_like(mask)}, brain)
    assert list(scores) == ["mismatch"]
    assert scores["mismatch"]["energy_inside"] == 1
