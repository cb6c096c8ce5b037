from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FakeStore, studies_of
from tiny_locator import threshold_locator
from tiny_pretrained import small_segmenter
from torch import Tensor

from idh_lightning.attribution import DenseVote, Evidence
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import Study
from idh_lightning.data import FeatureBankDataModule, FeatureBatch
from idh_lightning.errors import CheckpointError, ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.models.cells import cell_means, coarsen, depth_to_space, space_to_depth
from idh_lightning.models.locator import TUMOUR, segmentation, segmenting_once
from idh_lightning.models.segmentation import dense_vote, save_segmenter, tumour_logit
from idh_lightning.models.voting import VotingNetwork, tumour_probability

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


@pytest.fixture
def network(small_network: Maker) -> StemTailNetwork:
    """Return a network that takes what is bright in FLAIR for tumour, in eval mode."""
    made = small_network(locator=threshold_locator(), stem_precision="float32", tail_precision="float32")
    calibrate_batch_norm(made, [cubes(4, seed=9)[0]])
    with torch.no_grad():
        made.network.classifier.weight.mul_(30)
        made.radiomics.weigh.weight.normal_(std=1e-4)  # type: ignore[union-attr]
    return made.eval()


def segmented(network: StemTailNetwork, x: torch.Tensor) -> torch.Tensor:
    assert network.locator is not None
    return segmentation(network.locator, x, network.sequences)


def test_the_gate_is_what_the_segmentation_takes_for_tumour_and_nothing_is_tumour_beyond_the_grid(
    network: StemTailNetwork,
) -> None:
    x, masks = cubes(2, seed=3)
    tumour = network.answer(network.stem(x)).tumour
    assert tumour is not None
    probability = np.pad(torch.sigmoid(tumour_logit(segmented(network, x))).numpy(), [(0, 0)] + [(1, 1)] * 3)
    for cell in ((0, 0, 0), (5, 9, 12), (16, 16, 16)):
        around = probability[(slice(None), *(slice(2 * index, 2 * index + 3) for index in cell))]
        np.testing.assert_allclose(tumour[(slice(None), *cell)], around.mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    assert tumour.shape[1:] == (24, 24, 24)  # three coarse cells of eight
    assert not tumour[:, 17:].any()
    assert not tumour[..., 17:].any()
    torch.testing.assert_close(tumour[:, :17, :17, :17], network.tumour_fraction(masks), atol=0.05, rtol=0)
    assert network.sampling(TUMOUR, 33) == (0.0, 2.0)


@pytest.mark.parametrize("missing", ["error", "zero"])
def test_stem_then_tail_is_the_network_and_the_gate_decides_what_the_tail_sees(
    small_network: Maker, missing: str
) -> None:
    network = small_network(locator=threshold_locator(), missing=missing).eval()
    x = cubes(2, seed=3)[0]
    calibrate_batch_norm(network, [x])
    torch.testing.assert_close(network.tail(network.stem(x)), network(x))
    assert network.own(network.stem(x)).shape[1] == small_network().stem(x).shape[1]
    assert network.locator is not None
    assert not torch.allclose(network(x)[0], network(x)[1])
    network.locator.leave.bias[8:] = -1e6
    torch.testing.assert_close(network(x)[0], network(x)[1])


def test_the_vote_of_a_study_is_the_sum_of_what_its_voxels_contribute(network: StemTailNetwork) -> None:
    x = cubes(3, seed=5)[0]
    vote = network.entry(network.stem(x)).vote
    contributions = DenseVote().contributions(network, x)
    assert vote is not None
    assert contributions.shape == x[:, 0].shape
    assert torch.equal(contributions[:1].sum((1, 2, 3)), dense_vote(segmented(network, x[:1])))
    torch.testing.assert_close(contributions.sum((1, 2, 3)), vote, rtol=1e-5, atol=1e-6)
    assert (contributions < 0).any()
    assert (contributions > 0).any()
    branch = network.answer(network.stem(x)).branch_logits[2]
    torch.testing.assert_close(branch[:, 1] - branch[:, 0], vote)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_dense_vote_map_lies_on_the_voxels_that_vote_for_the_class(network: StemTailNetwork, sign: float) -> None:
    x, masks = cubes(2, seed=6)
    x[:, 2] *= sign  # T1c
    with torch.no_grad():
        network.network.classifier.weight.zero_()
        network.radiomics.weigh.weight.zero_()  # type: ignore[union-attr]
    assert (network(x).argmax(1) == (sign > 0)).all()
    maps = DenseVote()(network, x)
    assert (maps.amax((1, 2, 3)) == 1).all()
    assert ((maps * masks).sum((1, 2, 3)) > 0.99 * maps.sum((1, 2, 3))).all()
    with torch.no_grad():
        network.network.classifier.bias.copy_(torch.tensor([10.0, -10.0]) * sign)  # the others say otherwise
    assert (network(x).argmax(1) != (sign > 0)).all()
    assert (DenseVote()(network, x) * masks).sum() < 0.01 * (maps * masks).sum()


def test_a_mirrored_study_has_the_mirrored_tumour_map_and_the_same_vote(network: StemTailNetwork) -> None:
    x = cubes(2, seed=7)[0]
    entries = [network.entry(network.stem(one)) for one in (x, x.flip(-1))]
    first, second = (entry.tumour[..., :17] for entry in entries)  # type: ignore[index]
    torch.testing.assert_close(second, first.flip(-1))
    torch.testing.assert_close(entries[0].vote, entries[1].vote)


def test_a_sequence_that_the_cohort_lacks_is_zero_to_the_locator(small_network: Maker) -> None:
    some = small_network(locator=threshold_locator(), sequences=("FLAIR", "T1c")).eval()
    x = volumes()
    full = x * torch.tensor([1.0, 0, 1, 0]).view(1, 4, 1, 1, 1)
    every = small_network(locator=some.locator)
    assert torch.equal(segmented(some, x[:, [0, 2]]), segmented(every, full))
    assert not torch.equal(segmented(every, x[:, [2, 1, 0, 3]]), segmented(every, full))
    assert some(x[:, [0, 2]]).shape == (2, 2)


def test_training_changes_every_head_and_never_the_locator(network: StemTailNetwork) -> None:
    network.train()
    assert network.locator is not None
    assert not any(module.training for module in network.locator.modules())
    before = copy.deepcopy(network.state_dict())
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        for logits in network.answer(network.stem(cubes(2, seed=8)[0])).branch_logits:
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward(retain_graph=True)
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("locator.") for name in changed)
    assert {"vote.weigh.weight", "vote.weigh.bias", "radiomics.weigh.weight", "network.classifier.weight"} <= changed
    assert {id(one) for one in network.locator.parameters()} <= {id(one) for one in network.stem_parameters()}


