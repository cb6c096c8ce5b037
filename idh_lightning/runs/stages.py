"""Stages of a run: locate, fit, test, explain, report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.fabric.utilities.exceptions import MisconfigurationException

from idh_lightning.callbacks import CurveLogger, Tracker
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import SEQUENCES
from idh_lightning.cohort.checks import counted
from idh_lightning.data import FeatureBankDataModule
from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.evaluation import (
    DevelopmentCohort,
    Folds,
    ImageCovariates,
    PostProcessing,
    image_covariates,
    per_patient,
    read_table,
)
from idh_lightning.files import locked, write_json, write_text
from idh_lightning.inference import line_covariance
from idh_lightning.machine import freed_memory_kept, is_first_process
from idh_lightning.models import calibrate_batch_norm, segmentation_memory
from idh_lightning.models.segmentation import load_segmenter
from idh_lightning.ood import fit_ood_detector
from idh_lightning.reports.model_card import write_model_card
from idh_lightning.reports.run_page import write_report
from idh_lightning.runs.assembly import Run, Training, classifier_of
from idh_lightning.runs.explaining import write_map_comparison
from idh_lightning.runs.harmonising import combat
from idh_lightning.runs.last_checkpoint import read_last, repoint_checkpoint_paths
from idh_lightning.runs.locating import write_segmentation_scores
from idh_lightning.runs.memory import MemoryPlanner, require_memory
from idh_lightning.runs.state import LOCATOR_WEIGHTS, SEGMENTATION_SCORES
from idh_lightning.runs.summary import disk_mb

logger = logging.getLogger(__name__)


def locate(run: Run, training: Training) -> None:
    """Fine-tune the locator on the training patients and put it into the network, which it is frozen in from then on.

    A training that has begun goes on with the locator in its last.ckpt.
    """
    network, data, provenance = training.model.network, training.data, training.provenance
    tuning = training.fine_tuning
    if tuning is None or run.state.last is not None:
        return
    assert network.locator is not None
    weights, studies = run.folder / LOCATOR_WEIGHTS, data.studies["train"]
    with locked(run.folder / ".locating.lock"):
        # Others than the first of several processes, which notes what is finished, take what it has learnt.
        if not (run.state.is_finished("locate") if is_first_process() else weights.is_file()):
            run.state.begin("locate")
            began = time.perf_counter()
            with_masks = sum(data.store.open(study).mask is not None for study in studies)
            logger.info(
                "The locator learns from %d training studies, %d of them with a tumour mask.", len(studies), with_masks
            )
            shape = [tuning.studies_at_once(data.store), len(SEQUENCES), *data.store.preprocessing.shape]
            needed = require_memory(
                segmentation_memory(network.locator, shape),
                on_gpu=training.on_gpu,
                advice=lambda _: "Leave 'locate' out of stages, choose a smaller data.grid, or free some memory.",
            )
            learnt = tuning(
                network.locator,
                studies,
                data.store,
                seed=data.seed,
                folder=run.folder,
                make_trainer=training.make_trainer,
            )
            scores = write_segmentation_scores(run.folder, learnt, data.studies, data.store)
            provenance.add_seconds("locate", time.perf_counter() - began)
            provenance.record["locator"] = {"studies": len(studies), "with_masks": with_masks, "memory_gb": needed}
            found = scores.loc[scores["split"] == "validation", "dice"]
            logger.info(
                "Locator: %s",
                f"median Dice {found.median():.2f} on {counted(len(found), 'validation study', 'validation studies')}."
                if len(found)
                else "no validation study has a mask to compare with.",
            )
            run.state.finish("locate")
        network.locator.load_state_dict(load_segmenter(weights).state_dict())


def fit(run: Run, training: Training) -> None:
    """Train, from the beginning, from the weights of another run, or from where last.ckpt stands.

    The out-of-distribution detector of the training studies goes into best.ckpt.
    """
    model, data, trainer, last = training.model, training.data, training.trainer, run.state.last
    curves = training.loggers(CurveLogger)
    if not training.to_fit:
        for each in curves:
            each.keep()
        return
    provenance = training.provenance
    run.state.begin("fit")
    _harmonise(training)
    planner = MemoryPlanner(model, data, training.accumulate, training.on_gpu)
    provenance.record["memory_gb"] = planner.require()
    if last is None and training.start is None:
        provenance.record["batch_norm_calibrated_on"] = _calibrate(training)
    elif last is not None:
        content = read_last(last, model.recipe)
        repoint_checkpoint_paths(last, content)
        model.load_state_dict(content["state_dict"])  # before the bank is filled, since it is named after the stem
        epochs, steps = int(content["epoch"]) + 1, int(content["global_step"])  # its number, from 0, of the last epoch
        model.planned_steps = next((one.get("total_steps") for one in content["lr_schedulers"]), None)
        for each in curves:
            each.keep(steps)
        provenance.resumed(epochs=epochs, steps=steps)
        logger.info("Going on from %s, after %s and %d steps.", last, counted(epochs, "epoch"), steps)
    with planner.advise_on_shortage():
        with freed_memory_kept():
            _fill_bank(training)
        try:
            with freed_memory_kept():  # what filling the bank has freed went back
                trainer.fit(model, datamodule=data, ckpt_path=last)
                _let_go(training)
        except (RuntimeError, MisconfigurationException) as error:  # early stopping misses what it looks at
            if not trainer.fit_loop.done or training.monitor in trainer.callback_metrics:
                raise
            raise ConfigError(
                f"training ended after {trainer.global_step} steps, before its first validation; expected one epoch at "
                "least, since the best checkpoint is chosen by validation. Give more trainer.max_steps or "
                "trainer.max_time."
            ) from error
    if trainer.is_global_zero:
        detector = fit_ood_detector(model.network, data.store, data.studies)
        before = None if training.start is None else training.start.development
        earlier = None if before is None else before.seen
        replace(Checkpoint.read(run.folder), ood_detector=detector, earlier=earlier).write()
        run.state.finish("fit")


def _harmonise(training: Training) -> None:
    """Make the sites alike that the network is to harmonise, by its training patients; they go into its recipe."""
    network, head, data = training.model.network, training.model.network.radiomics, training.data
    before = {} if training.start is None else training.start.recipe["model"]
    if network.harmonise is None and before.get("sites"):
        logger.warning(
            "%s was trained with model.harmonise=%s, and this training harmonises no site, so its radiomics head "
            "begins on another scale. Give model.harmonise=COLUMN to do so here.",
            training.start.file if training.start else "",
            before["harmonise"],
        )
    if network.harmonise is None or head is None:
        return
    head.harmonise({})  # what another run has learnt of its sites
    changes = combat(network, data.studies["train"], data.store)
    head.harmonise(changes)
    training.model.recipe["model"]["sites"] = changes
    training.provenance.record["harmonised"] = {"column": network.harmonise, "sites": list(changes)}


def _let_go(training: Training) -> None:
    """Release of gradients and moments, which only training needs: three times what the weights that learn take."""
    training.model.zero_grad()
    training.trainer.strategy.optimizers = []
    training.trainer.strategy.lr_scheduler_configs = []


def _calibrate(training: Training) -> str:
    """Calibrate the BatchNorm of an untrained network; return in words on what, "nothing" if pretrained.

    With `data.calibrate_on: synthetic` they come from synthetic patients that are no patients of the cohort. The frozen
    stem is then the same for all folds of a cross-validation, which share one feature bank, and no patient who is
    tested in some fold has had any part in it.
    """
    network = training.model.network
    if network.weights_origin.pretrained:
        return "nothing"
    used = f"{calibrate_batch_norm(network, training.calibration())} {training.calibrated_on} volumes"
    logger.info("The network starts untrained: BatchNorm calibrated on %s.", used)
    return used


def _fill_bank(training: Training) -> None:
    """Compute the features that training on a bank needs, on the GPU if training will use one.

    The stem must be final by then, calibrated or pretrained.
    """
    data, provenance = training.data, training.provenance
    if not isinstance(data, FeatureBankDataModule):
        return
    if training.on_gpu:
        training.model.to(training.trainer.strategy.root_device)
    report = data.fill(training.model.network, training.augmentation)
    logger.info("Feature bank %s: %d views computed, %d reused.", report.folder, report.computed, report.reused)
    provenance.add_seconds("bank", report.elapsed_s)
    provenance.record["bank"] = {"computed": report.computed, "reused": report.reused}
    if report.note:
        provenance.record["bank"]["lock"] = report.note


def test(run: Run, training: Training) -> None:
    """Predict validation and test studies by the best checkpoint, into predictions.csv."""
    if run.state.is_finished("test"):
        return
    model = classifier_of(Checkpoint.read(run.folder)) if "fit" in run.stages else training.model
    model.sites = training.model.sites
    run.state.begin("test")
    with freed_memory_kept():
        training.trainer.test(model, datamodule=training.data, verbose=False)
    if training.trainer.is_global_zero:
        run.state.finish("test")


def explain_run(run: Run) -> None:
    """Explain the test studies by all methods of `explanation`, and write what is said of the maps."""
    predictions = run.folder / "predictions.csv"
    if not predictions.is_file():
        raise CheckpointError(
            f"{predictions}: there is no such file; expected calls to tell right from wrong. Add 'test' to stages."
        )
    with _noted(run, "explain") as to_do:
        if not to_do:
            return
        checkpoint = Checkpoint.read(run.folder)
        checkpoint.require_cohort(run.prepared.cohort)
        results = run.evaluation(read_table(predictions), read_table(run.folder / "cohort.csv"), None)
        write_map_comparison(
            run.map_comparison,
            checkpoint.network(),
            run.prepared,
            run.folder,
            post_processing=_of_one_run(results.learnt),
            trained_on=run.prepared.cohort.name,
        )


def report_run(run: Run) -> dict[str, Any]:
    """Turn predictions.csv into features.csv, metrics.json, figures and report.html, and return the metrics.

    What was learnt from validation patients (threshold, calibration, prediction sets) goes into the run's best.ckpt,
    so that it is used everywhere after; and with it what judging the network on another cohort takes: who was seen, how
    training patients looked, and how good it was here.
    """
    file = run.folder / "predictions.csv"
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; expected predictions to report. Add 'test' to stages.")
    with _noted(run, "report") as to_do:
        if not to_do:
            found: dict[str, Any] = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
            return found
        studies = run.prepared.cohort.studies
        described = image_covariates(studies, run.prepared.store)
        features = write_features(described, run.folder)
        results = run.evaluation(read_table(file), read_table(run.folder / "cohort.csv"), features)
        write_text(file, results.predictions.to_csv(index=False))
        if (segmented := run.folder / SEGMENTATION_SCORES).is_file():
            results.metrics["segmentation"] = run.evaluation.segmentation(pd.read_csv(segmented))
        write_json(run.folder / "metrics.json", results.metrics)
        write_report(run.folder)
        card = write_model_card(run.folder)
        if (run.folder / "checkpoints" / "best.ckpt").is_file():
            learnt, checkpoint = _of_one_run(results.learnt), Checkpoint.read(run.folder)
            chosen = per_patient(results.predictions[results.predictions["split"] == "validation"])
            developed = DevelopmentCohort.of(
                run.prepared.cohort.name, studies, run.prepared.table, described, results.metrics
            )
            replace(
                checkpoint,
                post_processing=learnt,
                calibration_covariance=np.array(line_covariance(chosen["logit"], chosen["label"], learnt.calibrator)),
                development=replace(developed, seen=replace(developed.seen, earlier=checkpoint.earlier)),
                model_card=card,
            ).write()
        metrics: dict[str, Any] = results.metrics
        for tracker in [] if run.training is None else run.training.loggers(Tracker):
            tracker.log_results(metrics)
        return metrics


def write_features(described: ImageCovariates, run_folder: Path) -> pd.DataFrame | None:
    """Write features.csv, where any study has a mask, and return it."""
    if described.features.empty:
        return None
    write_text(run_folder / "features.csv", described.features.to_csv(index=False))
    return described.features


def _of_one_run(learnt: PostProcessing | Folds) -> PostProcessing:
    """Post-processing of a run, which only pooled runs have several of."""
    assert isinstance(learnt, PostProcessing)
    return learnt


@contextmanager
def _noted(run: Run, stage: str) -> Iterator[bool]:
    """Time a stage and note it as finished; yield whether it is to be done.

    Without a trainer, as where a finished run is reported again, provenance.json goes on saying how the run was made.
    """
    if run.training is None:
        yield True
        return
    if run.state.is_finished(stage):
        yield False
        return
    run.state.begin(stage)
    began = time.perf_counter()
    yield True
    provenance = run.training.provenance
    provenance.add_seconds(stage, time.perf_counter() - began)
    if stage == "report":
        provenance.record["disk_mb"] = disk_mb(run.folder, run.shared)
    provenance.write()
    run.state.finish(stage)
