"""Train, test and explain: `python -m idh_lightning.train [overrides]`."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from idh_lightning import build
from idh_lightning.allocation import freed_memory_kept
from idh_lightning.batches import IDHDataModule
from idh_lightning.callbacks import CurveLogger, Provenance, Tracker, finish_tracking
from idh_lightning.cohort.seen import MEANS
from idh_lightning.commandline import expanded
from idh_lightning.entry import entry, silence_hydra, task_overrides
from idh_lightning.errors import CheckpointError, ConfigError, SplitError, exits_with_message
from idh_lightning.evaluation import Described, Development, describe, per_patient, read_table
from idh_lightning.files import write_json, write_text
from idh_lightning.inference import line_covariance, remember
from idh_lightning.memory_plan import advising, require_memory
from idh_lightning.module import IDHClassifier
from idh_lightning.reports.html import write_report
from idh_lightning.reports.model_card import write_model_card
from idh_lightning.reports.run import as_estimate
from idh_lightning.reports.vocabulary import METRICS, number
from idh_lightning.runstate import RunState, adopt, claimed, follow, keep_recipe, read_last, weights_of
from idh_lightning.terminal import FittingTable

logger = logging.getLogger(__name__)

SUMMARY_METRICS: tuple[str, ...] = ("auroc", "accuracy", "f1", "ppv", "sensitivity", "specificity")


def run(config: DictConfig) -> dict[str, Any]:
    """Go through the stages of a run and return its metrics: {split: {metric: {value, low, high, n}}}."""
    quieten()
    build.checked(config)
    run_folder = Path(config.paths.run)
    with claimed(run_folder) if build.is_first_process() else nullcontext():
        keep_recipe(run_folder)
        return _run(config, run_folder)


def _run(config: DictConfig, run_folder: Path) -> dict[str, Any]:
    logger.info("Run folder: %s", run_folder)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    began = time.perf_counter()
    prepared = build.prepare(config)
    logger.info(
        "Cohort %s: %d studies of %d patients, sequences %s.",
        prepared.cohort.name,
        len(prepared.table),
        prepared.table["patient_id"].nunique(),
        ", ".join(prepared.cohort.sequences),
    )
    try:
        metrics = _stages(config, prepared, prepare_s=time.perf_counter() - began)
    finally:
        finish_tracking()
    return metrics


def _stages(config: DictConfig, prepared: build.PreparedCohort, *, prepare_s: float) -> dict[str, Any]:
    run_folder = Path(config.paths.run)
    if set(config.stages) <= {"explain", "report"}:
        # No trainer is needed, and provenance.json goes on saying how the run was made.
        if "explain" in config.stages:
            explain(config, prepared, build.load_classifier(run_folder))
        metrics = report(config, prepared) if "report" in config.stages else {}
        summarise(metrics, run_folder)
        return metrics
    state, start = _state(config, run_folder)
    data = build.data_module(config, prepared)
    known: dict[str, Any] = {"cohort": prepared.cohort.name, "sequences": list(prepared.cohort.sequences)}
    to_fit = "fit" in config.stages and not state.is_finished("fit")
    if to_fit:
        model = build.classifier(config, prepared, start)
        if start is not None:
            refuse_learnt_from(prepared, start)
            known["trained_on_from"] = str(start.absolute())
            logger.info("Training on from the weights of %s, with a schedule of its own.", start)
    else:
        of_this_run = "fit" in config.stages or config.checkpoint in (None, "last")
        checkpoint = run_folder if of_this_run else Path(config.checkpoint)
        model = build.load_classifier(checkpoint)
        refuse_other_sequences(model.recipe["sequences"], prepared.cohort.sequences, checkpoint)
        if not of_this_run:
            refuse_learnt_from(prepared, build.checkpoint_file(checkpoint))
    known["overrides"] = task_overrides()
    known["volumes_sha256"] = build.fingerprint(prepared)
    known["weights"] = model.network.weights_origin.as_dict()
    trainer = build.trainer(config, prepared, known)
    provenance = next(callback for callback in trainer.callbacks if isinstance(callback, Provenance))  # type: ignore[attr-defined]
    provenance.add_seconds("prepare", prepare_s)
    provenance.record["volumes"] = {"built": prepared.report.built, "reused": prepared.report.reused}
    if prepared.report.note:
        provenance.record["volumes"]["lock"] = prepared.report.note

    curves = [each for each in trainer.loggers if isinstance(each, CurveLogger)]
    if to_fit:
        state.begin("fit")
        _fit(config, prepared, model, data, trainer, curves, provenance, state, start)
        if trainer.is_global_zero:
            if (remembered := remember(model.network, data, prepared.report.faults)) is not None:
                best = run_folder / "checkpoints" / "best.ckpt"
                build.add_to_checkpoint(best, training_range=remembered.to_dict())
            state.finish("fit")
        if "test" in config.stages:
            model = build.load_classifier(run_folder)
    else:
        for each in curves:
            each.keep()
    if "test" in config.stages and not state.is_finished("test"):
        state.begin("test")
        with freed_memory_kept():
            trainer.test(model, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            state.finish("test")
    if "explain" in config.stages and trainer.is_global_zero and not state.is_finished("explain"):
        state.begin("explain")
        began = time.perf_counter()
        explain(config, prepared, model)
        provenance.add_seconds("explain", time.perf_counter() - began)
        state.finish("explain")
    if not trainer.is_global_zero:
        return {}
    if "report" not in config.stages:
        _say_disk_use(config)
        return {}
    if state.is_finished("report"):
        metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    else:
        state.begin("report")
        began = time.perf_counter()
        metrics = report(config, prepared)
        provenance.add_seconds("report", time.perf_counter() - began)
        provenance.record["disk_mb"] = disk_mb(config)
        provenance.write()
        for tracker in (each for each in trainer.loggers if isinstance(each, Tracker)):
            tracker.log_results(metrics)
        state.finish("report")
    summarise(metrics, run_folder)
    _say_disk_use(config)
    return metrics


SHARED = {"data": "synthetic cohorts", "store": "preprocessed volumes", "bank": "features of the stem"}
"""Folders of `paths` that runs share -> what they hold."""


def disk_mb(config: DictConfig) -> dict[str, int]:
    """Return the size of the run folder, of its checkpoints, and of the folders that it shares with other runs."""
    run_folder = Path(config.paths.run)
    folders = {"run": run_folder, "checkpoints": run_folder / "checkpoints"}
    folders |= {name: Path(config.paths[name]) for name in SHARED}
    return {name: round(_bytes(folder) / 1e6) for name, folder in folders.items() if folder.is_dir()}


def _bytes(folder: Path) -> int:
    """Return the size of what is in a folder; other runs may write and remove files meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


