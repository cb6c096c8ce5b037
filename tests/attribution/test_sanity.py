from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_locator import threshold_locator
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from idh_lightning.attribution import Evidence, GradCAM
from idh_lightning.attribution.sanity import BOUNDS, between, cascade, modules_downwards, sanity_table, shifts
from idh_lightning.errors import ExplanationError, ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm

Maker = Callable[..., StemTailNetwork]
EDGE = 33


def volumes(batch: int = 2, seed: int = 1) -> Tensor:
    """Return noise in a brain that keeps four voxels from the edge."""
    noise = torch.randn(batch, 4, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(seed))
    return noise * functional.pad(torch.ones(EDGE - 8, EDGE - 8, EDGE - 8), [4] * 6)


@dataclass
class BrainMask:
    """Marks the brain, whatever the network."""

    name: str = "brain mask"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        return (volumes != 0).any(1).float()


@dataclass
class Brightness:
    """Marks what is bright, whatever the network."""

    name: str = "brightness"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        return volumes.mean(1).sigmoid()


@dataclass
class Weights:
    """Filters the volumes with weights of one module; keeps the networks' BatchNorm statistics as it saw them."""

    module: str = "classifier"
    name: str = "weights"
    statistics: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        self.statistics.append(
            {
                name: module.running_mean.clone()
                for name, module in network.network.named_modules()
                if isinstance(module, _BatchNorm) and module.running_mean is not None
            }
        )
        weight = next(network.network.get_submodule(self.module).parameters()).detach().flatten()[: 4 * 27]
        return functional.conv3d(volumes, weight.view(1, 4, 3, 3, 3) / weight.std(), padding=1)[:, 0].sigmoid()


