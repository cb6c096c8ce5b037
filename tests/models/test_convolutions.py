from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm_3d.layers.conv2d_same import Conv3dSame
from torch import nn

from idh_lightning.models.fast import convolutions
from idh_lightning.models.fast.convolutions import (
    DepthwiseConv3d,
    OneDNNConv3d,
    PointwiseConv3d,
    SameConv3d,
    _convolved,
    _Depthwise,
    correct_padding,
    restore_convolutions,
    swap_convolutions,
    zeros_around,
)
from idh_lightning.models.memory import kept_for_backward


def depthwise(channels: int = 3, edge: int = 3, kind: type[nn.Conv3d] = nn.Conv3d, **settings: object) -> nn.Conv3d:
    defaults: dict[str, object] = {"padding": edge // 2, "groups": channels, "bias": False}
    return kind(channels, channels, edge, **(defaults | settings))  # type: ignore[arg-type]


def agrees(stock: nn.Conv3d, ours: nn.Conv3d, x: torch.Tensor) -> None:
    expected, found = stock(x), ours(x)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, ours.weight), gradient),
        torch.autograd.grad(expected, (x, stock.weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 4),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    edge=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    kind=st.sampled_from([nn.Conv3d, SameConv3d]),
)
def test_output_and_both_gradients_are_those_of_torch(
    batch: int,
    channels: int,
    shape: tuple[int, int, int],
    edge: int,
    stride: int,
    kind: type[nn.Conv3d],
) -> None:
    stock = depthwise(channels, edge, kind, stride=stride).double()
    x = torch.randn(batch, channels, *shape, dtype=torch.double, requires_grad=True)
    ours = DepthwiseConv3d.of(stock)
    agrees(stock, ours, x)
    pads = zeros_around(ours, x.shape, same=ours.same)
    torch.testing.assert_close(_convolved(ours, x, pads), stock(x))  # as for many cells on a GPU


