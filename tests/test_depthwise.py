from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idh_lightning.models.depthwise import DepthwiseConv3d, _Depthwise


def depthwise(channels: int = 3, edge: int = 3, **settings: object) -> nn.Conv3d:
    defaults: dict[str, object] = {"padding": edge // 2, "groups": channels, "bias": False}
    return nn.Conv3d(channels, channels, edge, **(defaults | settings))  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    edge=st.sampled_from([1, 3, 5]),
)
def test_output_and_both_gradients_are_those_of_torch(
    batch: int, channels: int, shape: tuple[int, int, int], edge: int
) -> None:
    stock = depthwise(channels, edge).double()
    ours = DepthwiseConv3d.of(stock)
    x = torch.randn(batch, channels, *shape, dtype=torch.double, requires_grad=True)
    expected, found = stock(x), ours(x)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, ours.weight), gradient),
        torch.autograd.grad(expected, (x, stock.weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_agree_with_finite_differences() -> None:
    ours = DepthwiseConv3d.of(depthwise(2).double())
    x = torch.randn(2, 2, 3, 2, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_Depthwise.apply, (x, ours.weight))


def test_the_weight_is_shared_and_keeps_its_name() -> None:
    stock = depthwise()
    ours = DepthwiseConv3d.of(stock)
    assert ours.weight is stock.weight
    assert ours.state_dict().keys() == stock.state_dict().keys()


def test_under_autocast_it_computes_what_torch_computes() -> None:
    stock = depthwise()
    x = torch.randn(1, 3, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = DepthwiseConv3d.of(stock)(x), stock(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv3d(4, 4, 3, padding=1, bias=False),
        nn.Conv3d(4, 8, 3, padding=1, groups=4, bias=False),
        depthwise(stride=2),
        depthwise(dilation=2),
        depthwise(bias=True),
        depthwise(padding=0),
        depthwise(padding_mode="reflect"),
        nn.Conv3d(3, 3, 2, groups=3, bias=False),
        nn.Linear(3, 3),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(other: nn.Module) -> None:
    assert not DepthwiseConv3d.fits(other)
    with pytest.raises(ValueError, match="expected a depthwise convolution"):
        DepthwiseConv3d.of(other)  # type: ignore[arg-type]