def _say_disk_use(config: DictConfig) -> None:
    sizes = disk_mb(config)
    shared = [f"{sizes[name]} MB {what} ({config.paths[name]})" for name, what in SHARED.items() if name in sizes]
    Console(soft_wrap=True).print(
        f"{'on disk':>16}  {sizes['run']} MB this run ({sizes.get('checkpoints', 0)} MB checkpoints); shared by all "
        f"runs and made again if removed: {', '.join(shared) or 'nothing'}",
        highlight=False,
    )


def _state(config: DictConfig, run_folder: Path) -> tuple[RunState, Path | None]:
    """Return how far the run has come, and the checkpoint whose weights it begins with.

    With `checkpoint=` an unfinished run and a fit, that run is taken over first; with a finished one or a .ckpt, a
    training of its own begins with the weights.
    """
    go_on = config.checkpoint == "last"
    other = Path(config.checkpoint) if "fit" in config.stages and config.checkpoint and not go_on else None
    start = None if other is None else weights_of(other)
    adopting = other is not None and start is None
    if other is not None and adopting and build.is_first_process():
        adopt(other, run_folder)
    state = RunState(run_folder, go_on=go_on or adopting)
    if build.is_first_process() and go_on:
        state.clean()
        for stage in (stage for stage in config.stages if state.is_finished(stage)):
            logger.info("Stage %s is finished; it is not done again.", stage)
    return state, start


