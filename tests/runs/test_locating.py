"""The stage `locate`: fine-tuning of the locator on training patients, and what is told of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tiny_studies import write_study

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.commands.training import train
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.data.tumours import RandomisedStudies, tumour_sample
from idh_lightning.errors import ConfigError
from idh_lightning.evaluation import Evaluation
from idh_lightning.evaluation.measurement import weighted_medians
from idh_lightning.models.segmentation import TumourSegmenter, load_segmenter
from idh_lightning.runs import locating, state
from idh_lightning.runs.locating import FineTuning, LocatorData, LocatorTraining, write_segmentation_scores
from idh_lightning.volumes import VolumeStore
from idh_lightning.volumes.preprocessing import Preprocessing
from idh_lightning.volumes.randomisation import Randomisation

GRID = (17, 19, 17)
GENTLE = Randomisation(degrees=2, noise=0.05, coarse=0, dropped=(0, 0, 0, 0))
THREE = ("FLAIR", "T1", "T1c")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Study], VolumeStore]:
    """Five studies without T2, the last of which has no mask, in a store."""
    folder = tmp_path_factory.mktemp("studies")
    studies = [
        write_study(folder, f"study-{n}", seed=n, label=n % 2, mask=n < 4, sequences=THREE, size=(30, 36, 28))
        for n in range(5)
    ]
    store = VolumeStore(folder / "store", Preprocessing(grid=GRID, missing="error"), THREE)
    assert store.prepare(studies).built == 5
    return studies, store


def fine_tuned(
    folder: Path, prepared: tuple[list[Study], VolumeStore], segmenter: TumourSegmenter, steps: int = 50
) -> TumourSegmenter:
    studies, store = prepared
    trainer = partial(
        lightning.Trainer, accelerator="cpu", default_root_dir=folder, reload_dataloaders_every_n_epochs=1
    )
    made = FineTuning(steps=steps, batch_size=2, learning_rate=5e-3, randomisation=GENTLE)
    return made(segmenter, studies, store, seed=0, folder=folder, make_trainer=trainer)


def test_gradients_are_clipped_in_mixed_precision_with_a_fused_optimizer(
    prepared: tuple[list[Study], VolumeStore], tmp_path: Path
) -> None:
    norms: list[float] = []

    class Watch(lightning.Callback):
        def on_before_zero_grad(self, _: lightning.Trainer, module: lightning.LightningModule, *__: object) -> None:
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            norms.extend([float(torch.nn.utils.get_total_norm(gradients))] if gradients else [])

    model = LocatorTraining(
        TumourSegmenter(widths=(8, 8)),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True),
        scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3),
    )
    drawn = RandomisedStudies(*prepared, length=4, seed=0, randomisation=GENTLE)
    lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        precision="bf16-mixed",
        gradient_clip_val=1e-3,
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(model, datamodule=LocatorData(samples=drawn, validation=None, batch_size=2, workers=0))
    assert norms == pytest.approx([1e-3], rel=1e-2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared: tuple[list[Study], VolumeStore]) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.manual_seed(0)
    beginner = TumourSegmenter(widths=(8, 8)).eval()
    before = {name: tensor.clone() for name, tensor in beginner.state_dict().items()}
    learnt = fine_tuned(folder, prepared, beginner)
    assert all(torch.equal(tensor, before[name]) for name, tensor in beginner.state_dict().items())
    for name, tensor in load_segmenter(folder / state.LOCATOR_WEIGHTS).state_dict().items():
        assert torch.equal(tensor, learnt.state_dict()[name]), name
    assert not list((folder / "checkpoints").glob("*"))
    return folder


def test_the_grid_that_was_fine_tuned_on_goes_with_the_weights_unless_it_is_finer(
    undisturbed: Path, prepared: tuple[list[Study], VolumeStore], tmp_path: Path
) -> None:
    assert load_segmenter(undisturbed / state.LOCATOR_WEIGHTS).learnt_on == GRID
    coarse = TumourSegmenter(widths=(8, 8), learnt_on=(9, 10, 9))
    assert fine_tuned(tmp_path, prepared, coarse, steps=1).learnt_on == (9, 10, 9), "it sees means over voxels"


def test_a_locator_learns_to_find_the_tumour_from_masks(
    undisturbed: Path, prepared: tuple[list[Study], VolumeStore], tmp_path: Path
) -> None:
    studies, store = prepared
    torch.manual_seed(0)
    splits = {"train": studies[:1], "validation": studies[1:3], "test": studies[3:]}
    before = write_segmentation_scores(tmp_path, TumourSegmenter(widths=(8, 8)).eval(), splits, store)
    after = write_segmentation_scores(tmp_path, load_segmenter(undisturbed / state.LOCATOR_WEIGHTS), splits, store)
    assert list(after["study_id"]) == ["study-1", "study-2", "study-3"]  # study-4 has no mask
    assert list(after["split"]) == ["validation", "validation", "test"]
    assert before["dice"].max() < 0.4 < 0.6 < after["dice"].min()
    assert (after["pointing"] == 1).all()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / state.SEGMENTATION_SCORES), after)


def test_a_fine_tuning_that_was_stopped_comes_to_the_same_weights(
    undisturbed: Path, prepared: tuple[list[Study], VolumeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LocatorTraining.training_step

    def fail_in_the_second_stretch(self: LocatorTraining, *batch: object) -> torch.Tensor:
        if self.global_step == locating.STRETCH + 5:
            raise OSError("the machine stopped")
        return step(self, *batch)  # type: ignore[arg-type]

    torch.manual_seed(0)
    beginner = TumourSegmenter(widths=(8, 8)).eval()
    monkeypatch.setattr(LocatorTraining, "training_step", fail_in_the_second_stretch)
    with pytest.raises(OSError, match="the machine stopped"):
        fine_tuned(tmp_path, prepared, beginner)
    assert (tmp_path / "checkpoints" / "locator.ckpt").is_file()
    monkeypatch.undo()
    learnt = fine_tuned(tmp_path, prepared, beginner).state_dict()
    for name, tensor in load_segmenter(undisturbed / state.LOCATOR_WEIGHTS).state_dict().items():
        assert torch.equal(learnt[name], tensor), name


def test_draws_are_balanced_and_each_is_a_function_of_seed_and_index(
    prepared: tuple[list[Study], VolumeStore],
) -> None:
    studies, store = prepared

    def drawn(seed: int) -> RandomisedStudies:
        return RandomisedStudies(studies, store, length=20, seed=seed, randomisation=Randomisation())

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert len(first) == 20
    assert 7 <= sum(int(first[index].labels) for index in range(20)) <= 13
    for index in (7, 3):
        for one, two in zip(first[index], again[index], strict=True):
            assert torch.equal(torch.as_tensor(one).nan_to_num(-1), torch.as_tensor(two).nan_to_num(-1))
    assert not torch.equal(first[7].volumes, other[7].volumes)


def test_an_absent_sequence_stays_absent_and_a_mask_that_is_not_there_is_unknown(
    prepared: tuple[list[Study], VolumeStore],
) -> None:
    studies, store = prepared
    plain = tumour_sample(store.open(studies[0]), studies[0], store.sequences)
    assert plain.volumes.flatten(1).any(1).tolist() == [name in THREE for name in SEQUENCES]
    assert set(plain.masks.unique().tolist()) == {0.0, 1.0}
    always = Randomisation(dropped=(1, 0, 0, 0))  # FLAIR would go, were T2 there
    samples = RandomisedStudies(studies, store, length=40, seed=3, randomisation=always)
    unknown = set()
    for index in range(40):
        sample, study = samples[index], studies[samples.draws[index]]
        assert sample.volumes[0].any()
        assert not sample.volumes[SEQUENCES.index("T2")].any()
        if bool(torch.isnan(sample.masks).all()):
            unknown.add(study.study_id)
        else:
            assert not torch.isnan(sample.masks).any()
    assert unknown == {"study-4"}


def test_a_weighted_median_is_the_median_of_the_values_repeated_that_often() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8):
        values, weights = rng.normal(size=n), rng.integers(0, 4, (30, n))
        weights[weights.sum(1) == 0, 0] = 1
        expected = [np.median(np.repeat(values, row)) for row in weights]
        np.testing.assert_allclose(weighted_medians(values, weights.astype(float)), expected)
    assert np.isnan(weighted_medians(np.ones(2), np.zeros((1, 2)))).all()


def test_segmentation_is_told_as_a_median_with_its_interval_and_n() -> None:
    dice = np.linspace(0.5, 0.9, 21)
    table = pd.DataFrame({"patient_id": [f"P{n}" for n in range(21)], "split": "test", "dice": dice, "pointing": 1})
    found = Evaluation(bootstrap=500).segmentation(table)["test"]
    assert found["dice"]["value"] == pytest.approx(0.7)
    assert found["dice"]["n"] == 21
    assert 0.55 < found["dice"]["low"] < 0.7 < found["dice"]["high"] < 0.85
    assert found["pointing_game"]["value"] == 1.0
    assert found["pointing_game"]["low"] < 0.9


def settings(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=["name=locating", *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages=[locate]"], "expected 'fit' as well"),
        (["stages=[locate,fit,test,report]", "model.locator=null"], "Set model.locator=pretrained"),
    ],
)
def test_a_stage_locate_that_could_not_be_used_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(settings(*overrides, f"paths.run={tmp_path}"))


@pytest.mark.slow
def test_a_run_with_the_stage_locate_uses_and_reports_its_own_locator(tmp_path: Path) -> None:
    small = [
        "stages=[locate,fit,test,report]",
        "locating.steps=25",
        "cohort.patients=40",
        "cohort.spacing_mm=4",
        "data.grid=[25,33,25]",
        "model=efficientnet_b0",
        "model.weights=none",
        "split.validation=0.25",
        "split.test=0.25",
        "trainer.max_epochs=1",
        "evaluation.bootstrap=200",
        *(f"paths.{name}={tmp_path / name}" for name in ("data", "store", "bank", "run")),
    ]
    metrics = train(settings(*small))
    run = tmp_path / "run"
    scores = pd.read_csv(run / state.SEGMENTATION_SCORES)
    cohort = pd.read_csv(run / "cohort.csv")
    assert set(scores["study_id"]) == set(cohort.loc[cohort["split"] != "train", "study_id"])
    told = json.loads((run / "metrics.json").read_text())["segmentation"]
    assert told == metrics["segmentation"]
    assert told["test"]["dice"]["n"] == cohort.loc[cohort["split"] == "test", "patient_id"].nunique()
    used = Checkpoint.read(run).locator()
    assert used is not None
    for name, tensor in load_segmenter(run / state.LOCATOR_WEIGHTS).state_dict().items():
        assert torch.equal(used.state_dict()[name], tensor), name
    assert "fine-tuned in this run" in (run / "report.html").read_text(encoding="utf-8")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["seconds"]["locate"] > 0
    assert provenance["locator"]["studies"] == (cohort["split"] == "train").sum()
    # Gone on with, nothing is learnt again.
    written = (run / state.LOCATOR_WEIGHTS).stat().st_mtime_ns
    assert train(settings(*small, "checkpoint=last"))["test"] == metrics["test"]
    assert (run / state.LOCATOR_WEIGHTS).stat().st_mtime_ns == written
