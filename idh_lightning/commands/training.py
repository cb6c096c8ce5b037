"""Stages of a run, one after the other: locate, fit, test, explain, report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from idh_lightning.callbacks import finish_tracking
from idh_lightning.machine import is_first_process
from idh_lightning.runs import stages
from idh_lightning.runs.assembly import Run, assemble
from idh_lightning.runs.pretraining import pretrain
from idh_lightning.runs.rehearsal import check
from idh_lightning.runs.state import claimed, keep_recipe
from idh_lightning.runs.summary import print_disk_use, print_summary


def train(config: DictConfig) -> dict[str, Any]:
    """Go through the stages of a run and return its metrics: {split: {metric: {value, low, high, n}}}."""
    check(config)
    folder = Path(config.paths.run)
    with claimed(folder) if is_first_process() else nullcontext():
        keep_recipe(folder)
        try:
            return pretrain(config) if config.stages == ["pretrain"] else _staged(assemble(config))
        finally:
            finish_tracking()


def _staged(run: Run) -> dict[str, Any]:
    training = run.training
    if training is not None:
        stages.locate(run, training)
        stages.fit(run, training)
        if "test" in run.stages:
            stages.test(run, training)
        if not training.trainer.is_global_zero:
            return {}
    if "explain" in run.stages:
        stages.explain_run(run)
    metrics = stages.report_run(run) if "report" in run.stages else {}
    if training is None or "report" in run.stages:
        print_summary(metrics, run.folder)
    if training is not None:
        print_disk_use(run.folder, run.shared)
    return metrics


def train_for_score(config: DictConfig) -> float | None:
    """Train, and return the ROC-AUC of the validation patients.

    It is what a sweep may choose by; test patients choose nothing.
    """
    value = train(config).get("validation", {}).get("auroc", {}).get("value")
    return None if value is None else float(value)