def _fit(
    config: DictConfig,
    prepared: build.PreparedCohort,
    model: IDHClassifier,
    data: IDHDataModule,
    trainer: lightning.Trainer,
    curves: Sequence[CurveLogger],
    provenance: Provenance,
    state: RunState,
    start: Path | None,
) -> None:
    """Train, from the beginning, from the weights of another run, or from where last.ckpt stands."""
    place: Any = {"accumulate": int(config.data.accumulate), "on_gpu": build.on_gpu(config.trainer)}
    provenance.record["memory_gb"] = require_memory(model, data, **place)
    if state.last is None and start is None:
        provenance.record["batch_norm_calibrated_on"] = build.calibrate(config, prepared, model, data)
    elif state.last is not None:
        content = read_last(state.last, model.recipe)
        follow(state.last, content)
        model.load_state_dict(content["state_dict"])  # before the bank is filled, since it is named after the stem
        steps = int(content["global_step"])
        model.planned_steps = next((one.get("total_steps") for one in content["lr_schedulers"]), None)
        for each in curves:
            each.keep(steps)
        provenance.resumed(epochs=int(content["epoch"]), steps=steps)
        logger.info("Going on from %s: epoch %d, step %d.", state.last, content["epoch"], steps)
    with advising(model, data, **place):
        with freed_memory_kept():
            bank = build.fill_bank(config, model, data)
        if bank is not None:
            provenance.add_seconds("bank", bank.elapsed_s)
            provenance.record["bank"] = {"computed": bank.computed, "reused": bank.reused}
            if bank.note:
                provenance.record["bank"]["lock"] = bank.note
        try:
            with freed_memory_kept():  # what filling the bank has freed went back
                trainer.fit(model, datamodule=data, ckpt_path=state.last)
        except (RuntimeError, MisconfigurationException) as error:  # early stopping misses what it looks at
            if not trainer.fit_loop.done or config.monitor.metric in trainer.callback_metrics:
                raise
            raise ConfigError(
                f"training ended after {trainer.global_step} steps, before its first validation; expected one epoch at "
                "least, since the best checkpoint is chosen by validation. Give more trainer.max_steps or "
                "trainer.max_time."
            ) from error


def explain(config: DictConfig, prepared: build.PreparedCohort, model: IDHClassifier) -> None:
    """Explain the test studies by all methods of `explanation`, and write what is said of the maps."""
    run_folder = Path(config.paths.run)
    predictions = run_folder / "predictions.csv"
    if not predictions.is_file():
        raise CheckpointError(
            f"{predictions}: there is no such file; expected calls to tell right from wrong. Add 'test' to stages."
        )
    refuse_other_sequences(model.recipe["sequences"], prepared.cohort.sequences, run_folder)
    studies = build.studies_by_split(prepared)
    results = build.evaluation(config)(read_table(predictions), read_table(run_folder / "cohort.csv"), None)
    build.map_comparison(config)(
        model.network.eval(),
        prepared.store,
        studies["test"],
        studies["train"],
        learnt=results.learnt,
        sequences=prepared.cohort.sequences,
        folder=run_folder,
        cohort=prepared.cohort.name,
        trained_on=prepared.cohort.name,
    )


def report(config: DictConfig, prepared: build.PreparedCohort) -> dict[str, Any]:
    """Turn predictions.csv into features.csv, metrics.json, figures and report.html, and return the metrics.

    What was learnt from validation patients (threshold, calibration, prediction sets) goes into the run's best.ckpt,
    so that it is used everywhere after; and with it what judging the network on another cohort takes: who was seen, how
    training patients looked, and how good it was here.
    """
    run_folder = Path(config.paths.run)
    file = run_folder / "predictions.csv"
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; expected predictions to report. Add 'test' to stages.")
    studies = prepared.cohort.studies
    described = describe(studies, prepared.store)
    features = write_features(described, run_folder)
    results = build.evaluation(config)(read_table(file), read_table(run_folder / "cohort.csv"), features)
    write_text(file, results.predictions.to_csv(index=False))
    best = run_folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        chosen = per_patient(results.predictions[results.predictions["split"] == "validation"])
        development = Development.of(prepared.cohort.name, studies, prepared.table, described, results.metrics)
        build.add_to_checkpoint(
            best,
            learnt=results.learnt.to_dict(),
            calibration_covariance=line_covariance(chosen["logit"], chosen["label"], results.learnt.calibrator),
            development=development.to_dict(),
        )
    write_json(run_folder / "metrics.json", results.metrics)
    write_report(run_folder)
    card = write_model_card(run_folder)
    if best.is_file():
        build.add_to_checkpoint(best, model_card=card)
    metrics: dict[str, Any] = results.metrics
    return metrics


