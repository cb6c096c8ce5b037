from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
import yaml
from conftest import FakeStore, studies_of
from hydra import compose, initialize_config_dir
from torch import nn

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.data import FeatureBankDataModule, IDHDataModule
from idh_lightning.errors import MemoryShortageError
from idh_lightning.models import StemTailNetwork, TrainingMemory, segmentation_memory, training_memory
from idh_lightning.models.fast.precision import precision_on_cpu
from idh_lightning.models.memory import kept_for_backward
from idh_lightning.models.segmentation import TumourSegmenter
from idh_lightning.module import IDHClassifier
from idh_lightning.runs import memory as memory_plan
from idh_lightning.runs.memory import MemoryPlanner, Plan, is_shortage
from idh_lightning.runs.rehearsal import check

Maker = Callable[..., StemTailNetwork]
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def volumes(batch: int = 2, edge: int = 33) -> torch.Tensor:
    return torch.randn(batch, 4, edge, edge, edge, generator=torch.Generator().manual_seed(1))


def one_step(network: StemTailNetwork) -> dict[str, torch.Tensor]:
    """Return the gradients of one step whose random numbers are fixed."""
    torch.manual_seed(5)
    nn.functional.cross_entropy(network(volumes()), torch.tensor([0, 1])).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cut", ["blocks.5", "blocks.6.0", "conv_stem"])
def test_a_checkpointed_tail_has_the_same_gradients_and_the_same_batch_norm_statistics(
    small_network: Maker, cut: str
) -> None:
    plain = small_network(trainable_from=cut, tail_precision="float32").train()
    checkpointed = small_network(trainable_from=cut, tail_precision="float32", checkpoint_tail=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    expected, found = one_step(plain), one_step(checkpointed)
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(checkpointed.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_a_checkpointed_tail_keeps_less_than_half_for_the_backward_pass(small_network: Maker) -> None:
    kept = {}
    for checkpointed in (False, True):
        network = small_network(checkpoint_tail=checkpointed).train()
        features = network.stem(volumes())
        with kept_for_backward(network.parameters()) as found:
            network.tail(features)
        kept[checkpointed] = sum(found.values())
    assert 0 < kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"checkpoint_tail": True},
        pytest.param({"trainable_from": "conv_stem"}, marks=pytest.mark.slow),
        {"locator": "pretrained"},
    ],
)
def test_activations_are_counted_without_taking_them(small_network: Maker, settings: dict[str, Any]) -> None:
    network = small_network(**settings).train()
    told = training_memory(network, [2, 4, 33, 33, 33], ADAMW)
    features = network.stem(volumes())
    with kept_for_backward([*network.parameters()]) as kept:
        network.answer(features)
    # what the loss keeps beside, two logits a study and a scalar, is not in the second number; and a tensor without
    # memory says that in bfloat16 BatchNorm keeps mean and deviation in bfloat16, where they are float32
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    halved = precision_on_cpu() == "bfloat16" and not settings.get("checkpoint_tail")
    untold = sum(2 * 2 * norm.num_features for norm in norms) if halved else 0
    assert told.activations == pytest.approx(sum(kept.values()) - untold, rel=0.001)
    trainable = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    assert told.gradients == trainable
    assert told.parameters == sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
    assert told.optimizer == pytest.approx(2 * trainable, rel=0.01)
    assert told.peak >= told.parameters + told.gradients + told.optimizer + told.activations


def test_of_a_stem_that_is_fused_no_more_is_counted_than_it_takes(small_network: Maker) -> None:
    network = small_network().train()
    told = training_memory(network, [2, 4, 65, 65, 65], ADAMW)
    network.fuse_stem = False
    assert told.stem < 0.8 * training_memory(network, [2, 4, 65, 65, 65], ADAMW).stem


def test_counting_leaves_the_network_and_the_random_numbers_as_they_were(small_network: Maker) -> None:
    network = small_network(checkpoint_tail=True).train()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    training_memory(network, [2, 4, 33, 33, 33], ADAMW)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_is_alive_at_once_is_what_a_loop_over_layers_says() -> None:
    from idh_lightning.models.memory import _Alive

    with _Alive() as alive:
        first = torch.zeros(1000)  # 4000 bytes
        second = first + 1  # 8000
        view = second[:10]
        del first  # 4000
        third = torch.zeros(250)  # 5000
        del second
        assert alive.now == 5000  # the view holds it
        del view, third
    assert (alive.now, alive.peak) == (0, 8000)


