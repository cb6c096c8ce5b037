"""Pretraining of the locator on synthetic gliomas alone: `experiment=pretrain_locator`."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from idh_lightning.callbacks import Provenance, WholeCheckpointIO
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.data.synthetic import SyntheticGliomas
from idh_lightning.files import write_json
from idh_lightning.models.segmentation import TumourSegmenter
from idh_lightning.provenance import git_commit
from idh_lightning.runs.locating import LocatorData, LocatorTraining
from idh_lightning.runs.pretrained import DrawnStudy, write_pretrained
from idh_lightning.runs.rehearsal import make_trainer, optimizer_of

logger = logging.getLogger(__name__)

VALIDATION_SEED = 1_000_033
"""Added to the seed of the patients that are learnt from, for those that only tell how far it has come."""


DESCRIBED_SEED = 1_000_037
"""Added likewise, for those that tell the out-of-distribution detector how studies may look."""

CARD = """# Tumour segmenter with dense vote

**Research software, not for clinical use.** Learnt from synthetic gliomas alone: no image of a real patient was used.

- Command: `{command}`
- Commit: {commit}; seed {seed}; {steps} steps, {hours} hours
- On {patients} other synthetic patients, one draw each: mean Dice coefficient {dice:.2f}, votes right {accuracy:.2f}
- On real patients: docs/results/real.md
"""


def pretrain(config: DictConfig) -> dict[str, Any]:
    """Teach a locator on synthetic gliomas, write its weights and a card, and return the scores.

    The weights are averaged over the latest steps. `locator.json` and `checkpoints/last.ckpt` are written at the end of
    each epoch; with `checkpoint=last` the training goes on from there. The weights come last, into `pretrained`.
    """
    folder, plan = Path(config.paths.run), config.pretraining
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    epochs = int(config.trainer.max_epochs)
    preprocessing = instantiate_section(config.data.preprocessing)
    gliomas = partial(instantiate_section(plan.gliomas, _partial_=True), preprocessing=preprocessing)
    data = LocatorData(
        samples=gliomas(length=epochs * int(plan.steps_per_epoch) * int(plan.batch_size), seed=config.seed),
        validation=gliomas(length=int(plan.validation_patients), seed=config.seed + VALIDATION_SEED, views=1, window=1),
        batch_size=int(plan.batch_size),
        workers=int(plan.workers),
    )
    model = LocatorTraining(
        TumourSegmenter(learnt_on=preprocessing.shape),
        optimizer=optimizer_of(config),
        scheduler=instantiate_section(config.scheduler, _partial_=True),
    )
    card = Card(folder, OmegaConf.to_container(config, resolve=True))
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="last", enable_version_counter=False
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer = make_trainer(
        config.trainer,
        callbacks=[
            EMAWeightAveraging(decay=float(plan.averaging)),
            keep,
            card,
            Provenance(run_folder=folder, known={"cohort": "synthetic gliomas, rendered as asked for"}),
        ],
        logger=[made for each in config.logger.values() if (made := instantiate_section(each))],
        plugins=[WholeCheckpointIO()],
    )
    trainer.fit(
        model,
        datamodule=data,
        ckpt_path=last if config.checkpoint == "last" and last.is_file() else None,
        weights_only=True,
    )
    if trainer.is_global_zero:
        described = gliomas(length=int(plan.described_patients), seed=config.seed + DESCRIBED_SEED, views=1, window=1)
        write_pretrained(folder / "pretrained", model.segmenter, _drawn(described), card=card.text())
        logger.info("Locator and its description: %s", folder / "pretrained")
    return card.scores


def _drawn(gliomas: SyntheticGliomas) -> list[DrawnStudy]:
    """Studies with the voxel sizes that a randomised loss of resolution stands for, drawn anew where it is none."""
    edge_mm = gliomas.preprocessing.voxel_mm
    coarsest = 1.0 if gliomas.randomisation is None else gliomas.randomisation.coarsest
    rng = np.random.default_rng(gliomas.seed)
    studies = []
    for index in track(range(len(gliomas)), description="Drawing synthetic patients"):
        one = gliomas[index]
        studies.append(
            DrawnStudy(
                image=one.volumes.numpy(),
                mask=one.masks.numpy().astype(np.uint8),
                brain=one.brains.numpy().astype(np.uint8),
                label=int(one.labels),
                spacing_mm=[edge_mm] * 3,
                native_spacing_mm=[rng.uniform(0.5, coarsest * edge_mm), *[rng.uniform(0.4, 2.0)] * 2],
            )
        )
    return studies


class Card(lightning.pytorch.callbacks.Callback):
    """Writes after each epoch how a locator has been learnt so far, and how well it does."""

    def __init__(self, folder: Path, recipe: Any) -> None:
        super().__init__()
        self.folder, self.recipe = folder, recipe
        self.seconds = 0.0
        self.scores: dict[str, Any] = {}
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the file in one step."""
        if not trainer.is_global_zero:
            return
        now = time.perf_counter()
        self.seconds, self._began = self.seconds + now - self._began, now
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.scores = {"pretraining": metrics}
        write_json(
            self.folder / "locator.json",
            {
                "learnt_from": "synthetic gliomas alone",
                "steps": trainer.global_step,
                "hours": round(self.seconds / 3600, 3),
                "seed": self.recipe["seed"],
                "scores_on_other_synthetic_patients": metrics,
                "settings": {name: self.recipe[name] for name in ("pretraining", "optimizer", "scheduler", "trainer")},
                "preprocessing": self.recipe["data"]["preprocessing"],
            },
        )

    def text(self) -> str:
        """Model card of the network, in Markdown."""
        file = self.folder / "locator.json"
        told = json.loads(file.read_text(encoding="utf-8"))
        scores = told["scores_on_other_synthetic_patients"]
        return CARD.format(
            command="python -m idh_lightning.train experiment=pretrain_locator",
            commit=git_commit() or "unknown",
            **{name: told[name] for name in ("seed", "steps", "hours")},
            dice=scores.get("val/dice", float("nan")),
            accuracy=scores.get("val/vote_accuracy", float("nan")),
            patients=self.recipe["pretraining"]["validation_patients"],
        )

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, which a training that is gone on with adds to."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self.seconds = float(state_dict["seconds"])
