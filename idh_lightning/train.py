"""Train, test and explain: `python -m idh_lightning.train [overrides]`."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning
import pandas as pd
import wandb
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from idh_lightning import build
from idh_lightning.callbacks import Provenance
from idh_lightning.config import CONF_DIR
from idh_lightning.errors import CheckpointError, exits_with_message
from idh_lightning.files import write_json, write_text
from idh_lightning.inference import line_covariance, remember
from idh_lightning.reports import write_model_card, write_report

logger = logging.getLogger(__name__)

SUMMARY_METRICS: tuple[str, ...] = ("accuracy", "f1", "ppv", "sensitivity", "specificity", "auroc_bootstrap")


def run(config: DictConfig) -> dict[str, Any]:
    """Go through the stages of a run and return the test metrics: {metric: {value, low, high, n}}."""
    _quieten()
    build.checked(config)
    run_folder = Path(config.paths.run)
    run_folder.mkdir(parents=True, exist_ok=True)
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
        # A second W&B run in this process, as in a sweep, would else go on in the first one's record.
        wandb.finish()
    return metrics


def _stages(config: DictConfig, prepared: build.PreparedCohort, *, prepare_s: float) -> dict[str, Any]:
    run_folder = Path(config.paths.run)
    data = build.data_module(config, prepared)
    known: dict[str, Any] = {"cohort": prepared.cohort.name, "sequences": list(prepared.cohort.sequences)}
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    if "fit" in config.stages or checkpoint is None:
        model = build.classifier(config, prepared)
    else:
        model = build.load_classifier(checkpoint)
        _refuse_other_sequences(model.recipe["sequences"], prepared.cohort.sequences, checkpoint)
    known["weights"] = model.network.weights_origin.as_dict()
    trainer = build.trainer(config, prepared, known)
    provenance = next(callback for callback in trainer.callbacks if isinstance(callback, Provenance))  # type: ignore[attr-defined]
    provenance.add_seconds("prepare", prepare_s)
    provenance.record["volumes"] = {"built": prepared.report.built, "reused": prepared.report.reused}

    if "fit" in config.stages:
        provenance.record["batch_norm_calibrated_on"] = build.calibrate(model, data)
        bank = build.fill_bank(config, model, data)
        if bank is not None:
            provenance.add_seconds("bank", bank.elapsed_s)
            provenance.record["bank"] = {"computed": bank.computed, "reused": bank.reused}
        trainer.fit(model, datamodule=data)
        if "test" in config.stages:
            model = build.load_classifier(run_folder)
        if (remembered := remember(model.network, data, prepared.report.faults)) is not None:
            build.add_to_checkpoint(run_folder / "checkpoints" / "best.ckpt", training_range=remembered.to_dict())
    if "test" in config.stages:
        trainer.test(model, datamodule=data, verbose=False)
    if "report" not in config.stages:
        return {}
    began = time.perf_counter()
    metrics = report(config)
    provenance.add_seconds("report", time.perf_counter() - began)
    provenance.write()
    _summarise(metrics, run_folder)
    test: dict[str, Any] = metrics.get("test", {})
    return test


def report(config: DictConfig) -> dict[str, Any]:
    """Turn predictions.csv into metrics.json, figures and report.html, and return the metrics.

    What was learnt from validation patients (threshold, calibration, prediction sets) goes into the run's best.ckpt,
    so that it is used everywhere after.
    """
    run_folder = Path(config.paths.run)
    file = run_folder / "predictions.csv"
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; expected predictions to report. Add 'test' to stages.")
    results = build.evaluation(config)(pd.read_csv(file), pd.read_csv(run_folder / "cohort.csv"))
    write_text(file, results.predictions.to_csv(index=False))
    best = run_folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        chosen = results.predictions[results.predictions["split"] == "validation"]
        line = line_covariance(chosen["logit"], chosen["label"], results.learnt.calibrator)
        build.add_to_checkpoint(best, learnt=results.learnt.to_dict(), calibration_covariance=line)
    write_json(run_folder / "metrics.json", results.metrics)
    write_report(run_folder)
    card = write_model_card(run_folder)
    if best.is_file():
        build.add_to_checkpoint(best, model_card=card)
    metrics: dict[str, Any] = results.metrics
    return metrics


def _refuse_other_sequences(trained: list[str], found: tuple[str, ...], checkpoint: Path) -> None:
    if tuple(trained) != tuple(found):
        raise CheckpointError(
            f"{checkpoint}: trained on {', '.join(trained)}, while the cohort has {', '.join(found)}; expected "
            "the same sequences. Use another checkpoint or cohort."
        )


def _summarise(metrics: dict[str, Any], run_folder: Path) -> None:
    """Print the test metrics with their intervals, and where everything is."""
    table = Table(title="Test patients", title_justify="left")
    for heading in ("metric", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    names = {
        "ppv": "precision",
        "sensitivity": "recall (sensitivity)",
        "auroc_bootstrap": "ROC-AUC",
        "f1": "F1 (mutant)",
    }
    for metric in SUMMARY_METRICS:
        entry = metrics.get("test", {}).get(metric)
        if entry is None:
            continue
        shown = ["-" if entry.get(key) is None else f"{entry[key]:.3f}" for key in ("value", "low", "high")]
        table.add_row(names.get(metric, metric), shown[0], f"{shown[1]} to {shown[2]}", str(entry.get("n")))
    console = Console()
    console.print(table)
    for name in ("report.html", "metrics.json", "predictions.csv", "explanations", "figures", "checkpoints"):
        console.print(f"{name:>16}  {run_folder / name}", soft_wrap=True, highlight=False)


def _quieten() -> None:
    """Hide warnings of libraries that a user can do nothing about."""
    for message in (
        "torch.jit.script. is deprecated",  # timm_3d 1.0.1
        ".*does not have many workers.*",  # the queue has its own
        ".*Checkpoint directory .* exists.*",
        ".*Experiment logs directory .* exists.*",  # the run folder, which holds the configuration already
        ".*module.s. in eval mode at the start of training.*",  # the frozen stem
        ".*LeafSpec.* is deprecated.*",  # lightning 2.6.6
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
@exits_with_message
def main(config: DictConfig) -> float | None:
    """Run what the command line composes; return the test ROC-AUC, to be shown in a sweep."""
    value = run(config).get("auroc", {}).get("value")
    return None if value is None else float(value)


if __name__ == "__main__":
    main()
