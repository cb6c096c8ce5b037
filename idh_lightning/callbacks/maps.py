"""Maps of chosen validation studies while training, and of all test studies at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from idh_lightning.attribution import (
    SCORE_COLUMNS,
    Method,
    explained_at_once,
    explanation_rows,
    mean_mask,
    volume_tensor,
)
from idh_lightning.callbacks.predictions import gathered
from idh_lightning.cli.tables import number
from idh_lightning.cohort import IDH, Study, Target
from idh_lightning.data import Batch, IDHDataModule
from idh_lightning.files import write_text
from idh_lightning.models import StemTailNetwork, VotingNetwork
from idh_lightning.models.radiomics import at_sites, sites_of
from idh_lightning.reports.drawing import (
    PanelDrawer,
    cam_panel_of,
    cores_left_to_drawing,
    drawing_processes,
    write_explanation,
)
from idh_lightning.reports.panels import save_cam_panel


class Explanations(Callback):
    """Writes explanations/<study_id>_cam.nii.gz, figures/cam/<study_id>.png and explanations.csv."""

    def __init__(
        self,
        *,
        method: Method,
        run_folder: Path,
        sequences: Sequence[str],
        target: Target = IDH,
        also: Mapping[str, Method] | None = None,
        validation_studies: int = 2,
        every_epochs: int = 2,
        test: bool = True,
        batch_size: int = 4,
    ) -> None:
        """Choose what is explained when.

        Args:
            method: Its maps are drawn, written and scored.
            run_folder: Holds the run's files.
            sequences: Names of the channels.
            target: Names the classes.
            also: More methods, whose maps of the test studies are scored beside those that are drawn.
            validation_studies: How many validation studies are followed through training, positive ones first.
            every_epochs: Distance between their maps, in epochs; 0 for none.
            test: Whether every test study is explained at the end.
            batch_size: Studies explained at once.
        """
        self.run_folder = run_folder
        self.sequences = tuple(sequences)
        self.target = target
        self.methods = (method, *(other for other in (also or {}).values() if other is not None))
        self.validation_studies = validation_studies
        self.every_epochs = every_epochs
        self.test = test
        self.batch_size = batch_size
        self._rows: list[dict[str, object]] = []
        self._mean_tumour: np.ndarray | None = None
        self._draw: PanelDrawer | None = None
        self._during_test = ExitStack()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the followed validation studies."""
        if (
            not trainer.is_global_zero
            or trainer.sanity_checking
            or not self.every_epochs
            or trainer.current_epoch % self.every_epochs
        ):
            return
        data, network = _data_module(trainer), _network(pl_module)
        followed = self._followed(data)
        for start in range(0, len(followed), self.batch_size):
            chunk = followed[start : start + self.batch_size]
            stored = [data.store.open(study) for study in chunk]
            volumes = volume_tensor(stored, network)
            with torch.no_grad():
                features, was_training = network.stem(volumes), network.training
                with at_sites(network, sites_of(network, chunk)):
                    probabilities = torch.softmax(network.eval().tail(features), dim=1)[:, 1].tolist()
                network.train(was_training)
            maps = self._maps(network, chunk, volumes, features, self.methods[:1])
            for study, item, (cam,), probability in zip(chunk, stored, maps, probabilities, strict=True):
                name = f"{study.study_id}_epoch{trainer.current_epoch + 1:03d}"
                path = self.run_folder / "figures" / "training" / f"{name}.png"
                inside = cam * (np.asarray(item.brain) > 0)
                chance = f"{self.target.chance} {number(probability)} before calibration"
                note = f", epoch {trainer.current_epoch + 1}, {chance}"
                save_cam_panel(path, **cam_panel_of(study, item, inside, self.sequences, note=note, target=self.target))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier maps, and have the features that predict a study kept for explaining it."""
        self._rows = []
        if self.test:
            self._during_test.enter_context(_network(pl_module).cache_stem())

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Explain, score and draw the test studies that were just predicted; their loader is the last one."""
        loaders: Any = trainer.test_dataloaders
        if not self.test or dataloader_idx + 1 < len(loaders):
            return
        data, network = _data_module(trainer), _network(pl_module)
        if self._draw is None:
            self._draw = self._during_test.enter_context(drawing_processes())
            self._mean_tumour = mean_mask(data.store.open(study).mask for study in data.studies["train"])
        studies = {study.study_id: study for study in data.studies["test"]}
        tested = [studies[study_id] for study_id in batch.study_ids]
        maps = self._maps(network, tested, batch.volumes, network.stem(batch.volumes), self.methods)
        with cores_left_to_drawing():
            for study, cams in zip(tested, maps, strict=True):
                stored = data.store.open(study)
                write_explanation(
                    self._draw, self.run_folder, study, stored, cams[0], self.sequences, target=self.target
                )
                named = {method.name: cam for method, cam in zip(self.methods, cams, strict=True)}
                with at_sites(network, sites_of(network, [study])):
                    self._rows += explanation_rows(network, self.methods, study, stored, named, self._mean_tumour)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for what is still being drawn, gather the scores of all processes and write explanations.csv."""
        if not self.test:
            return
        self._end_test()
        rows = gathered(trainer, self._rows)
        if not trainer.is_global_zero:
            return
        order = {study.study_id: index for index, study in enumerate(_data_module(trainer).studies["test"])}
        rows.sort(key=lambda row: order[str(row["study_id"])])
        table = pd.DataFrame(rows, columns=SCORE_COLUMNS)
        write_text(self.run_folder / "explanations.csv", table.to_csv(index=False))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the processes that draw."""
        self._end_test()

    def _end_test(self) -> None:
        self._draw = None
        self._during_test.close()

    def _followed(self, data: IDHDataModule) -> list[Study]:
        studies = sorted(data.studies["validation"], key=lambda study: study.study_id)
        wildtype, mutants = ([study for study in studies if study.label == label] for label in (0, 1))
        half = -(-self.validation_studies // 2)
        return (mutants[:half] + wildtype)[: self.validation_studies]

    def _maps(
        self,
        network: StemTailNetwork,
        studies: Sequence[Study],
        volumes: Tensor,
        features: Tensor,
        methods: Sequence[Method],
    ) -> Iterator[list[np.ndarray]]:
        """Yield the maps of each study, one by each method; the features are what the stem makes of the volumes."""
        # Outside inference mode, since a map needs gradients.
        with torch.inference_mode(False):
            size = explained_at_once(network, self.batch_size)
            both = zip(*(torch.split(each.clone(), size) for each in (volumes, features)), strict=True)
        for start, (some, theirs) in zip(range(0, len(studies), size), both, strict=True):
            at = at_sites(network, sites_of(network, studies[start : start + size]))
            with torch.inference_mode(False), network.with_stem_features(some, theirs), at:
                maps = [method(network, some).cpu().numpy() for method in methods]
            yield from map(list, zip(*maps, strict=True))


def _network(pl_module: LightningModule) -> StemTailNetwork:
    network: Any = pl_module.network
    if not isinstance(network, StemTailNetwork | VotingNetwork):
        raise TypeError(f"explanations need a network of this package, not {type(network).__name__}")
    return network  # type: ignore[return-value]  # the interface of both is the same


def _data_module(trainer: Trainer) -> IDHDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, IDHDataModule):
        raise TypeError("explanations need the trainer to run with an IDHDataModule")
    return data
