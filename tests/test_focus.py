from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import FakeStore, studies_of

from idh_lightning.attribution import Evidence
from idh_lightning.data import FeatureBankDataModule, FeatureBatch
from idh_lightning.data.subjects import collate, to_subject
from idh_lightning.errors import ModelError, ObjectiveError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.models.locator import cell_means, coarsen, depth_to_space, space_to_depth
from idh_lightning.module import IDHClassifier
from idh_lightning.objectives import FocalLoss, mask_loss

Maker = Callable[..., StemTailNetwork]


def volumes(batch: int = 2, edge: int = 33, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, edge, edge, edge, generator=torch.Generator().manual_seed(seed))


def cubes(batch: int, seed: int, edge: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """Return volumes of noise with one bright cube each, and the masks of the cubes."""
    x = 0.3 * volumes(batch, edge, seed)
    masks = torch.zeros(batch, edge, edge, edge)
    chance = np.random.default_rng(seed)
    for volume, mask in zip(x, masks, strict=True):
        d, h, w = chance.integers(2, edge - 14, size=3)
        mask[d : d + 12, h : h + 12, w : w + 12] = 1
        volume += 3 * mask
    return x, masks


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_depth_to_space_gives_back_what_space_to_depth_took(ratio: int) -> None:
    fine = torch.randn(2, 3, 5, 4, 3)
    coarse = [-(-length // ratio) for length in fine.shape[2:]]
    back = depth_to_space(space_to_depth(fine, coarse, ratio), ratio)
    torch.testing.assert_close(back[:, :, :5, :4, :3], fine)
    assert back.sum() == pytest.approx(fine.sum().item(), abs=1e-4)


def test_the_share_of_a_cell_is_the_mean_over_the_voxels_around_it() -> None:
    masks = (torch.rand(2, 33, 33, 33) > 0.7).float()
    found = cell_means(masks, [(0.0, 8.0)] * 3, [5, 5, 5])
    padded = np.pad(masks.numpy(), [(0, 0)] + [(4, 4)] * 3)
    for cell in ((0, 0, 0), (2, 1, 3), (4, 4, 4)):
        around = padded[(slice(None), *(slice(8 * index, 8 * index + 9) for index in cell))]
        np.testing.assert_allclose(found[(slice(None), *cell)], around.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_a_coarse_cell_is_as_open_as_the_most_open_place_around_it() -> None:
    gate = torch.zeros(1, 8, 8, 8)
    gate[0, 3, 4, 5] = 1
    coarse = coarsen(gate, 2)
    assert coarse.shape == (1, 4, 4, 4)
    assert coarse.nonzero().tolist() == [[0, d, 2, w] for d in (1, 2) for w in (2, 3)]


def test_the_mask_loss_is_least_for_the_truth_and_passes_over_studies_without_a_mask() -> None:
    shares = torch.zeros(2, 4, 4, 4)
    shares[:, 1:3, 1:3, 1:3] = 1
    right, wrong = 20 * (shares - 0.5), -20 * (shares - 0.5)
    assert mask_loss(right, shares) < 1e-3 < 5 < mask_loss(wrong, shares)
    half = shares.clone()
    half[1] = torch.nan
    mixed = torch.cat([right[:1], wrong[:1]]).requires_grad_(True)
    loss = mask_loss(mixed, half)
    assert loss < 1e-3
    loss.backward()
    assert mixed.grad is not None
    assert not mixed.grad[1].any()
    assert mask_loss(wrong, torch.full_like(shares, torch.nan)) == 0


@pytest.mark.parametrize("missing", ["error", "zero"])
def test_stem_then_tail_is_the_network_and_the_gate_decides_what_the_tail_sees(
    small_network: Maker, missing: str
) -> None:
    network = small_network(locator="blocks.2", missing=missing).eval()
    calibrate_batch_norm(network, [volumes(4)])
    x = volumes()
    torch.testing.assert_close(network.tail(network.stem(x)), network(x))
    assert network.own(network.stem(x)).shape[1] == small_network().stem(x).shape[1]
    assert network.locator is not None
    assert not torch.allclose(network(x)[0], network(x)[1])
    with torch.no_grad():
        network.locator.tell.bias.fill_(-1e6)
    torch.testing.assert_close(network(x)[0], network(x)[1])


def test_the_locator_learns_from_the_label_as_well_as_from_the_mask(small_network: Maker) -> None:
    network = small_network(locator="blocks.2").eval()
    x, masks = cubes(2, seed=3)
    calibrate_batch_norm(network, [x])
    assert network.locator is not None
    answer = network.answer(network.stem(x))
    assert answer.tumour is not None
    assert answer.tumour.shape == network.tumour_fraction(masks).shape
    weight = network.locator.tell.weight
    for loss in (answer.logits[:, 1].sum(), mask_loss(answer.tumour, network.tumour_fraction(masks))):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.fixture(scope="module")
def trained() -> StemTailNetwork:
    """A B0 whose locator has learnt to find bright cubes."""
    torch.manual_seed(0)
    network = StemTailNetwork(backbone="tf_efficientnet_b0", weights="none", locator="blocks.1").eval()
    x, masks = cubes(24, seed=4)
    calibrate_batch_norm(network, [x])
    features, shares = network.stem(x), network.tumour_fraction(masks)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(40):
        answer = network.answer(features)
        assert answer.tumour is not None
        optimizer.zero_grad()
        mask_loss(answer.tumour, shares).backward()
        optimizer.step()
    return network


def test_a_trained_locator_makes_the_evidence_lie_on_the_tumour(trained: StemTailNetwork) -> None:
    x, masks = cubes(8, seed=5)
    maps = Evidence()(trained, x)
    assert maps.shape == masks.shape
    assert torch.all(maps.amax((1, 2, 3)) == 1)
    assert maps.min() >= 0
    peaks = [mask.flatten()[cam.argmax()].item() for cam, mask in zip(maps, masks, strict=True)]
    assert sum(peaks) >= 7
    inside = (maps * masks).sum((1, 2, 3)) / maps.sum((1, 2, 3))
    assert inside.mean() > 3 * masks.mean()


def test_explaining_leaves_the_network_as_it_was(trained: StemTailNetwork) -> None:
    trained.zero_grad()
    Evidence()(trained.train(), volumes())
    assert trained.training
    assert all(parameter.grad is None for parameter in trained.parameters())
    trained.eval()


def test_the_bank_keeps_what_the_masks_of_the_views_say(small_network: Maker, fake_store: FakeStore) -> None:
    parts = {
        "train": studies_of([0, 1, 0, 1], "a"),
        "validation": studies_of([0, 1], "b"),
        "test": studies_of([0], "c"),
    }
    for part in parts.values():
        for study in part:
            fake_store.put(study, np.random.default_rng(0).normal(size=(4, 33, 33, 33)))
    network = small_network(locator="blocks.2").eval()
    data = FeatureBankDataModule(
        studies=parts, store=fake_store, augmentation=None, seed=0, folder=fake_store.folder / "bank", views=1
    )
    data.fill(network, {})
    batch = next(iter(data.training_loader(0)))
    assert isinstance(batch, FeatureBatch)
    assert batch.shares is not None
    subjects = [
        to_subject(fake_store.open(study), study, with_mask=True)
        for name in batch.study_ids
        for study in parts["train"]
        if study.study_id == name
    ]
    masks = collate(subjects).masks
    assert masks is not None
    torch.testing.assert_close(batch.shares, network.tumour_fraction(masks), rtol=1e-3, atol=1e-3)
    assert next(iter(data.val_dataloader())).shares is None


def test_the_loss_of_a_training_step_holds_the_mask_loss(small_network: Maker) -> None:
    network = small_network(locator="blocks.2").eval()
    x, masks = cubes(2, seed=7)
    labels = torch.tensor([0, 1])
    batch = FeatureBatch(network.stem(x), labels, ["a", "b"], network.tumour_fraction(masks))
    losses = []
    for weight in (0.0, 2.0):
        model = IDHClassifier(network=network, objective=FocalLoss(mask_weight=weight))
        model.log = model.log_dict = lambda *_a, **_k: None  # type: ignore[method-assign,assignment]
        losses.append(model.training_step(batch, 0))
    answer = network.answer(batch.features)
    assert answer.tumour is not None
    assert batch.shares is not None
    torch.testing.assert_close(losses[1] - losses[0], 2 * mask_loss(answer.tumour, batch.shares))


def test_wrong_settings_are_refused(small_network: Maker) -> None:
    with pytest.raises(
        ModelError, match=r"model\.locator: found 'blocks\.6'; expected a whole stage before 'blocks\.5'"
    ):
        small_network(locator="blocks.6")
    with pytest.raises(ModelError, match=r"needs a network with a locator"):
        Evidence()(small_network().eval(), volumes())
    with pytest.raises(ObjectiveError, match=r"objective\.mask_weight: found -1"):
        FocalLoss(mask_weight=-1)