def padded_by_tensorflow(axis: torch.Tensor, edge: int, stride: int) -> torch.Tensor:
    """Return the last axis with the zeros of TensorFlow's "SAME", written down from its documentation."""
    size = axis.shape[-1]
    total = max(edge - (stride if size % stride == 0 else size % stride), 0)
    return nn.functional.pad(axis, (total // 2, total - total // 2))


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    edge=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 4]),
)
def test_every_axis_is_padded_as_its_own_length_needs(
    shape: tuple[int, int, int], edge: int, stride: int, groups: int
) -> None:
    network = nn.Sequential(Conv3dSame(4, 4, edge, stride, groups=groups))
    correct_padding(network)
    x = torch.randn(2, 4, *shape)
    padded = x
    for axis in (2, 3, 4):
        padded = padded_by_tensorflow(padded.movedim(axis, -1), edge, stride).movedim(-1, axis)
    expected = nn.functional.conv3d(padded, network[0].weight, network[0].bias, stride, groups=groups)
    assert list(expected.shape[2:]) == [-(-size // stride) for size in shape]
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("most_cells", [0, 10**9])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_way_to_the_gradients_gives_the_same(
    device: str, most_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "FEW_CELLS", most_cells)
    layout = convolutions.layout(device)
    monkeypatch.setattr(convolutions, "layout", lambda _: layout)
    stock = depthwise(3, 5, stride=2).double()
    x = torch.randn(2, 3, 6, 3, 4, dtype=torch.double, requires_grad=True)
    agrees(stock, DepthwiseConv3d.of(stock), x)


@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_is_that_of_torch(bias: bool) -> None:
    stock = nn.Conv3d(3, 5, 1, bias=bias).double()
    x = torch.randn(2, 3, 4, 3, 2, dtype=torch.double, requires_grad=True)
    agrees(stock, PointwiseConv3d.of(stock), x)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_agree_with_finite_differences(stride: int) -> None:
    weight = torch.randn(2, 1, 3, 3, 3, dtype=torch.double, requires_grad=True)
    x = torch.randn(2, 2, 3, 2, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_Depthwise.apply, (x, weight, (stride,) * 3, [1, 1, 1, 1, 1, 1]))


@pytest.mark.parametrize("stock", [depthwise(4), nn.Conv3d(4, 64, 1)])
def test_only_the_input_is_kept_for_the_backward_pass(stock: nn.Conv3d) -> None:
    network = nn.Sequential(stock)
    swap_convolutions(network)
    x = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), kept_for_backward(network.parameters()) as kept:
        result = network(x)
    assert result.dtype == torch.bfloat16
    assert sum(kept.values()) == x.numel() * 2


def test_the_weight_is_shared_and_keeps_its_name() -> None:
    stock = nn.Sequential(depthwise(), nn.Conv3d(3, 5, 1), nn.Conv3d(5, 2, 3))
    weights, names = list(stock.parameters()), stock.state_dict().keys()
    swap_convolutions(stock)
    assert [type(layer) for layer in stock] == [DepthwiseConv3d, PointwiseConv3d, nn.Conv3d]
    assert all(one is other for one, other in zip(stock.parameters(), weights, strict=True))
    assert stock.state_dict().keys() == names
    restore_convolutions(stock)
    assert [type(layer) for layer in stock] == [nn.Conv3d] * 3
    assert all(one is other for one, other in zip(stock.parameters(), weights, strict=True))


def test_the_stock_convolutions_come_back_as_they_were() -> None:
    stock = nn.Sequential(depthwise(4, 5, SameConv3d, stride=2, padding=0), nn.Conv3d(4, 2, 1, bias=False))
    x = torch.randn(1, 4, 7, 7, 7)
    expected, told = stock(x), repr(stock)
    swap_convolutions(stock)
    assert repr(stock) != told
    restore_convolutions(stock)
    assert repr(stock) == told
    assert torch.equal(stock(x), expected)


@pytest.mark.parametrize("stock", [depthwise(), nn.Conv3d(3, 5, 1, bias=False)], ids=["depthwise", "pointwise"])
def test_under_autocast_it_computes_in_bfloat16(stock: nn.Conv3d) -> None:
    ours = nn.Sequential(stock)
    swap_convolutions(ours)
    x = torch.randn(1, 3, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(x), stock(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", [DepthwiseConv3d, PointwiseConv3d])
@pytest.mark.parametrize(
    "other",
    [
        nn.Conv3d(4, 4, 3, padding=1, bias=False),
        nn.Conv3d(4, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv3d(4, 4, 1, stride=2, bias=False),
        depthwise(dilation=2),
        depthwise(bias=True),
        depthwise(padding_mode="reflect"),
        nn.Linear(3, 3),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(other: nn.Module, kind: type[DepthwiseConv3d | PointwiseConv3d]) -> None:
    assert not kind.fits(other)
    with pytest.raises(ValueError, match="cannot stand for it"):
        kind.of(other)


@pytest.mark.skipif(not convolutions.has_onednn(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 1, "bias": False}])
def test_one_study_is_convolved_as_in_a_batch_and_by_onednn(settings: dict[str, int]) -> None:
    ours = OneDNNConv3d(4, 6, 3, **settings)
    x = torch.randn(3, 4, 9, 7, 8)
    expected = nn.functional.conv3d(x, ours.weight, ours.bias, ours.stride, ours.padding)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            alone = [ours(one[None]) for one in x]
        ran = {event.key for event in profile.key_averages()}
        assert "mkldnn::_convolution_pointwise" in ran
        assert "aten::slow_conv3d_forward" not in ran
        assert torch.equal(torch.cat(alone), ours(x))
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(ours(x), ours.weight, gradient)
    torch.testing.assert_close(found, torch.autograd.grad(expected, ours.weight, gradient))
    with torch.no_grad():
        for strict in (False, True):
            exported = torch.export.export(nn.Sequential(ours).eval(), (x,), strict=strict)
            assert "mkldnn" not in exported.graph_module.code


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"padding": 1}, torch.double),
        ({"padding": 1, "padding_mode": "circular"}, torch.float),
        ({"padding": "same"}, torch.float),
    ],
)
def test_what_onednn_is_not_asked_for_is_computed_by_torch(settings: dict[str, object], dtype: torch.dtype) -> None:
    ours, stock = (kind(4, 6, 3, **settings).to(dtype) for kind in (OneDNNConv3d, nn.Conv3d))  # type: ignore[arg-type]
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(1, 4, 9, 7, 8, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x))
        torch.testing.assert_close(ours(x[0]), stock(x[0]))
