from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from idh_lightning.attribution.faithfulness import brain, deletion_insertion, inpaint_by_symmetry, shapley
from idh_lightning.errors import ExplanationError

EDGE = 12


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head() -> torch.Tensor:
    """Return a brain [D, H, W] that is its own mirror image."""
    inside = torch.zeros(EDGE, EDGE, EDGE, dtype=torch.bool)
    inside[1:-1, 2:-1, 1:-1] = True
    return inside


def tumour() -> torch.Tensor:
    mask = torch.zeros(EDGE, EDGE, EDGE, dtype=torch.bool)
    mask[3:7, 3:7, 2:5] = True
    return mask


class Tumour(nn.Module):
    """Says mutant by how bright the first sequence of the tumour is; keeps what it was shown."""

    def __init__(self, gain: float = 4.0, offset: float = -1.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset
        self.seen: list[torch.Tensor] = []

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(volumes)
        margin = self.gain * volumes[:, 0, tumour()].mean(1) + self.offset
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def test_the_curves_of_the_tumour_itself_are_those_one_can_write_down() -> None:
    volumes = torch.ones(2, 3, EDGE, EDGE, EDGE) * head()
    volumes[1] *= -1
    maps = tumour().float().expand(2, -1, -1, -1)
    curves = deletion_insertion(Tumour(), volumes, maps, replacement=torch.zeros_like, steps=9)
    inside, lesion = int(head().sum()), int(tumour().sum())
    taken = np.minimum(np.floor(curves.fractions * inside + 1e-9), lesion) / lesion
    np.testing.assert_allclose(curves.deletion[0], 1 / (1 + np.exp(-(4 * (1 - taken) - 1))), rtol=1e-5)
    np.testing.assert_allclose(curves.insertion[0], 1 / (1 + np.exp(-(4 * taken - 1))), rtol=1e-5)
    # The second study is called wildtype, whose probability the curves follow.
    np.testing.assert_allclose(curves.deletion[1], 1 / (1 + np.exp(-(4 * (1 - taken) + 1))), rtol=1e-5)
    np.testing.assert_allclose(
        curves.areas["deletion"][0], np.trapezoid(curves.deletion[0], curves.fractions), rtol=1e-12
    )


def test_the_margin_still_falls_where_the_probability_of_a_sure_network_stays_at_one() -> None:
    volumes = torch.ones(2, 3, EDGE, EDGE, EDGE) * head()
    volumes[1] *= -1
    maps = tumour().float().expand(2, -1, -1, -1)
    plain, sure = (
        [
            deletion_insertion(network, volumes, maps, replacement=lambda x: x / 2, target=target, steps=5).deletion
            for target in ("probability", "margin")
        ]
        for network in (Tumour(), Tumour(gain=400))
    )
    np.testing.assert_allclose(1 / (1 + np.exp(-plain[1])), plain[0])
    assert sure[0].min() == 1
    np.testing.assert_allclose(sure[1][:, 0], [399, 401])
    np.testing.assert_allclose(sure[1][:, -1], [199, 201])


def test_a_right_map_does_better_than_noise_and_a_wrong_one_worse() -> None:
    volumes = (1 + 0.1 * noise(1, 3, EDGE, EDGE, EDGE)) * head()
    right, wrong = (
        deletion_insertion(Tumour(), volumes, maps[None], replacement=torch.zeros_like).areas
        for maps in (tumour().float(), 1 - tumour().float())
    )
    assert right["deletion"] < right["random_deletion"] < wrong["deletion"]
    assert right["insertion"] > right["random_insertion"] > wrong["insertion"]


def test_a_map_without_an_opinion_scores_as_noise() -> None:
    volumes = noise(1, 3, EDGE, EDGE, EDGE) * head()
    curves = deletion_insertion(Tumour(), volumes, torch.full((1, EDGE, EDGE, EDGE), 0.3), steps=5)
    np.testing.assert_array_equal(curves.deletion, curves.random_deletion)
    np.testing.assert_array_equal(curves.insertion, curves.random_insertion)


def test_deletion_ends_where_insertion_begins_and_outside_the_brain_nothing_appears() -> None:
    volumes = noise(2, 3, EDGE, EDGE, EDGE) * head()
    network = Tumour().train()
    curves = deletion_insertion(network, volumes, noise(2, EDGE, EDGE, EDGE), replacement=torch.ones_like, steps=4)
    assert network.training
    np.testing.assert_allclose(curves.deletion[:, 0], curves.insertion[:, -1])
    np.testing.assert_allclose(curves.deletion[:, -1], curves.insertion[:, 0])
    assert len(network.seen) == 1 + 4 * 4
    assert all(not seen[:, :, ~head()].any() for seen in network.seen)
    assert torch.equal(network.seen[4], torch.ones_like(volumes) * head())


def test_the_curves_of_a_study_do_not_depend_on_its_batch() -> None:
    volumes, maps = noise(3, 3, EDGE, EDGE, EDGE) * head(), noise(3, EDGE, EDGE, EDGE, seed=1)
    together = deletion_insertion(Tumour(), volumes, maps, steps=4)
    alone = deletion_insertion(Tumour(), volumes[2:], maps[2:], steps=4)
    np.testing.assert_allclose(together.insertion[2:], alone.insertion, rtol=1e-6)
    np.testing.assert_allclose(together.random_deletion[2:], alone.random_deletion, rtol=1e-6)


@pytest.mark.parametrize("other_side", [False, True])
def test_a_brain_that_was_symmetric_before_its_tumour_is_given_back(other_side: bool) -> None:
    half = noise(1, 3, EDGE, EDGE, EDGE)
    symmetric = (half + half.flip(-1)) * head()
    mask = tumour().flip(-1) if other_side else tumour()
    torch.testing.assert_close(inpaint_by_symmetry(symmetric + 6 * mask), symmetric)


def test_a_symmetric_brain_stays_as_it_is() -> None:
    half = noise(1, 3, EDGE, EDGE, EDGE)
    symmetric = (half + half.flip(-1)) * head()
    assert torch.equal(inpaint_by_symmetry(symmetric), symmetric)


def test_a_place_without_a_mirror_image_is_painted_with_the_tissue_around_it() -> None:
    inside = head()
    inside[:, :, -2:] = False
    # One kind of tissue in front of another; their medians are those of the larger part, behind.
    tissue = torch.where(torch.arange(EDGE) < 5, 1.0, 3.0)[:, None] * torch.tensor([1.0, -2.0])[:, None, None, None]
    volumes = (tissue * inside)[None]
    volumes[:, :, 6, 3, 1] = volumes[:, :, 6, 9, 1] = 50
    found = inpaint_by_symmetry(volumes)[0, :, 6, :, 1]
    torch.testing.assert_close(found[:, [3, 9]], torch.tensor([[1.0, 3.0], [-2.0, -6.0]]), rtol=1e-2, atol=1e-2)


def test_the_brain_is_where_any_sequence_is() -> None:
    volumes = torch.zeros(1, 2, 3, 3, 3)
    volumes[0, 0, 0, 0, 0] = volumes[0, 1, 2, 2, 2] = -1
    assert brain(volumes).nonzero().tolist() == [[0, 0, 0, 0], [0, 2, 2, 2]]


class Sequences(nn.Module):
    """Its difference of logits is a function of the means of the sequences."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        assert not self.training
        half = self.function(volumes.mean((2, 3, 4))) / 2  # type: ignore[operator]
        return torch.stack([-half, half], dim=1)


def tangled(means: torch.Tensor) -> torch.Tensor:
    first, second, third = means[:, 0], means[:, 1], means[:, 2]
    return torch.sin(7 * first * second) + torch.exp(third - first) + second**2


def test_the_values_of_a_study_add_up_to_its_difference_from_the_donors() -> None:
    volumes, donors = noise(2, 4, 3, 3, 3), noise(3, 4, 3, 3, 3, seed=1)
    whole = tangled(volumes.mean((2, 3, 4)))
    none = tangled(donors.mean((2, 3, 4))).mean()
    torch.testing.assert_close(shapley(Sequences(tangled), volumes, donors).sum(1), whole - none)


def test_a_sequence_that_is_not_looked_at_is_worth_nothing() -> None:
    volumes, donors = noise(2, 4, 3, 3, 3), noise(2, 4, 3, 3, 3, seed=1)
    values = shapley(Sequences(tangled), volumes, donors)
    assert values[:, 3].abs().max() < 1e-6 < values[:, :3].abs().min()


def test_sequences_that_do_the_same_are_worth_the_same() -> None:
    volumes, donors = noise(2, 4, 3, 3, 3), noise(2, 4, 3, 3, 3, seed=1)
    volumes[:, 1], donors[:, 1] = volumes[:, 0], donors[:, 0]
    values = shapley(Sequences(lambda means: means[:, 0] * means[:, 1] + means[:, 2]), volumes, donors)
    torch.testing.assert_close(values[:, 0], values[:, 1])


def test_the_values_are_the_mean_gain_over_all_orders_in_which_sequences_join() -> None:
    volumes, donors = noise(2, 4, 3, 3, 3), noise(3, 4, 3, 3, 3, seed=1)
    expected = torch.zeros(2, 4)
    orders = list(itertools.permutations(range(4)))
    for order, donor in itertools.product(orders, donors):
        mixed = donor.expand(2, -1, -1, -1, -1).clone()
        for index in order:
            before = tangled(mixed.mean((2, 3, 4)))
            mixed[:, index] = volumes[:, index]
            expected[:, index] += (tangled(mixed.mean((2, 3, 4))) - before) / (len(orders) * len(donors))
    torch.testing.assert_close(shapley(Sequences(tangled), volumes, donors), expected)


def test_where_sequences_add_up_each_is_worth_its_own_share_and_where_they_agree_an_equal_one() -> None:
    weights = torch.tensor([2.0, -1.0, 0.0, 0.5])
    volumes, donors = noise(2, 4, 3, 3, 3), noise(2, 4, 3, 3, 3, seed=1)
    network = Sequences(lambda means: means @ weights)
    expected = weights * (volumes.mean((2, 3, 4)) - donors.mean((0, 2, 3, 4)))
    torch.testing.assert_close(shapley(network, volumes, donors), expected)
    either = Sequences(lambda means: means.amax(1))
    ones, zeros = torch.ones(1, 4, 3, 3, 3), torch.zeros(1, 4, 3, 3, 3)
    torch.testing.assert_close(shapley(either, ones, zeros), torch.full((1, 4), 0.25))


def test_asking_leaves_the_network_in_its_mode_and_without_a_graph() -> None:
    network = Sequences(tangled).train()
    values = shapley(network, noise(1, 4, 3, 3, 3).requires_grad_(True), noise(1, 4, 3, 3, 3))
    assert network.training
    assert not values.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    volumes = noise(2, 3, EDGE, EDGE, EDGE)
    with pytest.raises(ExplanationError, match=r"found maps \(1, 12, 12, 12\).*one map per volume"):
        deletion_insertion(Tumour(), volumes, torch.zeros(1, EDGE, EDGE, EDGE))
    with pytest.raises(ExplanationError, match=r"in 1 steps; expected .* at least 2 steps"):
        deletion_insertion(Tumour(), volumes, torch.zeros(2, EDGE, EDGE, EDGE), steps=1)
    volumes[1] = 0
    with pytest.raises(ExplanationError, match=r"volumes \[1\] of the batch: found zeros throughout"):
        brain(volumes)
    for donors in (noise(2, 4, EDGE, EDGE, EDGE), noise(0, 3, EDGE, EDGE, EDGE), noise(3, EDGE, EDGE, EDGE)):
        with pytest.raises(ExplanationError, match=r"donors: found shape .* same sequences and grid"):
            shapley(Tumour(), volumes, donors)
