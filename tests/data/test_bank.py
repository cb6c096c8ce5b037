from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from conftest import FakeStore, studies_of
from torch import nn

from idh_lightning.data import Batch, FeatureBankDataModule, FeatureBatch, IDHDataModule
from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.module import IDHClassifier
from idh_lightning.volumes.augmentation import Augmentation

Maker = Callable[..., StemTailNetwork]


@pytest.fixture
def studies(fake_store: FakeStore) -> dict[str, Any]:
    made = {"train": studies_of([0, 0, 0, 1, 1], "t"), "validation": studies_of([0, 1], "v")}
    made["test"] = studies_of([0, 1], "x")
    generator = np.random.default_rng(0)
    for members in made.values():
        for study in members:
            fake_store.put(study, generator.normal(size=(4, 32, 32, 32)))
    return made


@pytest.fixture
def network(small_network: Maker, fake_store: FakeStore, studies: dict[str, Any]) -> StemTailNetwork:
    """Return a network without dropout whose stem has been calibrated, as in a run."""
    made = small_network(drop_rate=0.0, drop_path_rate=0.0)
    data = IDHDataModule(studies=studies, store=fake_store, augmentation=None, seed=0, workers=0)
    calibrate_batch_norm(made, data.calibration_batches(4))
    return made


def noisy() -> Augmentation:
    """Return an augmentation whose every draw differs."""
    import torchio as tio

    return Augmentation(noise=tio.RandomNoise(std=(0.5, 1.0)), flip=tio.RandomFlip(axes=("LR",)), background=99.0)


def bank(folder: Path, fake_store: FakeStore, studies: dict[str, Any], **settings: Any) -> FeatureBankDataModule:
    defaults: dict[str, Any] = {"augmentation": noisy(), "seed": 3, "batch_size": 2, "workers": 0, "views": 2}
    return FeatureBankDataModule(studies=studies, store=fake_store, folder=folder / "bank", **(defaults | settings))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "bank").rglob("*.npy"))}


def test_a_bank_without_augmentation_holds_what_the_stem_makes_in_half_precision(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = bank(tmp_path, fake_store, studies, augmentation=None, views=1)
    report = data.fill(network, {})
    assert (report.computed, report.reused) == (7, 0)
    by_name = {study.study_id: study for study in studies["train"]}
    for batch in data.training_loader(0):
        assert isinstance(batch, FeatureBatch)
        for name, features, label in zip(batch.study_ids, batch.features, batch.labels, strict=True):
            volume = torch.from_numpy(np.array(fake_store.open(by_name[name]).image, dtype=np.float32))
            assert label == by_name[name].label
            torch.testing.assert_close(features, network.stem(volume[None], to_train=True)[0], rtol=2e-2, atol=2e-2)
    assert [name for batch in data.val_dataloader() for name in batch.study_ids] == ["v000", "v001"]
    assert all(isinstance(batch, Batch) for loader in data.test_dataloader() for batch in loader)


def test_training_on_a_bank_gives_the_gradients_of_training_through_the_stem(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    """The same views of the same studies in the same batches, once as volumes and once as features.

    In bfloat16, whose numbers half precision holds exactly: BatchNorm over two studies of one cell each makes
    anything of a rounding.
    """
    network.stem_precision = "bfloat16"
    data = bank(tmp_path, fake_store, studies, augmentation=None, views=1)
    data.fill(network, {})
    plain = IDHDataModule(
        studies=studies, store=fake_store, augmentation=None, seed=3, batch_size=2, workers=0, queue_length=4
    )
    gradients = []
    for loader in (data.training_loader(0), plain.training_loader(0)):
        model = IDHClassifier(network=network.train(), objective=nn.CrossEntropyLoss())
        model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        model.zero_grad()
        for index, batch in enumerate(loader):
            model.training_step(batch, index).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    similarity = nn.functional.cosine_similarity(*gradients, dim=0)
    assert similarity > 0.999
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.01)


def test_an_interrupted_bank_goes_on_and_ends_the_same(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    (tmp_path / "whole").mkdir()
    whole = bank(tmp_path / "whole", fake_store, studies)
    assert whole.fill(network, {"noise": 1}).computed == 12
    stem, calls = network.stem, []

    def broken(volumes: torch.Tensor, *, to_train: bool) -> torch.Tensor:
        calls.append(len(volumes))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stem(volumes, to_train=to_train)

    halted = bank(tmp_path, fake_store, studies)
    network.stem = broken  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        halted.fill(network, {"noise": 1})
    network.stem = stem  # type: ignore[method-assign]
    report = bank(tmp_path, fake_store, studies).fill(network, {"noise": 1})
    assert report.reused == calls[0] > 0
    assert report.computed == 12 - calls[0]
    assert files_of(tmp_path).keys() == files_of(tmp_path / "whole").keys()
    for name, content in files_of(tmp_path / "whole").items():
        one, other = (np.load(folder / name) for folder in (tmp_path, tmp_path / "whole"))
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2, err_msg=name)  # batches were cut elsewhere
        assert content


@pytest.mark.parametrize("change", ["seed", "augmentation", "stem", "cut"])
def test_whatever_changes_the_features_makes_another_bank(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], small_network: Maker, change: str
) -> None:
    first, second = small_network(), small_network(trainable_from="blocks.4" if change == "cut" else "blocks.5")
    bank(tmp_path, fake_store, studies).fill(first, {"noise": 1})
    if change == "stem":
        second.network.bn1.running_mean.add_(0.1)
    data = bank(tmp_path, fake_store, studies, seed=4 if change == "seed" else 3)
    assert data.fill(second, {"noise": 2 if change == "augmentation" else 1}).reused == 0