def stored_studies(fake_store: FakeStore) -> dict[str, list[Study]]:
    parts = {"train": studies_of([0, 1], "a"), "validation": studies_of([0, 1], "b"), "test": studies_of([0], "c")}
    for part in parts.values():
        for number, study in enumerate(part):
            fake_store.put(study, cubes(1, seed=number)[0][0].numpy())
    return parts


def test_features_of_the_bank_and_volumes_give_the_same_logits(network: StemTailNetwork, fake_store: FakeStore) -> None:
    parts = stored_studies(fake_store)
    data = FeatureBankDataModule(
        studies=parts, store=fake_store, augmentation=None, seed=0, folder=fake_store.folder / "bank", views=1
    )
    data.fill(network, {})
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, FeatureBatch)
    x = torch.stack([torch.from_numpy(np.array(fake_store.open(one).image)).float() for one in parts["validation"]])
    kept, plain = network.answer(batch.features), network.answer(network.stem(x))
    for one, other in zip(kept.branch_logits, plain.branch_logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_another_locator_makes_another_bank(network: StemTailNetwork, fake_store: FakeStore) -> None:
    parts, folders = stored_studies(fake_store), set()
    for bias in (0.0, 1.0):
        assert network.locator is not None
        network.locator.leave.bias.add_(bias)
        data = FeatureBankDataModule(
            studies=parts, store=fake_store, augmentation=None, seed=0, folder=fake_store.folder / "bank", views=1
        )
        folders.add(data.fill(network, {}).folder)
    assert len(folders) == 2


def a_checkpoint(folder: Path) -> tuple[Checkpoint, StemTailNetwork]:
    """Write a checkpoint of a network whose locator came from a file that is there no longer."""
    file = folder / "locator.safetensors"
    save_segmenter(threshold_locator(), file, {})
    settings = {"backbone": "tf_efficientnet_b0", "weights": "none", "locator": str(file)}
    network = StemTailNetwork(**settings).eval()  # type: ignore[arg-type]
    file.unlink()
    recipe = {
        "model": {"_target_": "idh_lightning.models.StemTailNetwork"} | settings,
        "sequences": ["FLAIR", "T1", "T1c", "T2"],
        "weights": network.weights_origin.as_dict(),
    }
    weights = {f"network.{name}": one for name, one in network.state_dict().items()}
    made = Checkpoint(file=folder / "best.ckpt", recipe=recipe, state_dict=weights)
    made.write()
    return made, network


def test_a_checkpoint_needs_no_other_file_for_its_locator(tmp_path: Path) -> None:
    made, network = a_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    again, x = Checkpoint.read(made.file).network(), cubes(2, seed=4)[0]
    assert again.locator is not None
    assert again.locator.widths == (16, 16)
    assert not any(parameter.requires_grad for parameter in again.locator.parameters())
    torch.testing.assert_close(again(x), network(x))


def test_a_checkpoint_whose_locator_learnt_with_the_tail_is_refused(tmp_path: Path) -> None:
    file = a_checkpoint(tmp_path)[0].file
    content = torch.load(file, weights_only=True)
    torch.save(content | {"format": 2}, file)
    with pytest.raises(
        CheckpointError, match=r"another version \(checkpoint format 2\); expected format 3\. Train again"
    ):
        Checkpoint.read(file)


def test_the_evidence_lies_on_the_tumour(network: StemTailNetwork) -> None:
    x, masks = cubes(8, seed=5)
    maps = Evidence()(network, x)
    assert maps.shape == masks.shape
    assert torch.all(maps.amax((1, 2, 3)) == 1)
    assert maps.min() >= 0
    peaks = [mask.flatten()[cam.argmax()].item() for cam, mask in zip(maps, masks, strict=True)]
    assert sum(peaks) >= 7
    inside = (maps * masks).sum((1, 2, 3)) / maps.sum((1, 2, 3))
    assert inside.mean() > 3 * masks.mean()


def test_explaining_leaves_the_network_as_it_was(network: StemTailNetwork) -> None:
    for method in (Evidence(), DenseVote()):
        network.train()
        method(network, cubes(2, seed=1)[0])
        assert network.network.blocks[6].training
        assert all(parameter.grad is None for parameter in network.parameters())


def test_wrong_settings_are_refused(small_network: Maker, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.trainable_from=conv_stem; expected a frozen stem"):
        small_network(locator="pretrained", trainable_from="conv_stem")
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: cannot be read .*model\.locator=pretrained"):
        small_network(locator=str(tmp_path / "nowhere.safetensors"))
    for method in (Evidence(), DenseVote()):
        with pytest.raises(ModelError, match=r"need a network with a locator"):
            method(small_network().eval(), volumes())


def test_a_new_patient_is_segmented_once_however_often_it_is_asked_for() -> None:
    network = VotingNetwork(locator=small_segmenter())
    runs: list[int] = []
    network.locator.register_forward_hook(lambda _module, inputs, _output: runs.append(len(inputs[0])))
    one, other, views = torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, 8, 8, 8), torch.randn(3, 4, 8, 8, 8)

    def asked(volumes: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [network(volumes), tumour_probability(network, volumes), network.own(volumes)]

    alone = [asked(volumes) for volumes in (one, other, views)]
    assert runs == [1, 1, 1, 1, 1, 1, 3, 3, 3]
    runs.clear()
    with segmenting_once():
        together = [asked(volumes) for volumes in (one, other, views)]
        assert runs == [1, 1, 3, 3, 3]
        assert one.requires_grad_() is one
        assert network(one).requires_grad, "where a graph is made, nothing is taken from before"
    for first, second in zip(alone, together, strict=True):
        for expected, found in zip(first, second, strict=True):
            assert torch.equal(expected, found)
