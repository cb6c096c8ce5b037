from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FakeStore, studies_of
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from idh_lightning.callbacks import EpochProgressBar, PredictionWriter
from idh_lightning.data import IDHDataModule
from idh_lightning.errors import CheckpointError, TrainingError
from idh_lightning.models import NetworkOutput, StemTailNetwork
from idh_lightning.module import IDHClassifier, groups_by_decay
from idh_lightning.objectives import FocalLoss


class Oracle(nn.Module):
    """Knows the label, which the test wrote into the voxels; `sign` 0 makes it know nothing, -1 always wrong."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign
        self.weight = nn.Parameter(torch.zeros(1))

    def stem(self, volumes: Tensor, *, to_train: bool = False) -> Tensor:
        return volumes

    def answer(self, features: Tensor) -> NetworkOutput:
        score = self.sign * (features.mean((1, 2, 3, 4)) - 0.5) + 0 * self.weight
        logits = torch.stack([-score, score], dim=1)
        return NetworkOutput(logits, None, (logits,))


@pytest.fixture
def data(fake_store: FakeStore) -> IDHDataModule:
    studies = {
        "train": studies_of([0, 1] * 6, "t"),
        "validation": studies_of([0, 0, 1, 0], "v"),
        "test": studies_of([0, 1, 0, 1, 0], "x"),
    }
    generator = np.random.default_rng(0)
    for members in studies.values():
        for study in members:
            fake_store.put(study, study.label + 0.1 * generator.normal(size=(2, 32, 32, 32)))
    return IDHDataModule(
        studies=studies,
        store=fake_store,
        augmentation=None,
        seed=0,
        batch_size=3,
        workers=0,  # type: ignore[arg-type]
    )


def table_of(data: IDHDataModule) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"study_id": s.study_id, "patient_id": s.patient_id, "label": s.label, "split": split, "fold": 0}
            for split, members in data.studies.items()
            for s in members
        ]
    )


def quiet_trainer(
    folder: Path, *callbacks: lightning.Callback, epochs: int = 1, **settings: object
) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_model_summary=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        **({"enable_checkpointing": False, "enable_progress_bar": False} | settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("sign", "auroc", "accuracy"), [(1.0, 1.0, 1.0), (0.0, 0.5, 0.6), (-1.0, 0.0, 0.0)])
def test_the_real_loop_gives_fakes_the_scores_they_must_get(
    data: IDHDataModule, tmp_path: Path, sign: float, auroc: float, accuracy: float
) -> None:
    writer = PredictionWriter(run_folder=tmp_path, cohort_table=table_of(data))
    model = IDHClassifier(network=Oracle(sign), objective=FocalLoss())  # type: ignore[arg-type]
    trainer = quiet_trainer(tmp_path, writer)
    trainer.test(model, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test/study_auroc"] == pytest.approx(auroc)
    assert trainer.callback_metrics["test/study_accuracy"] == pytest.approx(accuracy)
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    columns = ["study_id", "patient_id", "split", "fold", "target", "label", "logit", "probability"]
    assert list(predictions.columns) == columns
    assert set(predictions["target"]) == {"idh"}
    assert sorted(predictions["study_id"]) == sorted(
        s.study_id for k in ("validation", "test") for s in data.studies[k]
    )
    np.testing.assert_allclose(predictions["probability"], 1 / (1 + np.exp(-predictions["logit"])))
    if sign == 1.0:
        assert ((predictions["probability"] > 0.5) == (predictions["label"] == 1)).all()


def test_features_may_be_rounded_to_train_on_and_never_to_predict_from(data: IDHDataModule, tmp_path: Path) -> None:
    """Else a machine that rounds gives other probabilities than one that does not, and than an exported network."""
    model, asked = learner(), set()
    stem = model.network.stem

    def noted(volumes: Tensor, *, to_train: bool = False) -> Tensor:
        asked.add((trainer.state.fn.value, to_train))
        return stem(volumes, to_train=to_train)

    model.network.stem = noted  # type: ignore[method-assign]
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    trainer = quiet_trainer(tmp_path)
    trainer.test(model, datamodule=data, verbose=False)
    assert asked == {("fit", True), ("test", False)}


def test_the_progress_bar_counts_epochs_from_one(
    data: IDHDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = quiet_trainer(tmp_path, EpochProgressBar(), epochs=2, enable_progress_bar=True)
    trainer.fit(learner(), datamodule=data)
    said = capsys.readouterr().out
    assert "Epoch 2/2" in said
    assert "Epoch 0" not in said


def learner(weight_decay: float = 0.1) -> IDHClassifier:
    torch.manual_seed(0)
    network = StemTailNetwork(
        backbone="tf_efficientnet_b0", sequences=("FLAIR", "T1"), weights="none", drop_path_rate=0.0
    )
    return IDHClassifier(
        network=network,
        objective=FocalLoss(),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3),
        weight_decay=weight_decay,
        recipe={"sequences": ["FLAIR", "T1"]},
    )


def test_the_schedule_goes_up_and_down_once_over_the_optimizer_steps(data: IDHDataModule, tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(lightning.Callback):
        def on_before_optimizer_step(self, trainer: lightning.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = quiet_trainer(tmp_path, Watch(), epochs=3, accumulate_grad_batches=2)
    trainer.fit(learner(), datamodule=data)
    assert trainer.global_step == len(rates) == 6
    assert rates[-1] < rates[0] < max(rates)
    assert max(rates) == pytest.approx(1e-3, rel=0.1)


def test_weights_of_matrices_decay_and_biases_and_norms_do_not(data: IDHDataModule, tmp_path: Path) -> None:
    model = learner(weight_decay=0.3)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    groups = trainer.optimizers[0].param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    assert len(decays) == len(trainable)
    for name, parameter in trainable.items():
        assert decays[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name
    ours, timms = (made(model.network, 0.3) for made in (groups_by_decay, param_groups_weight_decay))
    for one, other in zip(ours, timms, strict=True):
        assert one["weight_decay"] == other["weight_decay"]
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


def test_training_twice_from_one_seed_gives_the_same_weights(data: IDHDataModule, tmp_path: Path) -> None:
    def fitted() -> dict[str, Tensor]:
        lightning.seed_everything(3, verbose=False)
        model = learner()
        quiet_trainer(tmp_path, epochs=2).fit(model, datamodule=data)
        return model.state_dict()

    first, second = fitted(), fitted()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_test_patients_change_neither_the_chosen_epoch_nor_its_weights(
    data: IDHDataModule, fake_store: FakeStore, tmp_path: Path
) -> None:
    def chosen(name: str) -> dict[str, object]:
        lightning.seed_everything(3, verbose=False)
        best = ModelCheckpoint(dirpath=tmp_path / name, monitor="val/study_auroc", mode="max", save_weights_only=True)
        trainer = quiet_trainer(tmp_path, best, epochs=3, enable_checkpointing=True)
        trainer.fit(learner(), datamodule=data)
        trainer.test(learner(), datamodule=data, verbose=False)
        content = torch.load(best.best_model_path, weights_only=True)
        return {"epoch": content["epoch"], "score": float(best.best_model_score), **content["state_dict"]}

    first = chosen("first")
    data.studies = data.studies | {"test": tuple(replace(s, label=1 - s.label) for s in data.studies["test"])}
    data._subjects.clear()
    for study in data.studies["test"]:
        fake_store.put(study, np.random.default_rng(9).normal(size=(2, 32, 32, 32)))
    second = chosen("second")
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name]  # type: ignore[arg-type]
        assert same, name


def test_a_checkpoint_holds_tensors_and_primitives_and_its_recipe(data: IDHDataModule, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    model = learner()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert content["recipe"] == {"sequences": ["FLAIR", "T1"]}
    again = learner()
    again.load_state_dict(content["state_dict"])
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_model_built_to_predict_says_that_it_cannot_fit(data: IDHDataModule, tmp_path: Path) -> None:
    model = IDHClassifier(network=Oracle(1.0), objective=FocalLoss())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="built to predict"):
        quiet_trainer(tmp_path).fit(model, datamodule=data)


class Bursts(nn.Module):
    """A loss that is not finite from some step on; in validation or in training."""

    def __init__(self, after: int, *, training: bool) -> None:
        super().__init__()
        self.after, self.where, self.seen = after, training, 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.seen += logits.requires_grad == self.where
        return nn.functional.cross_entropy(logits, labels) * (np.nan if self.seen > self.after else 1.0)


@pytest.mark.parametrize(("after", "training"), [(8, True), (2, False)])
def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_weights(
    data: IDHDataModule, tmp_path: Path, after: int, training: bool
) -> None:
    """Epochs have 4 batches of training and 2 of validation, and the loss of a training batch is asked for twice."""
    model = learner()
    model.objective = Bursts(after, training=training)
    best = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss", save_weights_only=True)
    trainer = quiet_trainer(tmp_path, best, epochs=4, enable_checkpointing=True)
    with pytest.raises(
        TrainingError, match=r"loss: not finite in epoch 2, step \d, in the batch of [tv]\d{3}, .*Likely.*best.ckpt"
    ):
        trainer.fit(model, datamodule=data)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())


def test_a_loss_that_is_not_finite_in_the_first_epoch_promises_no_weights(data: IDHDataModule, tmp_path: Path) -> None:
    model = learner()
    model.objective = Bursts(2, training=True)
    with pytest.raises(TrainingError, match="No weights were kept, since no epoch had ended"):
        quiet_trainer(tmp_path).fit(model, datamodule=data)


def test_the_study_whose_values_are_not_finite_is_named(
    data: IDHDataModule, fake_store: FakeStore, tmp_path: Path
) -> None:
    broken = data.studies["train"][5]
    fake_store.put(broken, np.full((2, 32, 32, 32), np.inf))
    with pytest.raises(TrainingError, match=f"the values of {broken.study_id} are not finite"):
        quiet_trainer(tmp_path).fit(learner(), datamodule=data)


def test_training_does_not_go_on_with_a_schedule_of_another_length(data: IDHDataModule, tmp_path: Path) -> None:
    model = learner()
    model.planned_steps = 12
    with pytest.raises(CheckpointError, match=r"planned for 12 steps .* would now have 4") as refused:
        quiet_trainer(tmp_path).fit(model, datamodule=data)
    assert f"checkpoint={tmp_path / 'checkpoints' / 'best.ckpt'}," in str(refused.value), "it can be pasted"


def test_gradients_are_clipped_by_value_where_that_is_asked_for(data: IDHDataModule, tmp_path: Path) -> None:
    largest: list[float] = []

    class Watch(lightning.Callback):
        def on_before_zero_grad(
            self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: object
        ) -> None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            largest.extend(float(each.abs().max()) for each in gradients)

    model = learner()
    model.optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value", "precision": "bf16-mixed"}
    quiet_trainer(tmp_path, Watch(), **clipping).fit(model, datamodule=data)
    assert max(largest) == pytest.approx(1e-3)
