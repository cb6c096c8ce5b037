from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from idh_lightning.errors import ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm, inflate
from idh_lightning.models.fast import fused as fusing
from idh_lightning.models.fast.convolutions import restore_convolutions
from idh_lightning.models.fast.fused import FusedStem

Maker = Callable[..., StemTailNetwork]


def volumes(batch: int = 2, channels: int = 4, edge: int | tuple[int, int, int] = 32) -> torch.Tensor:
    edges = edge if isinstance(edge, tuple) else (edge,) * 3
    return torch.randn(batch, channels, *edges, generator=torch.Generator().manual_seed(1))


def test_default_network_is_b7_with_the_parameter_counts_of_its_last_two_stages() -> None:
    with torch.device("meta"):
        network = StemTailNetwork(weights="later")
    total = sum(parameter.numel() for parameter in network.parameters())
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert total == pytest.approx(68.77e6, rel=1e-3)
    assert trainable == pytest.approx(54.6e6, rel=1e-3)


def test_stem_then_tail_is_the_whole_timm_network(small_network: Maker) -> None:
    network = small_network(stem_precision="float32", tail_precision="float32").eval()
    x = volumes()
    torch.testing.assert_close(network(x), network.network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", ["conv_stem", "blocks.3", "blocks.5", "blocks.5.2", "conv_head", "classifier"])
def test_where_the_network_is_cut_does_not_change_what_it_computes(small_network: Maker, cut: str) -> None:
    x = volumes()
    whole = small_network(trainable_from="conv_stem", tail_precision="float32").eval()
    cut_network = small_network(trainable_from=cut, stem_precision="float32", tail_precision="float32").eval()
    cut_network.load_state_dict(whole.state_dict())
    torch.testing.assert_close(cut_network(x), whole(x), rtol=1e-4, atol=1e-5)


def test_stem_in_bfloat16_agrees_with_float32_within_an_eighth_of_the_features_spread(small_network: Maker) -> None:
    network = small_network(stem_precision="float32").eval()
    calibrate_batch_norm(network, [volumes(4)])
    exact = network.stem(volumes())
    network.stem_precision = "bfloat16"
    difference = (network.stem(volumes()) - exact).pow(2).mean().sqrt()
    assert difference < 0.125 * exact.std()


@pytest.mark.parametrize(
    "instructions", [set(), {"avx2"}, {"avx512_bf16"}, {"avx512_bf16", "sse4a"}, {"amx_bf16", "avx512_bf16"}]
)
def test_a_cpu_predicts_in_float32_and_rounds_at_most_what_it_trains_on(
    small_network: Maker, monkeypatch: pytest.MonkeyPatch, instructions: set[str]
) -> None:
    monkeypatch.setattr(
        "idh_lightning.models.fast.precision.cpu_has", lambda *names: not instructions.isdisjoint(names)
    )
    network = small_network().eval()
    assert network.stem_precision == "auto"
    has_bfloat16 = "amx_bf16" in instructions or instructions == {"avx512_bf16", "sse4a"}
    assert network.stem_dtype("cpu", to_train=True) == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert network.stem_dtype("cpu") == torch.float32
    assert network._fuses("cpu")
    exact = small_network(stem_precision="float32").eval()
    exact.load_state_dict(network.state_dict())
    rounded = network.stem(volumes(), to_train=True)
    assert torch.equal(network.stem(volumes()), exact.stem(volumes())), "also after it has computed in another one"
    assert torch.equal(rounded, exact.stem(volumes())) == (not has_bfloat16)


def test_where_features_to_train_on_are_rounded_so_is_the_tumour_in_them_by_little(
    small_network: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idh_lightning.models.fast.precision.cpu_has", lambda *_: True)
    network = small_network(locator="pretrained").eval()
    x = volumes(edge=33)
    exact, rounded = (network.answer(network.stem(x, to_train=each)).tumour for each in (False, True))
    assert 0 < float((exact - rounded).abs().max()) < 0.05
    network.stem_precision = "float32"
    assert torch.equal(network.answer(network.stem(x, to_train=True)).tumour, exact)


def moved(network: StemTailNetwork) -> StemTailNetwork:
    """Give every BatchNorm statistics and weights of its own, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d) and module.affine:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.3, 2.0, generator=generator)
                module.weight.normal_(1, 0.3, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return network


@pytest.mark.parametrize("cut", ["bn1", "blocks.0", "blocks.3", "blocks.5.2", "conv_head", "bn2", "classifier"])
@pytest.mark.parametrize("edge", [32, 33, 36, (24, 33, 26)], ids=str)
def test_a_stem_with_batch_norm_fused_into_its_convolutions_computes_the_same(
    small_network: Maker, cut: str, edge: int | tuple[int, int, int]
) -> None:
    network = moved(small_network(trainable_from=cut, stem_precision="float32"))
    x = volumes(3, edge=edge)
    assert network._fuses("cpu")
    fused = network.stem(x)
    network.fuse_stem = False
    torch.testing.assert_close(fused, network.stem(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_wide_layer_in_parts_has_the_same_bits(
    small_network: Maker, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = moved(small_network(stem_precision=precision))
    whole, parts = network.stem(volumes(edge=33)), []
    part = fusing._Convolution.part
    monkeypatch.setattr(fusing._Convolution, "part", lambda *given: parts.append(given) or part(*given))
    monkeypatch.setattr(fusing, "WIDE", 2**16)
    assert torch.equal(network.stem(volumes(edge=33)), whole)
    assert len(parts) > 20


@pytest.mark.parametrize("edge", [32, 33, (24, 33, 26)], ids=str)
def test_a_stem_fused_for_a_gpu_computes_the_same_for_several_studies_at_once(
    small_network: Maker, edge: int | tuple[int, int, int]
) -> None:
    network = moved(small_network(stem_precision="float32"))
    network.fuse_stem = False
    fused = FusedStem(network._stem_modules(), torch.float32, onednn=False)
    for studies in (1, 3):
        x = volumes(studies, edge=edge)
        torch.testing.assert_close(network._run_stem(x, torch.float32, fused), network.stem(x), rtol=1e-4, atol=1e-4)


def test_a_locator_says_the_same_beside_a_fused_stem(small_network: Maker) -> None:
    network = moved(small_network(locator="pretrained", stem_precision="float32"))
    fused = network.stem(volumes(edge=33))
    network.fuse_stem = False
    torch.testing.assert_close(fused, network.stem(volumes(edge=33)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edges", [(49, 65, 49), (24, 33, 26)], ids=str)
def test_what_is_explained_and_what_is_timed_the_plain_way_is_the_network_that_predicts(
    small_network: Maker, edges: tuple[int, int, int]
) -> None:
    network = moved(small_network(stem_precision="float32", tail_precision="float32")).eval()
    x = volumes(2, edge=edges)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(network.explainable_forward(x), expected, rtol=1e-3, atol=1e-4)
        restore_convolutions(network.network)  # as the benchmark's plain way does
        torch.testing.assert_close(network.network(x), expected, rtol=1e-3, atol=1e-4)


def test_fusing_loses_no_more_to_bfloat16_than_the_stem_as_it_is(small_network: Maker) -> None:
    network = moved(small_network(stem_precision="float32"))
    network.fuse_stem = False
    exact = network.stem(volumes(4))
    network.stem_precision = "bfloat16"
    plain = (network.stem(volumes(4)) - exact).pow(2).mean().sqrt()
    network.fuse_stem = True
    fused = (network.stem(volumes(4)) - exact).pow(2).mean().sqrt()
    assert 0 < fused < 1.25 * plain < 0.125 * exact.std()


def test_a_fused_stem_follows_its_weights_and_statistics_and_leaves_them_alone(small_network: Maker) -> None:
    network = moved(small_network(stem_precision="float32"))
    names, first = list(network.state_dict()), network.stem(volumes())
    before = copy.deepcopy(network.state_dict())
    assert list(network.state_dict()) == names
    for change in (
        lambda: network.network.bn1.running_mean.add_(1.0),
        lambda: nn.init.zeros_(network.network.blocks[4][0].bn3.bias),
        lambda: network.load_state_dict(before),
    ):
        change()
        changed = network.stem(volumes())
        network.fuse_stem = False
        torch.testing.assert_close(changed, network.stem(volumes()), rtol=1e-4, atol=1e-4)
        network.fuse_stem = True
    torch.testing.assert_close(changed, first)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def left_out(network: StemTailNetwork) -> int:
    blocks = sum(len(part) for part in network._stem_modules().values() if isinstance(part, nn.Sequential))
    stages = network._fused(torch.zeros(1)).stages.values()
    return blocks - sum(len(part.blocks) for part in stages if hasattr(part, "blocks"))


def test_blocks_of_an_untrained_stem_that_add_nothing_are_left_out_and_nothing_changes(small_network: Maker) -> None:
    network = small_network(stem_precision="float32")
    calibrate_batch_norm(network, [volumes(4)])
    assert left_out(network) == 6  # of 11 in the first five stages of B0; five change the number of channels
    fused = network.stem(volumes())
    network.fuse_stem = False
    torch.testing.assert_close(fused, network.stem(volumes()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_block_that_adds_something_is_computed(small_network: Maker, what: str) -> None:
    network = small_network(stem_precision="float32")
    before = network.stem(volumes())
    with torch.no_grad():
        getattr(network.network.blocks[4][2].bn3, what)[0] = 1.0
    assert left_out(network) == 5
    changed = network.stem(volumes())
    assert not torch.equal(changed, before)
    network.fuse_stem = False
    torch.testing.assert_close(changed, network.stem(volumes()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("watched", ["blocks.2", "blocks.4.2", "blocks.4.2.conv_dw"])
def test_blocks_that_add_nothing_are_left_out_of_an_explanation_unless_they_are_watched(
    small_network: Maker, watched: str
) -> None:
    network = small_network(stem_precision="float32", tail_precision="float32").eval()
    calibrate_batch_norm(network, [volumes(4)])
    state, ran = network.state_dict(), []
    for name in ("blocks.4.1", watched):
        network.network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    idle = network.network.blocks[3][1]
    idle.forward = None  # type: ignore[assignment, method-assign]
    with torch.enable_grad():
        x = volumes().requires_grad_(True)
        logits = network.explainable_forward(x)
        (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert sorted(ran) == sorted(["blocks.4.1", watched])
    del idle.forward
    x = volumes().requires_grad_(True)
    expected = network.network(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0], rtol=1e-3, atol=1e-6)
    assert list(network.state_dict()) == list(state)


def test_modules_that_do_not_fuse_run_as_they_are(small_network: Maker) -> None:
    network = small_network(backbone="efficientnet_es", stem_precision="float32").eval()
    assert not network._fuses("cpu")
    assert torch.isfinite(network.stem(volumes())).all()


def test_only_what_follows_the_cut_learns_and_stem_buffers_stay_bit_identical(small_network: Maker) -> None:
    network = small_network(trainable_from="blocks.5").train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(volumes()), torch.tensor([0, 1])).backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    heads = ("network.blocks.5", "network.blocks.6", "network.conv_head", "network.bn2", "network.classifier")
    assert changed
    assert all(name.startswith(heads) for name in changed)
    for head in heads:
        assert any(name.startswith(head) for name in changed), head


def test_stem_stays_in_eval_mode_after_train(small_network: Maker) -> None:
    network = small_network(trainable_from="blocks.5").train()
    assert not network.network.blocks[4].training
    assert network.network.blocks[5].training


def test_stem_features_carry_no_graph(small_network: Maker) -> None:
    assert not small_network().stem(volumes()).requires_grad


@pytest.mark.slow
def test_an_untrained_stem_gives_similar_volumes_similar_features() -> None:
    torch.manual_seed(0)
    network = StemTailNetwork(weights="none", stem_precision="float32").eval()
    smooth = nn.functional.interpolate(torch.randn(6, 4, 6, 6, 6), size=(32, 32, 32), mode="trilinear")
    calibrate_batch_norm(network, [smooth])
    features = network.stem(smooth)
    moved = (network.stem(smooth + 0.1 * torch.randn_like(smooth)) - features).pow(2).mean()
    apart = (features - features.roll(1, 0)).pow(2).mean()
    assert moved < 0.1 * apart


def test_calibration_undoes_whatever_scale_the_weights_have(small_network: Maker) -> None:
    network = small_network(stem_precision="float32").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-9  # the law is exact but for this constant
    training = [volumes(4), volumes(4)]
    calibrate_batch_norm(network, training)
    expected = network.stem(volumes())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv3d) and module.bias is None:
                module.weight.mul_(0.5)
            if isinstance(module, nn.BatchNorm3d):
                module.reset_running_stats()
    scaled = network.stem(volumes())
    calibrate_batch_norm(network, training)
    assert (scaled - expected).pow(2).mean().sqrt() > 0.5 * expected.std()
    assert (network.stem(volumes()) - expected).pow(2).mean().sqrt() < 0.01 * expected.std()


def test_calibration_restores_modes_and_momenta(small_network: Maker) -> None:
    network = small_network().train()
    momenta = [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert calibrate_batch_norm(network, [volumes(2), volumes(2)]) == 4
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm3d)] == momenta
    assert network.training
    assert not network.network.blocks[0].training


def test_calibration_refuses_a_single_volume(small_network: Maker) -> None:
    with pytest.raises(ModelError, match="at least 2"):
        calibrate_batch_norm(small_network(), [volumes(1)])


def test_inflated_kernel_gives_the_2d_response_on_a_volume_constant_along_depth() -> None:
    weight = torch.randn(5, 3, 3, 3)
    inflated = inflate(weight, (5, 3, 3, 3, 3))
    image = torch.randn(1, 3, 9, 9)
    volume = image.unsqueeze(2).expand(1, 3, 7, 9, 9)
    flat = nn.functional.conv2d(image, weight)
    torch.testing.assert_close(nn.functional.conv3d(volume, inflated)[:, :, 2], flat, rtol=1e-4, atol=1e-5)


def test_fourth_channel_keeps_the_response_to_equal_channels() -> None:
    weight = torch.randn(5, 3, 3, 3)
    inflated = inflate(weight, (5, 4, 3, 3, 3))
    assert inflated.shape == (5, 4, 3, 3, 3)
    torch.testing.assert_close(inflated[:, 3], inflated[:, 0])


def test_2d_weights_of_timm_fit_and_are_recorded(tmp_path: Path, small_network: Maker) -> None:
    flat = timm.create_model("tf_efficientnet_b0", pretrained=False)
    torch.save(flat.state_dict(), tmp_path / "flat.pt")
    network = small_network(weights=str(tmp_path / "flat.pt"))
    assert network.weights_origin.pretrained
    assert "inflated" in network.weights_origin.note
    depthwise = flat.blocks[1][0].conv_dw.weight
    torch.testing.assert_close(network.network.blocks[1][0].conv_dw.weight.sum(2), depthwise)


def test_3d_weights_are_taken_as_they_are(tmp_path: Path, small_network: Maker) -> None:
    first = small_network()
    torch.save({"state_dict": first.network.state_dict()}, tmp_path / "volume.pt")
    torch.manual_seed(5)
    second = StemTailNetwork(backbone="tf_efficientnet_b0", weights=str(tmp_path / "volume.pt"))
    assert second.weights_origin.note == ""
    torch.testing.assert_close(second.network.state_dict(), first.network.state_dict())


def test_auto_weights_fall_back_and_say_so(small_network: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("idh_lightning.hub.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", unreachable_cache)
    origin = small_network(weights="auto").weights_origin
    assert (origin.source, origin.pretrained) == ("none", False)
    assert "cannot be had (no answer from the hub: its address is not found)" in origin.note
    with pytest.raises(ModelError, match="cannot be had"):
        small_network(weights="tf_efficientnet_b0.ns_jft_in1k")


def unreachable_cache(*_: object, **__: object) -> None:
    return None


def test_unknown_names_are_refused_with_the_choices(small_network: Maker) -> None:
    with pytest.raises(ModelError, match=r"trainable_from: found 'blocks\.9'.*expected one of conv_stem"):
        small_network(trainable_from="blocks.9")
    with pytest.raises(ModelError, match="expected an EfficientNet"):
        small_network(backbone="resnet18")
    with pytest.raises(ModelError, match="neither a file nor a timm model"):
        small_network(weights="nowhere.pt")


def test_weights_that_are_not_weights_are_refused(tmp_path: Path, small_network: Maker) -> None:
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ModelError, match=r"text\.pt: cannot be read"):
        small_network(weights=str(tmp_path / "text.pt"))
    torch.save(timm.create_model("tf_efficientnet_b1").state_dict(), tmp_path / "b1.pt")
    with pytest.raises(ModelError, match="has shape"):
        small_network(backbone="tf_efficientnet_b2", weights=str(tmp_path / "b1.pt"))


@pytest.mark.parametrize("cut", ["conv_stem", "blocks.5", "classifier"])
def test_a_network_told_of_missing_sequences_starts_like_one_that_is_not(small_network: Maker, cut: str) -> None:
    x = volumes()
    x[0, 2] = 0
    plain = small_network(trainable_from=cut).eval()
    told = small_network(trainable_from=cut, missing="zero").eval()
    torch.testing.assert_close(told(x), plain(x))


def test_the_tail_learns_what_a_missing_sequence_means_and_a_complete_study_is_not_touched(
    small_network: Maker,
) -> None:
    network = small_network(missing="zero").eval()
    calibrate_batch_norm(network, [volumes(4)])
    assert network.missing_sequence_embedding is not None
    x = volumes()
    x[0, 2] = 0
    before = network(x)
    nn.functional.cross_entropy(before, torch.tensor([0, 1])).backward()
    reached = network.missing_sequence_embedding.weight.grad
    assert reached is not None
    assert [bool(column.any()) for column in reached.T] == [False, False, True, False]
    with torch.no_grad():
        network.missing_sequence_embedding.weight[:, 2] = 5.0
    after = network(x)
    torch.testing.assert_close(after[1], before[1])
    assert not torch.allclose(after[0], before[0])


@pytest.mark.parametrize("edge", [64, 65])
@pytest.mark.parametrize(("layer", "cell"), [("conv_stem", 15), ("blocks.1", 7), ("blocks.2", 3)])
def test_a_cell_lies_in_the_middle_of_the_voxels_that_it_sees(
    small_network: Maker, edge: int, layer: str, cell: int
) -> None:
    network = small_network(stem_precision="float32", trainable_from="conv_stem").eval()
    for module in network.network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    x = volumes(1, edge=edge).requires_grad_(True)
    seen: list[torch.Tensor] = []
    network.network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output))
    network(x)
    (gradient,) = torch.autograd.grad(seen[0][0, 0, cell, cell, cell], x)
    reached = gradient[0].abs().sum(dim=(0, 2, 3)).nonzero().flatten()
    offset, step = network.sampling(layer, edge)
    assert (reached[0] + reached[-1]) / 2 == offset + cell * step


def test_an_odd_grid_keeps_the_centre_at_every_layer(small_network: Maker) -> None:
    network = small_network()
    for layer, cells in (("conv_stem", 33), ("blocks.1", 17), ("blocks.2", 9), ("blocks.4", 5), ("conv_head", 3)):
        offset, step = network.sampling(layer, 65)
        assert offset + (cells - 1) / 2 * step == 32
        assert step == 64 / (cells - 1)
    assert network.sampling("conv_head", 64) == (31.0, 32.0)


@pytest.mark.parametrize("locator", [None, "pretrained"])
def test_studies_side_by_side_give_what_they_give_one_by_one(small_network: Maker, locator: str | None) -> None:
    network, x = small_network(locator=locator).eval(), volumes(edge=33)
    alone = network.stem(x)
    torch.set_num_threads(2)
    try:
        # The means of the locator's normalisation are added up in another order by two threads.
        torch.testing.assert_close(network.stem(x), alone, rtol=0, atol=0 if locator is None else 1e-4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
