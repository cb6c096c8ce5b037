"""Every method of explanation on networks whose answer is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_locator import open_locator, threshold_locator
from torch import Tensor, nn

from idh_lightning.attribution import Evidence, GradCAM, IntegratedGradients, Method, Occlusion, Supervoxels
from idh_lightning.attribution.perturbation import margin_lost, mirrored, supervoxels
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.models.radiomics import RADIOMICS_GAIN

Maker = Callable[..., StemTailNetwork]

METHODS: dict[str, Method] = {
    path.stem: instantiate(OmegaConf.load(path), _convert_="all")
    for path in sorted((CONF_DIR / "explain").glob("*.yaml"))
    if path.stem != "dense_vote"  # of networks that vote: tests/test_pretrained.py
}
"""All that conf/explain has, as it is there."""


def volumes(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 33, 33, 33, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def network() -> StemTailNetwork:
    torch.manual_seed(0)
    settings = {"backbone": "tf_efficientnet_b0", "weights": "none", "locator": threshold_locator(0.0, sharpness=4.0)}
    made = StemTailNetwork(stem_precision="float32", tail_precision="float32", **settings)
    calibrate_batch_norm(made, [volumes(4)])
    with torch.no_grad():
        made.network.classifier.weight.mul_(30)
    return made.eval()


class CubeNetwork(nn.Module):
    """Knows mutants by how bright one cube is in the second sequence, and by nothing else."""

    def __init__(self, cube: tuple[slice, slice, slice], sign: float = 1.0) -> None:
        super().__init__()
        self.cube = cube
        self.sign = sign

    def forward(self, volumes: Tensor) -> Tensor:
        bright = volumes[:, 1][(slice(None), *self.cube)].mean((1, 2, 3)) * self.sign
        return torch.stack([-bright, bright], dim=1)

    def explainable_forward(self, volumes: Tensor) -> Tensor:
        return self(volumes)


CUBE = (slice(8, 16), slice(16, 24), slice(4, 12))
"""In the half of low w, so that its mirror image lies apart from it."""


def with_a_bright_cube(edge: int = 32) -> Tensor:
    made = 0.1 * torch.randn(1, 4, edge, edge, edge, generator=torch.Generator().manual_seed(0))
    made[(0, 1, *CUBE)] += 3
    return made


def inside(cam: Tensor) -> float:
    return float(cam[(0, *CUBE)].sum() / cam.sum())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_maps_between_0_and_1_and_leaves_the_network_as_it_was(
    network: StemTailNetwork, name: str
) -> None:
    method, x = METHODS[name], volumes()
    quick = {Occlusion: {"per_edge": 3}, Supervoxels: {"per_edge": 3}, IntegratedGradients: {"steps": 2}}
    method = replace(method, **quick.get(type(method), {}))
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kept = x.clone()
    with torch.no_grad():
        maps = method(network, x)
    assert maps.shape == (2, 33, 33, 33)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.min() >= 0
    assert (maps.amax((1, 2, 3)) == 1).all(), "a map without evidence tests nothing"
    assert network.network.blocks[5].training
    assert torch.equal(x, kept)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    network.eval()
    masks = torch.zeros(2, 33, 33, 33)
    masks[:, 8:20, 8:20, 8:20] = 1
    reference = method.reference(network, x, masks)
    assert reference.shape == masks.shape
    assert (reference >= 0).all()
    assert (reference <= 1 + 1e-5).all()
    assert reference[masks > 0].mean() > reference[masks == 0].mean()


def test_every_method_has_a_name_of_its_own() -> None:
    assert len({method.name for method in METHODS.values()}) == len(METHODS)
    assert isinstance(METHODS["evidence"], Evidence)


@pytest.mark.parametrize("variant", ["grad_cam_pp", "layer_cam"])
def test_class_activation_maps_follow_the_formula_of_their_paper(network: StemTailNetwork, variant: str) -> None:
    x, layer, kept = volumes(), "conv_head", []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = network.network.get_submodule(layer).register_forward_hook(keep)
    logits = network(x)  # as the method does, which rounds otherwise than `explainable_forward`
    handle.remove()
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).abs().sum(), kept[0])
    gradient, activation = gradient.numpy(), kept[0].detach().numpy()
    raw = np.zeros((2, *activation.shape[2:]))
    for study in range(2):
        for g, a in zip(gradient[study], activation[study], strict=True):
            if variant == "layer_cam":
                raw[study] += np.maximum(g, 0) * a
            else:
                divisor = 2 * g**2 + (a * g**3).sum()
                assert (np.abs(divisor) > 3e-4 * g**2).all(), "so close to nothing that float32 does not know it"
                alpha = np.divide(g**2, divisor, out=np.zeros_like(g), where=divisor != 0)
                raw[study] += (alpha * np.maximum(g, 0)).sum() * a
    cam = torch.from_numpy(np.maximum(raw, 0)).float()[:, None]
    cam = nn.functional.interpolate(cam, size=(33, 33, 33), mode="trilinear", align_corners=True)[:, 0]
    expected = cam / cam.amax((1, 2, 3), keepdim=True)
    found = GradCAM(layer=layer, variant=variant)(network, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_fused_layers_take_the_hottest_of_their_maps(network: StemTailNetwork) -> None:
    network.fuse_stem = False  # which rounds otherwise, and only where no layer of the stem is explained
    x, layers = volumes(), ["blocks.2", "entry"]
    alone = [GradCAM(layer=layer, variant="layer_cam")(network, x) for layer in layers]
    lifted = torch.maximum(*(torch.tanh(2 * cam) for cam in alone)) / np.tanh(2)
    fused = GradCAM(layer=layers, variant="layer_cam")(network, x)
    torch.testing.assert_close(fused, lifted, rtol=0, atol=1e-5)


class CurvedNetwork(CubeNetwork):
    """Knows mutants by a curved function of all voxels."""

    def forward(self, volumes: Tensor) -> Tensor:
        bent = torch.tanh(volumes.cumsum(-1)).mean((2, 3, 4)) - 0.3 * volumes.square().mean((2, 3, 4))
        return torch.stack([bent[:, 1] * bent[:, 0], 5 * bent[:, 2] - bent[:, 3]], dim=1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_integrated_gradients_add_up_to_the_difference_from_a_volume_of_zeros(sign: float) -> None:
    x, network = sign * volumes().abs()[..., :8], CurvedNetwork(CUBE)
    contributions = IntegratedGradients(steps=32).contributions(network, x)  # type: ignore[arg-type]
    logits, nothing = network(x), network(torch.zeros_like(x))
    towards = torch.where(logits[:, 1] > logits[:, 0], 1.0, -1.0)
    assert (towards == sign).all(), "both classes are to be explained"
    margin = towards * (logits[:, 1] - logits[:, 0] - nothing[:, 1] + nothing[:, 0])
    torch.testing.assert_close(contributions.sum((1, 2, 3, 4)), margin, rtol=0.01, atol=1e-3)


def test_integrated_gradients_of_a_linear_network_are_weight_times_input() -> None:
    x = with_a_bright_cube()
    cam = IntegratedGradients(steps=4)(CubeNetwork(CUBE), x)  # type: ignore[arg-type]
    expected = torch.zeros_like(cam)
    expected[(0, *CUBE)] = x[(0, 1, *CUBE)].relu()
    torch.testing.assert_close(cam, expected / expected.max(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def reading(network: StemTailNetwork) -> StemTailNetwork:
    """Its gate stands open; its reader, not its deep layers, has an opinion: on the brightness of one sequence."""
    made = copy.deepcopy(network)
    assert made.radiomics is not None
    made.locator = open_locator()
    with torch.no_grad():
        made.network.classifier.weight.zero_()
        made.radiomics.weigh.weight[0, 1] = 1 / RADIOMICS_GAIN
    return made


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_evidence_adds_up_to_the_difference_from_a_shut_gate_and_ordinary_tissue(
    network: StemTailNetwork, reading: StemTailNetwork, sign: float
) -> None:
    assert reading.radiomics is not None
    with torch.no_grad():
        reading.network.classifier.weight.copy_(sign * network.network.classifier.weight)
        reading.radiomics.weigh.weight[0, :20] = torch.linspace(-sign, sign, 20) / RADIOMICS_GAIN
    x = volumes()
    x[:, :, :, :, :16] *= 0.5
    seen, read, gate = Evidence(steps=64).contributions(reading, x)
    with torch.no_grad():
        entry = reading.entry(reading.stem(x))
        assert entry.tissue is not None
        assert entry.tumour is not None
        torch.testing.assert_close(gate, entry.tumour)
        weights = (1 - gate) * (entry.tissue[:, 4:8].sum(1) > 0)
        ordinary = torch.stack(
            [
                (tissue * weight).sum((1, 2, 3)) / weight.sum()
                for tissue, weight in zip(entry.tissue, weights, strict=True)
            ]
        )[..., None, None, None].expand_as(entry.tissue)
        nothing = reading.classify(entry._replace(deep=torch.zeros_like(entry.deep), tissue=ordinary)).logits
        logits = reading.classify(entry).logits
    towards = torch.where(logits[:, 1] > logits[:, 0], 1.0, -1.0)
    margin = towards * (logits[:, 1] - logits[:, 0] - nothing[:, 1] + nothing[:, 0])
    assert (margin.abs() > 0.01).all()
    torch.testing.assert_close(seen.sum((1, 2, 3)) + read.sum((1, 2, 3)), margin, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_evidence_shows_what_the_reader_read_for_either_class(reading: StemTailNetwork, sign: float) -> None:
    assert reading.radiomics is not None
    with torch.no_grad():
        reading.radiomics.weigh.weight.mul_(sign)
    x = with_a_bright_cube(33)
    assert reading(x).argmax(1).item() == (sign > 0)
    cam, cube = Evidence()(reading, x), torch.zeros(1, 33, 33, 33)
    cube[(0, *CUBE)] = 1
    hottest = np.unravel_index(int(cam[0].argmax()), cam.shape[1:])
    assert all(part.start <= place < part.stop for part, place in zip(CUBE, hottest, strict=True))
    assert inside(cam) > 0.9 * inside(Evidence().reference(reading, x, cube)) > 10 * 8**3 / 33**3


def test_evidence_against_the_class_is_not_shown(reading: StemTailNetwork) -> None:
    assert reading.radiomics is not None
    with torch.no_grad():
        reading.radiomics.weigh.bias.fill_(-9 / RADIOMICS_GAIN)  # wildtype, whatever the cube says
    x = with_a_bright_cube(33)
    assert reading(x).argmax(1).item() == 0
    assert inside(Evidence()(reading, x)) < 0.01


@pytest.mark.parametrize("method", [Occlusion(per_edge=8), Supervoxels(per_edge=8)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_replacing_finds_the_only_cube_that_the_network_looks_at(method: Occlusion | Supervoxels, sign: float) -> None:
    x = with_a_bright_cube()
    cam = method(CubeNetwork(CUBE, sign), x)  # type: ignore[arg-type]
    hottest = np.unravel_index(int(cam[0].argmax()), cam.shape[1:])
    assert all(part.start <= place < part.stop for part, place in zip(CUBE, hottest, strict=True))
    share = 8**3 / 32**3
    assert inside(cam) > (0.2 if isinstance(method, Occlusion) else 0.9) > 10 * share
    far = cam.clone()
    far[0, 2:22, 10:30, 0:18] = 0  # no cube that overlaps the bright one reaches farther
    assert far.max() < 0.01


@pytest.mark.parametrize("method", [Occlusion(per_edge=4), Supervoxels(per_edge=4)])
def test_a_symmetric_study_has_nothing_that_its_mirror_image_lacks(method: Occlusion | Supervoxels) -> None:
    x = with_a_bright_cube()
    x = torch.maximum(x, mirrored(x))
    assert method(CubeNetwork(CUBE), x).max() == 0  # type: ignore[arg-type]


def test_the_margin_lost_is_what_the_replaced_voxels_gave() -> None:
    volume = torch.zeros(1, 4, 4, 8)
    volume[0, 1, 1, 1], volume[0, 2, 2, 6] = 3.0, -1.0

    def network(batch: Tensor) -> Tensor:  # margin: the sum of all voxels on the left
        left = batch[..., :4].sum((1, 2, 3, 4))
        return torch.stack([-left, left], 1) / 2

    regions = torch.zeros(3, 4, 4, 8, dtype=torch.bool)
    regions[0, 1, 1, 1] = regions[1, 2, 2, 1] = True  # what gave 3, and what its mirror image would make -1
    regions[2, 2, 2, 6] = True  # nothing that counts
    assert margin_lost(network, volume)(regions).tolist() == [3, 1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Occlusion(per_edge=5), Supervoxels(per_edge=5)])
def test_regions_cover_the_brain_and_nothing_else(method: Occlusion | Supervoxels) -> None:
    x = with_a_bright_cube()[0]
    x[:, :6] = 0
    x[:, :, 27:] = 0
    held = torch.stack(list(method.regions(x))).sum(0)
    assert torch.equal(held > 0, x.ne(0).any(0))
    if isinstance(method, Supervoxels):
        assert held.max() == 1


def test_the_reference_of_occlusion_is_the_mean_share_of_the_cubes_that_hold_a_voxel() -> None:
    x = torch.ones(1, 1, 8, 8, 8)
    masks = torch.zeros(1, 8, 8, 8)
    masks[0, :4] = 1
    reference = Occlusion(per_edge=2, batch_size=3).reference(None, x, masks)  # type: ignore[arg-type]
    # Along d two cubes: 0..5 with a share of 4/6 and 2..7 with 2/6; a voxel that both hold has the mean of them.
    expected = torch.tensor([4 / 6, 4 / 6, 0.5, 0.5, 0.5, 0.5, 2 / 6, 2 / 6])
    torch.testing.assert_close(reference[0], expected[:, None, None].expand(8, 8, 8))


def test_supervoxels_are_connected_follow_borders_and_are_the_same_each_time() -> None:
    x = with_a_bright_cube()[0].numpy()
    found = supervoxels(x, 8)
    np.testing.assert_array_equal(found, supervoxels(x, 8))
    cube = np.zeros(found.shape, bool)
    cube[CUBE] = True
    mixed = 0
    for label in np.unique(found[cube]):
        piece = found == label
        mixed += min((piece & cube).sum(), (piece & ~cube).sum())
    assert mixed < 0.1 * cube.sum()
    assert 100 < len(np.unique(found)) < 1000