def refuse_learnt_from(prepared: build.PreparedCohort, checkpoint: Path) -> None:
    """Raise a SplitError if a network learnt from patients by whom it would now be chosen or tested.

    They are known by identifier where the cohort is that of the checkpoint, else by the voxels of their images.
    """
    content = build.read_checkpoint(checkpoint)[1]
    if "development" not in content:
        logger.warning("%s: its run wrote no report, so who trained it cannot be compared with the split.", checkpoint)
        return
    development, studies = Development.from_dict(content["development"]), build.studies_by_split(prepared)
    means = MEANS if development.cohort == prepared.cohort.name else ("image",)
    now = [*studies["validation"], *studies["test"]]
    fingerprints = {study.study_id: list(prepared.store.open(study).fingerprints.values()) for study in now}
    for split, before in (("test", ("train", "validation")), ("validation", ("train",))):
        if found := development.seen.find(studies[split], fingerprints, means=means, splits=before):
            raise SplitError(
                f"{checkpoint}: learnt from {len(found)} of the {len(studies[split])} {split} studies, such as "
                f"{found[0].study.study_id}; expected patients that it has not seen. Use the split of its run: "
                f"split=given split.file={checkpoint.parent.parent / 'cohort.csv'}"
            )


def refuse_other_sequences(trained: list[str], found: tuple[str, ...], checkpoint: Path) -> None:
    """Raise a CheckpointError unless a cohort has the sequences that a network was trained on, in the same order."""
    if tuple(trained) != tuple(found):
        raise CheckpointError(
            f"{checkpoint}: trained on {', '.join(trained)}, while the cohort has {', '.join(found)}; expected "
            "the same sequences. Use another checkpoint or cohort."
        )


def write_features(described: Described, run_folder: Path) -> pd.DataFrame | None:
    """Write features.csv, where any study has a mask, and return it."""
    if described.features.empty:
        return None
    write_text(run_folder / "features.csv", described.features.to_csv(index=False))
    return described.features


def summarise(metrics: dict[str, Any], run_folder: Path) -> None:
    """Print the test metrics with their intervals, and where everything is."""
    table = FittingTable("Test patients", ("metric", "value", "95 % interval", "n"))
    for metric in SUMMARY_METRICS:
        found = as_estimate(metrics.get("test", {}).get(metric))
        if found is not None:
            value = "-" if found.value is None else number(found.value)
            table.add_row(METRICS[metric].name, value, found.interval or "-", str(found.n))
    console = Console()
    console.print(table)
    for name in (
        "report.html",
        "explanations.html",
        "metrics.json",
        "predictions.csv",
        "explanations",
        "figures",
        "checkpoints",
    ):
        if (run_folder / name).exists():
            console.print(f"{name:>16}  {run_folder / name}", soft_wrap=True, highlight=False)


def _product(*factors: int) -> int:
    """Return a product, for the number of folds in conf/sweep/folds.yaml."""
    return math.prod(factors)


def quieten() -> None:
    """Hide warnings of libraries that a user can do nothing about."""
    silence_hydra()
    for message in (
        "torch.jit.script. is deprecated",  # timm_3d 1.0.1
        ".*does not have many workers.*",  # the queue has its own
        ".*smaller than the logging interval.*",  # a small cohort
        ".*Checkpoint directory .* exists.*",
        ".*Experiment logs directory .* exists.*",  # the run folder, which holds the configuration already
        ".*module.s. in eval mode at the start of training.*",  # the frozen stem
        ".*LeafSpec.* is deprecated.*",  # lightning 2.6.6
    ):
        warnings.filterwarnings("ignore", message=message)
    if not build.is_first_process():
        logging.disable(logging.INFO)  # the first of several processes speaks for all
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


@entry("train")
def main(config: DictConfig) -> float | None:
    """Run what the command line composes.

    Returns:
        The ROC-AUC of the validation patients: what a sweep may choose by. Test patients choose nothing.
    """
    value = run(config).get("validation", {}).get("auroc", {}).get("value")
    return None if value is None else float(value)


@exits_with_message
def command() -> None:
    """Read `--rerun` and `--resume`, then do what the command line says."""
    with warnings.catch_warnings():
        silence_hydra()
        OmegaConf.register_new_resolver("product", _product, replace=True)
    sys.argv[1:] = expanded(sys.argv[1:])
    main()


if __name__ == "__main__":
    command()