@dataclass
class Fixed:
    """Marks one corner of the grid, whatever is there."""

    name: str = "fixed"

    def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
        ramp = torch.linspace(0, 1, EDGE) ** 2
        noise = torch.rand(EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
        return (ramp * noise).expand(len(volumes), -1, -1, -1)


@pytest.fixture
def network(small_network: Maker) -> StemTailNetwork:
    made = small_network(locator=threshold_locator(0.0))
    calibrate_batch_norm(made, [volumes(4)])
    return made.eval()


def passed(method: str, check: str, frame: pd.DataFrame) -> bool:
    return bool(sanity_table({method: {check: frame}})["passed"].item())


def test_the_cascade_goes_from_the_classifier_through_tail_and_locator_to_the_input(small_network: Maker) -> None:
    head, stem = ["classifier", "bn2", "conv_head", "blocks.6"], ["blocks.1", "blocks.0", "bn1", "conv_stem"]
    middle = ["blocks.4", "blocks.3", "blocks.2"]
    made = small_network(locator=threshold_locator(0.0), missing="zero")
    assert list(modules_downwards(made)) == [
        "radiomics",
        *head,
        "blocks.5",
        "locator",
        "missing_sequence_embedding",
        *middle,
        *stem,
    ]
    cut_in_a_stage = small_network(trainable_from="blocks.6.0", locator=threshold_locator(0.0))
    assert list(modules_downwards(cut_in_a_stage)) == ["radiomics", *head, "locator", "blocks.5", *middle, *stem]
    assert modules_downwards(cut_in_a_stage)["blocks.6"] == "tail"
    assert modules_downwards(cut_in_a_stage)["blocks.5"] == "stem"
    whole = modules_downwards(small_network(trainable_from="conv_stem"))
    assert whole == dict.fromkeys([*head, "blocks.5", *middle, *stem], "tail")


def test_the_brain_mask_fails_since_it_does_not_change(network: StemTailNetwork) -> None:
    frame = cascade([BrainMask()], network, volumes())
    assert (frame["spearman"] > 0.999).all()
    assert (frame["ssim"] > 0.999).all()
    assert not passed("brain mask", "randomised", frame)


class Walk(NamedTuple):
    method: Weights
    network: StemTailNetwork
    before: dict[str, Tensor]
    frame: pd.DataFrame


@pytest.fixture(scope="module")
def walk() -> Walk:
    """A cascade of a method that depends on the weights of one module, over a network in training mode."""
    torch.manual_seed(0)
    network = StemTailNetwork(backbone="tf_efficientnet_b0", weights="none", locator=threshold_locator(0.0))
    calibrate_batch_norm(network, [volumes(4)])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = Weights("blocks.5")
    return Walk(method, network, before, cascade([method], network, volumes()))


def test_a_method_that_depends_on_weights_changes_when_they_do_and_passes(walk: Walk) -> None:
    modules = list(modules_downwards(walk.network))
    assert list(walk.frame["module"].unique()) == modules
    assert list(walk.frame["study"]) == [0, 1] * len(modules)
    mean = walk.frame.groupby("module", sort=False)["spearman"].mean()
    assert (mean[: modules.index("blocks.5")] > 0.999).all()
    assert (mean[modules.index("blocks.5") :].abs() < BOUNDS["randomised"][1]).all()
    assert passed("weights", "randomised", walk.frame)


def test_the_network_itself_stays_as_it_was(walk: Walk) -> None:
    assert walk.network.training
    assert all(torch.equal(value, walk.before[name]) for name, value in walk.network.state_dict().items())


def test_statistics_are_new_where_weights_are_random_and_only_there(walk: Walk) -> None:
    trained, *randomised = walk.method.statistics
    modules = list(modules_downwards(walk.network))
    for step, statistics in enumerate(randomised):
        touched = tuple(f"{name}." for name in modules[: step + 1])
        for name, mean in statistics.items():
            assert torch.equal(mean, trained[name]) != f"{name}.".startswith(touched), (modules[step], name)


@pytest.mark.slow
def test_a_wholly_random_network_still_passes_a_signal_on(network: StemTailNetwork) -> None:
    @dataclass
    class Signal:
        """Marks what is bright; keeps how much the features that enter the tail vary."""

        name: str = "signal"
        spreads: list[float] = field(default_factory=list)

        def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
            with torch.no_grad():
                self.spreads.append(float(network.entry(network.stem(volumes))[0].std()))
            return volumes.mean(1).sigmoid()

    method = Signal()
    frame = cascade([method], network, volumes())
    assert min(method.spreads) > method.spreads[0] / 10
    assert not passed("signal", "randomised", frame)


def test_maps_that_move_with_the_volume_pass_and_a_fixed_map_fails(network: StemTailNetwork) -> None:
    moving = shifts(Weights(), network, volumes())
    assert len(moving) == 2 * 2 * 3 * 2
    assert set(moving["shift"]) == {f"{axis}{step}" for axis in "DHW" for step in ("+1", "-1", "+2", "-2")}
    assert moving["spearman"].min() > 0.999
    assert moving["ssim"].min() > 0.99
    assert passed("weights", "shifted", moving)
    fixed = shifts(Fixed(), network, volumes(), voxels=[2])
    assert not passed("fixed", "shifted", fixed)


def test_what_leaves_the_field_of_view_is_not_compared(network: StemTailNetwork) -> None:
    to_the_edge = torch.randn(2, 4, EDGE, EDGE, EDGE)
    assert shifts(Brightness(), network, to_the_edge)["spearman"].min() > 0.999


def test_a_network_agrees_with_itself_and_not_with_another_seed(small_network: Maker) -> None:
    first, second = small_network(), small_network()
    torch.manual_seed(1)
    third = StemTailNetwork(backbone="tf_efficientnet_b0", weights="none")
    frame = between(Weights(), {"a": first, "b": second, "c": third}, volumes())
    mean = frame.groupby("pair")["spearman"].mean()
    assert list(mean.index) == ["a, b", "a, c", "b, c"]
    assert mean["a, b"] > 0.999
    assert abs(mean["a, c"]) < 0.3
    assert passed("weights", "permuted labels", frame[frame["pair"] == "a, c"])
    assert not passed("weights", "permuted labels", frame[frame["pair"] == "a, b"])


def test_correlation_and_similarity_are_those_of_the_brain_alone(network: StemTailNetwork) -> None:
    class Halves:
        name = "halves"

        def __call__(self, network: StemTailNetwork, volumes: Tensor) -> Tensor:
            inside = volumes[:, 0] != 0
            outside = torch.rand(inside.shape, generator=torch.Generator().manual_seed(id(network) % 1000))
            return torch.where(inside, volumes[:, 0].exp(), 100 * outside)

    frame = between(Halves(), {"a": network, "b": StemTailNetwork(backbone="tf_efficientnet_b0")}, volumes())
    assert frame["spearman"].min() > 0.999
    assert frame["ssim"].min() > 0.999


def test_the_table_holds_means_over_studies_with_intervals_and_whether_they_keep_to_the_bound() -> None:
    spearman = [0.1, 0.2, 0.35, 0.1, 0.0]
    randomised = pd.DataFrame(
        {
            "part": ["tail"] * 10 + ["stem"] * 5,
            "module": ["classifier"] * 5 + ["blocks.5"] * 5 + ["conv_stem"] * 5,
            "study": [*range(5)] * 3,
            "spearman": [1.0] * 5 + [0.95] * 5 + spearman,
        }
    )
    shifted = pd.DataFrame({"shift": ["D+1", "D-1"] * 2, "study": [0, 0, 1, 1], "spearman": [0.2, 0.4, 0.3, 0.3]})
    alike = shifted.assign(spearman=0.9)
    rows = sanity_table(
        {
            "first": {"randomised": randomised, "randomised tail": randomised, "shifted": shifted},
            "second": {"other seed": alike},
        }
    )
    assert list(rows.columns) == ["method", "check", "value", "low", "high", "n", "bound", "passed"]
    assert rows["value"].tolist() == pytest.approx([np.mean(spearman), 0.95, 0.3, 0.9])
    assert rows["n"].tolist() == [5, 5, 2, 2]
    assert rows["passed"].tolist() == [True, False, False, True]
    assert rows["bound"].tolist() == ["< 0.3", "< 0.9", "> 0.7", "> 0.3"]
    assert rows["low"][0] < np.mean(spearman) < rows["high"][0]
    assert rows[["low", "high"]][1:].isna().all(axis=None)
    other_seed = randomised.assign(spearman=randomised["spearman"] + 0.1)
    both = sanity_table({"first": {"randomised": pd.concat([randomised, other_seed])}})
    assert both["value"].item() == pytest.approx(np.mean(spearman) + 0.05)
    assert both["n"].item() == 5


@pytest.mark.parametrize("method", [Evidence(), GradCAM()])
def test_real_methods_go_through_the_checks(network: StemTailNetwork, method: Evidence | GradCAM) -> None:
    shifted = shifts(method, network, volumes(), voxels=[1])
    again = between(method, {"a": network, "b": copy.deepcopy(network)}, volumes())
    rows = sanity_table({method.name: {"shifted": shifted, "other seed": again}}).set_index("check")
    assert -1 < rows["value"]["shifted"] < 1
    assert rows["value"]["other seed"] == pytest.approx(1)


def test_what_cannot_be_checked_is_refused(network: StemTailNetwork) -> None:
    with pytest.raises(ModelError, match=r"found a batch of 1 training volume"):
        cascade([Brightness()], network, volumes(1))
    with pytest.raises(ExplanationError, match=r"networks: found 1; expected at least two"):
        between(Brightness(), {"a": network}, volumes())
    with pytest.raises(ExplanationError, match=r"volumes \[0, 1\] of the batch: found zeros throughout"):
        shifts(Brightness(), network, torch.zeros(2, 4, EDGE, EDGE, EDGE))
    with pytest.raises(ExplanationError, match=r"check: found 'seed'; expected one of randomised, randomised tail, sh"):
        sanity_table({"a": {"seed": pd.DataFrame()}})
