"""Pretraining of the locator: what it writes, and that a run that was killed comes to the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.commands.training import train
from idh_lightning.config.checks import CONF_DIR, check_config
from idh_lightning.errors import ConfigError
from idh_lightning.models.segmentation import load_segmenter
from idh_lightning.runs.pretraining import Card

SMALL = (
    "experiment=pretrain_locator",
    "data.grid=[17,23,17]",
    "pretraining.gliomas.spacing_mm=8",
    "pretraining.steps_per_epoch=2",
    "pretraining.batch_size=2",
    "pretraining.validation_patients=2",
    "pretraining.described_patients=80",
    "pretraining.workers=0",
    "trainer.max_epochs=2",
    "logger=csv",
)


def settings(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=[*SMALL, f"paths.run={folder}", *overrides])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining") / "undisturbed"
    scores = train(settings(folder))
    assert set(scores["pretraining"]) == {"val/dice", "val/vote_accuracy"}
    return folder


def test_pretraining_writes_weights_and_a_card_that_says_how(undisturbed: Path) -> None:
    card = json.loads((undisturbed / "locator.json").read_text(encoding="utf-8"))
    assert (card["steps"], card["seed"], card["learnt_from"]) == (4, 0, "synthetic gliomas alone")
    assert card["settings"]["pretraining"]["gliomas"]["spacing_mm"] == 8
    assert card["preprocessing"]["grid"] == [17, 23, 17]
    shipped = Checkpoint.pretrained(undisturbed / "pretrained")
    assert "python -m idh_lightning.train experiment=pretrain_locator" in str(shipped.model_card)
    state = torch.load(undisturbed / "checkpoints" / "last.ckpt", weights_only=True)
    averaged, latest = state["state_dict"], state["current_model_state"]
    for name, tensor in shipped.network().locator.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, averaged[f"segmenter.{name}"].half().float()), name
    assert not all(torch.equal(averaged[name], latest[name]) for name in averaged)


@pytest.mark.slow
def test_a_pretraining_that_was_stopped_comes_to_the_same_weights(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Card.on_train_epoch_end

    def fail_in_the_second_epoch(self: Card, trainer: object, pl_module: object) -> None:
        if trainer.current_epoch == 1:  # type: ignore[attr-defined]
            raise OSError("the machine stopped")
        write(self, trainer, pl_module)  # type: ignore[arg-type]

    folder = tmp_path / "stopped"
    monkeypatch.setattr(Card, "on_train_epoch_end", fail_in_the_second_epoch)
    with pytest.raises(OSError, match="the machine stopped"):
        train(settings(folder))
    assert json.loads((folder / "locator.json").read_text(encoding="utf-8"))["steps"] == 2
    monkeypatch.undo()
    train(settings(folder, "checkpoint=last"))
    expected, found = (
        load_segmenter(run / "pretrained" / "locator.safetensors").state_dict() for run in (undisturbed, folder)
    )
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("stages", "said"), [("[pretrain,fit]", "on its own"), ("[pretrain]", "experiment=pretrain_locator")]
)
def test_pretraining_is_asked_for_alone_and_with_its_settings(tmp_path: Path, stages: str, said: str) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=[f"stages={stages}", "name=x", f"paths.run={tmp_path}"])
        if said == "on its own":
            config = compose("train", overrides=[*SMALL, f"stages={stages}", f"paths.run={tmp_path}"])
    with pytest.raises(ConfigError, match=said):
        check_config(OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]
