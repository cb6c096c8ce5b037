from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FakeStore, studies_of
from sklearn.metrics import average_precision_score
from tiny_locator import threshold_locator
from torch import nn

from idh_lightning.attribution import Evidence, GradCAM
from idh_lightning.attribution.scores import localisation_scores
from idh_lightning.callbacks import maps as explanations
from idh_lightning.data import IDHDataModule
from idh_lightning.errors import ExplanationError, ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm

Maker = Callable[..., StemTailNetwork]


def volumes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 33, 33, 33, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def network(small_network: Maker) -> StemTailNetwork:
    made = small_network(stem_precision="float32", tail_precision="float32")
    calibrate_batch_norm(made, [volumes(4)])
    return made.eval()


@pytest.mark.parametrize("layer", ["blocks.2", "blocks.4", "blocks.5", "conv_head"])
def test_map_is_the_relu_of_gradient_weighted_activations(network: StemTailNetwork, layer: str) -> None:
    x = volumes()
    kept: list[torch.Tensor] = []

    def keep(_m: nn.Module, _i: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = network.network.get_submodule(layer).register_forward_hook(keep)
    logits = network.explainable_forward(x)
    handle.remove()
    margin = (logits[:, 1] - logits[:, 0]).abs().sum()
    (gradient,) = torch.autograd.grad(margin, kept[0])
    raw = (gradient.mean((2, 3, 4), keepdim=True) * kept[0]).sum(1).relu()
    raw = nn.functional.interpolate(raw[:, None], size=(33, 33, 33), mode="trilinear", align_corners=True)[
        :, 0
    ].detach()
    largest = raw.amax((1, 2, 3), keepdim=True)
    expected = torch.where(largest > 0, raw / largest.clamp_min(1e-30), 0)
    torch.testing.assert_close(GradCAM(layer=layer)(network, x), expected, rtol=1e-4, atol=1e-5)


def test_maps_lie_between_zero_and_one_on_the_grid_of_the_volumes(network: StemTailNetwork) -> None:
    maps = GradCAM(layer="blocks.4")(network, volumes())
    assert maps.shape == (2, 33, 33, 33)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_a_map_does_not_depend_on_the_rest_of_its_batch(network: StemTailNetwork) -> None:
    together = GradCAM()(network, volumes(3))
    alone = torch.cat([GradCAM()(network, volume[None]) for volume in volumes(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3)


def test_explaining_leaves_the_network_as_it_was(network: StemTailNetwork) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    GradCAM()(network, volumes())
    assert network.network.blocks[5].training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.network.blocks[4]._forward_hooks
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_explains_inside_no_grad(network: StemTailNetwork) -> None:
    with torch.no_grad():
        assert GradCAM()(network, volumes()).max() > 0


def test_an_unknown_layer_is_refused(network: StemTailNetwork) -> None:
    with pytest.raises(ModelError, match=r"explain\.layer: found 'blocks\.77'"):
        GradCAM(layer="blocks.77")(network, volumes())


def tumour() -> tuple[np.ndarray, np.ndarray]:
    brain = np.zeros((8, 8, 8), np.uint8)
    brain[1:7, 1:7, 1:7] = 1
    mask = np.zeros_like(brain)
    mask[2:4, 2:4, 2:4] = 1
    return mask, brain


def test_a_map_equal_to_the_mask_scores_perfectly() -> None:
    mask, brain = tumour()
    scores = localisation_scores(mask.astype(np.float32), mask, brain)
    assert scores == {
        "pointing_game": 1.0,
        "energy_inside": 1.0,
        "auprc": 1.0,
        "best_iou": 1.0,
        "outside_brain": 0.0,
    }


def test_a_flat_map_scores_the_tumours_share_of_the_brain() -> None:
    mask, brain = tumour()
    scores = localisation_scores(np.ones((8, 8, 8), np.float32), mask, brain)
    share = mask.sum() / brain.sum()
    assert scores["energy_inside"] == pytest.approx(share)
    assert scores["auprc"] == pytest.approx(share)
    assert scores["best_iou"] == pytest.approx(share)
    assert scores["outside_brain"] == pytest.approx(1 - brain.sum() / 512)


def test_scores_agree_with_loops_over_voxels_and_thresholds() -> None:
    mask, brain = tumour()
    cam = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    scores = localisation_scores(cam, mask, brain)
    inside = brain > 0
    ious = []
    for threshold in np.unique(cam[inside]):
        found = (cam >= threshold) & inside
        ious.append((found & (mask > 0)).sum() / (found | (mask > 0)).sum())
    assert scores["best_iou"] == pytest.approx(max(ious))
    assert scores["auprc"] == pytest.approx(average_precision_score(mask[inside], cam[inside]))
    hottest = np.unravel_index(np.argmax(np.where(inside, cam, -1)), cam.shape)
    assert scores["pointing_game"] == float(mask[hottest])


def test_an_empty_map_scores_nothing() -> None:
    mask, brain = tumour()
    scores = localisation_scores(np.zeros((8, 8, 8), np.float32), mask, brain)
    assert (scores["pointing_game"], scores["energy_inside"], scores["best_iou"]) == (0.0, 0.0, 0.0)
    assert scores["outside_brain"] == 0.0


def test_an_empty_mask_or_another_grid_is_refused() -> None:
    mask, brain = tumour()
    with pytest.raises(ExplanationError, match="mask is empty"):
        localisation_scores(np.ones((8, 8, 8)), np.zeros_like(mask), brain)
    with pytest.raises(ExplanationError, match="shapes differ"):
        localisation_scores(np.ones((4, 4, 4)), mask, brain)


def test_methods_that_share_the_stem_give_the_same_maps(small_network: Maker) -> None:
    network, x = small_network(locator=threshold_locator(0.0)).eval(), volumes()
    network.fuse_stem = False  # so that hooks see the stem run
    methods = (Evidence(), GradCAM(), GradCAM(layer="blocks.2"))
    runs: list[int] = []
    handle = network.network.conv_stem.register_forward_hook(lambda *_: runs.append(1))
    apart = [method(network, x) for method in methods]
    assert len(runs) == 3
    with network.cache_stem():
        together = [method(network, x) for method in methods]
    assert len(runs) == 5, "a layer of the stem needs a graph of its own"
    handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(apart, together, strict=True))
    assert not torch.equal(network.stem(x + 1), network.stem(x)), "nothing is kept outside"


def test_features_that_are_known_are_not_computed_again(small_network: Maker) -> None:
    network, x = small_network(locator=threshold_locator(0.0)).eval(), volumes()
    assert network.radiomics is not None
    with torch.no_grad():  # an opinion on what the gate lets through
        network.radiomics.weigh.weight.fill_(1e-4)
    features, apart = network.stem(x), Evidence()(network, x)
    assert apart.any(), "a map without evidence tests nothing"
    with network.cache_stem():
        with network.with_stem_features(x, features):
            assert network.stem(x) is features
            assert torch.equal(Evidence()(network, x), apart)
        with network.with_stem_features(x, 2 * features):
            assert not torch.equal(Evidence()(network, x), apart), "what is known is what is explained"
            assert torch.equal(network.stem(x.clone()), features), "and only for the volumes that it belongs to"
        assert torch.equal(network.stem(x), features)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_validation_studies_are_followed_as_asked(
    count: int, tmp_path: Path, fake_store: FakeStore, small_network: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = {"train": studies_of([0, 1], "t"), "validation": studies_of([0, 1, 0, 1], "v")}
    studies["test"] = studies_of([0], "x")
    for study in studies["validation"]:
        fake_store.put(study, volumes(1)[0].numpy())
    drawn: list[str] = []
    notes: list[str] = []
    monkeypatch.setattr(explanations, "cam_panel_of", lambda *_, note, target: notes.append(note) or {})
    monkeypatch.setattr(explanations, "save_cam_panel", lambda path: drawn.append(path.stem))
    network = small_network(locator=threshold_locator(0.0)).train()
    data = IDHDataModule(studies=studies, store=fake_store, augmentation=None, seed=0)  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(datamodule=data, is_global_zero=True, sanity_checking=False, current_epoch=2)
    module: Any = SimpleNamespace(network=network, device=torch.device("cpu"))
    callback = explanations.Explanations(
        method=Evidence(), run_folder=tmp_path, sequences=(), validation_studies=count, batch_size=2
    )
    callback.on_validation_epoch_end(trainer, module)
    assert drawn == [f"{name}_epoch003" for name in ("v001", "v003", "v000")[:count]]
    assert all(re.fullmatch(r", epoch 3, P\(mutant\) 0\.\d\d before calibration", note) for note in notes)
    assert len(notes) == count
    assert network.training