def test_factored_state_is_a_tenth_of_that_of_adamw(small_network: Maker) -> None:
    settings = yaml.safe_load((CONF_DIR / "optimizer" / "adafactor.yaml").read_text())["optimizer"]
    assert settings["_target_"] == "timm.optim.Adafactor"
    network = small_network().train()
    state = {}
    for name, optimizer in (("adamw", ADAMW), ("adafactor", partial(timm.optim.Adafactor, lr=1e-3))):
        made = optimizer([p for p in network.parameters() if p.requires_grad])
        nn.functional.cross_entropy(network(volumes()), torch.tensor([0, 1])).backward()
        made.step()
        tensors = [t for entry in made.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
        state[name] = sum(t.nbytes for t in tensors)
    assert state["adafactor"] < 0.1 * state["adamw"]  # of B7, whose depthwise kernels are a smaller part, less


@pytest.fixture
def data(fake_store: FakeStore) -> IDHDataModule:
    return data_of(fake_store)


def data_of(fake_store: FakeStore, *, edge: int = 33, folder: Path | None = None, **settings: Any) -> IDHDataModule:
    studies = {"train": studies_of([0, 1], "t"), "validation": studies_of([0, 1], "v"), "test": studies_of([0, 1], "x")}
    fake_store.put(studies["train"][0], np.zeros((4, edge, edge, edge)))
    kind: Any = IDHDataModule if folder is None else partial(FeatureBankDataModule, folder=folder)
    made: IDHDataModule = kind(
        studies=studies, store=fake_store, augmentation=None, seed=0, **({"batch_size": 8, "workers": 0} | settings)
    )
    return made


def model_of(network: StemTailNetwork) -> IDHClassifier:
    settings = {"_target_": "idh_lightning.models.StemTailNetwork", "backbone": "tf_efficientnet_b0"}
    return IDHClassifier(
        network=network.train(), objective=nn.CrossEntropyLoss(), optimizer=ADAMW, recipe={"model": settings}
    )


PLACE: dict[str, Any] = {"accumulate": 2, "on_gpu": False}


def test_a_run_that_fits_is_let_through_and_its_need_recorded(small_network: Maker, data: IDHDataModule) -> None:
    record = MemoryPlanner(model_of(small_network()), data, **PLACE).require()
    assert 0 < record["needed"] < record["free"]


@pytest.mark.slow
def test_each_lighter_plan_keeps_less_for_the_backward_pass_and_the_last_one_needs_the_least(
    small_network: Maker, data: IDHDataModule
) -> None:
    model = model_of(small_network())
    planner = MemoryPlanner(model, data, **PLACE)
    asked, plans = planner.asked(), list(planner.lighter())
    assert [plan.overrides for plan in plans] == [
        "model.checkpoint_tail=true",
        "model.checkpoint_tail=true data.batches.batch_size=4 data.accumulate=4",
        "model.checkpoint_tail=true data.batches.batch_size=2 data.accumulate=8",
        "experiment=low_memory model.trainable_from=blocks.5",  # B0 has no blocks.6.2
    ]
    kept = [asked.tensors.activations, *(plan.tensors.activations for plan in plans)]
    assert kept[:4] == sorted(set(kept[:4]), reverse=True)
    assert plans[-1].needed < min(plan.needed for plan in (asked, *plans[:-1]))
    assert not model.network.checkpoint_tail


def test_the_least_demanding_experiment_composes_and_its_optimizer_goes_with_the_schedule(small_network: Maker) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", ["experiment=low_memory", "name=least", "paths.run=unused"])
    check(config)
    assert config.model.checkpoint_tail
    assert config.data.batches._target_.endswith("FeatureBankDataModule")
    parameters = [p for p in small_network().parameters() if p.requires_grad]
    optimizer = instantiate_section(config.optimizer, _partial_=True)(parameters)
    assert isinstance(optimizer, timm.optim.Adafactor)
    instantiate_section(config.scheduler, _partial_=True)(optimizer, total_steps=10).step()


def plan(overrides: str, gigabytes: float) -> Plan:
    tensors = TrainingMemory(
        parameters=0, gradients=0, optimizer=0, activations=0, stem=0, step=int(gigabytes * 1e9), fills_first=True
    )
    return Plan(overrides=overrides, tensors=tensors, waiting=0, on_gpu=False)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say what plans need instead of counting it."""
    monkeypatch.setattr(MemoryPlanner, "asked", lambda *_, **__: plan("", 10))
    lighter = [plan("model.checkpoint_tail=true", 6), plan("data.batches.batch_size=2", 4), plan("experiment=least", 1)]
    monkeypatch.setattr(MemoryPlanner, "lighter", lambda *_, **__: iter(lighter))


@pytest.mark.parametrize(
    ("free", "advice"),
    [
        (9.9, r"Add model\.checkpoint_tail=true, which needs 6\.0 GB"),
        (5, r"Add data\.batches\.batch_size=2, which needs 4\.0 GB"),
        (1, "Add experiment=least, which needs 1.0 GB"),
        (0.9, r"Even experiment=least, which needs the least, takes 1\.0 GB.*smaller data\.grid"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_the_override_that_does(
    counted: None, monkeypatch: pytest.MonkeyPatch, free: float, advice: str
) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *, on_gpu: free * 1e9)
    with pytest.raises(MemoryShortageError, match=rf"training needs 10\.0 GB and .* are free in main memory.*{advice}"):
        MemoryPlanner(None, None, **PLACE).require()  # type: ignore[arg-type]


def test_a_run_that_just_fits_is_let_through(counted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *, on_gpu: 10e9)
    assert MemoryPlanner(None, None, **PLACE).require() == {"needed": 10.0, "free": 10.0}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        MemoryError(),
    ],
)
def test_running_out_of_memory_ends_with_advice_that_needs_half_as_much(counted: None, error: Exception) -> None:
    with (
        pytest.raises(MemoryShortageError, match=r"^memory ran out \(.*\)\. Add data\.batches\.batch_size=2") as caught,
        MemoryPlanner(None, None, **PLACE).advise_on_shortage(),  # type: ignore[arg-type]
    ):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_what_torch_raises_when_a_cpu_has_no_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_shortage(caught.value)


def test_another_error_passes_through(counted: None) -> None:
    with pytest.raises(RuntimeError, match="a defect"), MemoryPlanner(None, None, **PLACE).advise_on_shortage():  # type: ignore[arg-type]
        raise RuntimeError("a defect")


def test_on_a_bank_the_volumes_are_not_there_while_the_tail_learns(
    small_network: Maker, fake_store: FakeStore, tmp_path: Path
) -> None:
    model = model_of(small_network())
    on_the_fly = MemoryPlanner(model, data_of(fake_store), **PLACE).asked()
    bank = MemoryPlanner(model, data_of(fake_store, folder=tmp_path), **PLACE).asked()
    assert bank.needed < on_the_fly.needed
    assert bank.tensors.activations == on_the_fly.tensors.activations


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    for name, text in (("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "anon 5\ninactive_file 200")):
        (tmp_path / name).write_text(text)
    assert memory_plan._left_to_group(tmp_path) == [500]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_plan._left_to_group(tmp_path) == []
    assert memory_plan._left_to_group(tmp_path / "nowhere") == []


def test_free_memory_of_a_gpu_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3_000, 8_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 500)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.25, raising=False)
    assert memory_plan.free_bytes(on_gpu=True) == 1_500


@pytest.mark.slow
def test_the_default_run_is_not_refused_with_four_gigabytes(
    fake_store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", ["model.weights=none"])
    network = instantiate_section(config.model, _partial_=True)()
    edge = max(config.data.grid)  # the cube, which needs more
    data = data_of(fake_store, edge=edge, folder=tmp_path, batch_size=int(config.data.batches.batch_size))
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *, on_gpu: 4e9)
    assert MemoryPlanner(model_of(network), data, **PLACE).require()["needed"] < 4


def test_memory_of_the_locators_training_is_what_its_tensors_take_and_grows_with_the_batch() -> None:
    segmenter = TumourSegmenter(widths=(8, 16))
    counted = segmentation_memory(segmenter, [2, 4, 32, 32, 32])
    with kept_for_backward() as kept:
        loss = torch.softmax(segmenter.requires_grad_(True)(torch.randn(2, 4, 32, 32, 32)), dim=1).square().mean()
    assert loss.requires_grad
    weights = sum(4 * one.numel() for one in segmenter.parameters())
    assert sum(kept.values()) + 3 * weights < counted < 3 * (sum(kept.values()) + 4 * weights)
    doubled = segmentation_memory(segmenter, [4, 4, 32, 32, 32])
    assert 1.8 < (doubled - 4 * weights) / (counted - 4 * weights) < 2.2