def test_what_lies_behind_the_stem_does_not_make_another_bank(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], small_network: Maker
) -> None:
    network = small_network()
    bank(tmp_path, fake_store, studies).fill(network, {})
    nn.init.ones_(network.network.classifier.weight)
    assert bank(tmp_path, fake_store, studies).fill(network, {}).computed == 0


def test_views_differ_from_each_other_and_are_refreshed_when_asked(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = bank(tmp_path, fake_store, studies, refresh=2)
    data.fill(network, {})
    list(data.training_loader(1))
    before = files_of(tmp_path)
    assert len(before) == 12
    assert len(set(before.values())) == 12
    list(data.training_loader(2))
    after = files_of(tmp_path)
    assert len(after) == 22
    assert len(set(after.values())) == 22


def in_training(data: FeatureBankDataModule, max_epochs: int) -> FeatureBankDataModule:
    data.trainer = SimpleNamespace(max_epochs=max_epochs, global_rank=0, world_size=1)  # type: ignore[assignment]
    return data


@pytest.mark.slow
def test_views_computed_beside_training_are_those_that_would_have_been_computed_before_it(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    (tmp_path / "before").mkdir()
    before = bank(tmp_path / "before", fake_store, studies, refresh=1)
    before.fill(network, {})
    torch.manual_seed(11)
    expected = [torch.cat([batch.features for batch in before.training_loader(0)])]
    drawn = torch.rand(3)
    expected += [torch.cat([batch.features for batch in before.training_loader(1)])]
    data = in_training(bank(tmp_path, fake_store, studies, refresh=1), max_epochs=2)
    data.fill(network, {})
    torch.manual_seed(11)
    found = [torch.cat([batch.features for batch in data.training_loader(0)])]
    ahead = data._ahead
    assert ahead is not None
    while ahead.is_alive():  # what validation does meanwhile moves no statistics of the stem
        network.eval()
        network.train()
        ahead.join(0.01)
    assert torch.equal(torch.rand(3), drawn)
    assert files_of(tmp_path) == files_of(tmp_path / "before")  # all is there before it is asked for
    found += [torch.cat([batch.features for batch in data.training_loader(1)])]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert data._ahead is None  # no epoch comes after


def test_what_goes_wrong_beside_training_is_raised_when_its_views_are_wanted(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = in_training(bank(tmp_path, fake_store, studies, refresh=1), max_epochs=-1)
    data.fill(network, {})

    def fails(*_: object) -> None:
        raise ModelError("the stem's output does not fit")

    data._compute = fails  # type: ignore[assignment]
    data.training_loader(0)
    with pytest.raises(ModelError, match="does not fit"):
        data.training_loader(1)


def test_the_end_of_training_stops_what_is_computed_for_later(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = in_training(bank(tmp_path, fake_store, studies, refresh=1), max_epochs=-1)
    data.fill(network, {})
    data._compute = lambda _, stop: stop.wait(60)  # type: ignore[assignment, method-assign, return-value, misc]
    data.training_loader(0)
    ahead = data._ahead
    assert ahead is not None
    assert ahead.is_alive()
    data.on_exception(KeyboardInterrupt())
    assert not ahead.is_alive()
    data.teardown("fit")


def test_an_epoch_is_the_same_whenever_it_is_asked_for(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = bank(tmp_path, fake_store, studies)
    data.fill(network, {})
    epochs = [torch.cat([batch.features for batch in data.training_loader(epoch)]) for epoch in (1, 1, 2)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_features_beyond_half_precision_are_refused(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    network.stem = lambda volumes, to_train: torch.full((len(volumes), 1, 1, 1, 1), 1e6)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"t000.*does not fit half precision"):
        bank(tmp_path, fake_store, studies).fill(network, {})


def test_impossible_settings_are_refused(tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any]) -> None:
    for setting, value in (("views", 0), ("refresh", 0)):
        with pytest.raises(ConfigError, match=f"data.batches.{setting}: found {value}"):
            bank(tmp_path, fake_store, studies, **{setting: value})


def test_the_trainer_fits_on_a_bank(
    tmp_path: Path, fake_store: FakeStore, studies: dict[str, Any], network: StemTailNetwork
) -> None:
    data = bank(tmp_path, fake_store, studies)
    data.fill(network, {})
    model = IDHClassifier(
        network=network,
        objective=nn.CrossEntropyLoss(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        scheduler=lambda optimizer, total_steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps),
    )
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
        default_root_dir=tmp_path,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in network.stem_parameters()]
    trainer.fit(model, datamodule=data)
    assert np.isfinite(float(trainer.callback_metrics["val/loss"]))
    assert all(torch.equal(one, other) for one, other in zip(before, network.stem_parameters(), strict=True))
