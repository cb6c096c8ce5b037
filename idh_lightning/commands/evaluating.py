"""External validation of a checkpoint on a labelled cohort that it has not seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import Cohort, Exclusion
from idh_lightning.cohort.leakage import MEANS
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.evaluation import (
    DevelopmentCohort,
    ImageCovariates,
    compare_with_internal,
    covariate_shift,
    covariate_summary,
    image_covariates,
    read_table,
)
from idh_lightning.files import write_json, write_text
from idh_lightning.machine import freed_memory_kept
from idh_lightning.reports.run_page import write_report
from idh_lightning.runs.assembly import Run, assemble
from idh_lightning.runs.preparation import take_target_over
from idh_lightning.runs.rehearsal import check
from idh_lightning.runs.stages import write_features
from idh_lightning.runs.summary import print_summary
from idh_lightning.volumes import VolumeStore

logger = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Predict, evaluate, explain and report a cohort with what a checkpoint has learnt; return its metrics.

    Nothing is learnt from the cohort. Writes a run folder as training does, but for checkpoints.

    Raises:
        CheckpointError: If the checkpoint cannot be used, or was written by a run that did not come to its report.
        CohortError: If the cohort has faults, or patients whom the checkpoint was trained or chosen on.
    """
    _check_settings(config)
    checkpoint = Checkpoint.read(config.checkpoint)
    post_processing, development = checkpoint.reported()
    recipe = checkpoint.recipe
    with open_dict(config):
        config.data.preprocessing = recipe["preprocessing"]
        config.data.missing = recipe["preprocessing"]["missing"]
        config.explain = recipe["explain"]
        if "sequences" in config.cohort:
            config.cohort.sequences = recipe["sequences"]
        take_target_over(config, checkpoint)
    check(config)
    screen = partial(without_seen, checkpoint=checkpoint, means=config.seen_by, exclude=config.seen == "exclude")
    run = assemble(config, checkpoint=checkpoint, screen=screen)
    training, prepared = run.training, run.prepared
    assert training is not None
    with freed_memory_kept():
        training.trainer.test(training.model, datamodule=training.data, verbose=False)

    began = time.perf_counter()
    described = image_covariates(prepared.cohort.studies, prepared.store)
    predictions = run.folder / "predictions.csv"
    results = run.evaluation(
        read_table(predictions),
        read_table(run.folder / "cohort.csv"),
        write_features(described, run.folder),
        post_processing,
    )
    write_text(predictions, results.predictions.to_csv(index=False))
    external = _compared(run, development, described, results.metrics["test"], means=config.seen_by)
    external |= {"notice": checkpoint.notice} if checkpoint.notice else {}
    metrics: dict[str, Any] = results.metrics | {"external": external}
    write_json(run.folder / "metrics.json", metrics)
    training.provenance.add_seconds("report", time.perf_counter() - began)
    training.provenance.write()
    write_report(run.folder)
    print_summary(metrics, run.folder)
    return metrics


def _compared(
    run: Run, development: DevelopmentCohort, described: ImageCovariates, test: Mapping[str, Any], *, means: list[str]
) -> dict[str, Any]:
    """Comparison of a cohort with the internal test patients and, in its covariates, with the training patients."""
    cohort, confidence = run.prepared.cohort, run.evaluation.confidence
    shared = development.seen.find(cohort.studies, described.fingerprints, means=means, splits=("test",))
    return {
        "trained_on": development.cohort,
        "n_train": development.covariates["n"],
        "left_out": int(sum(exclusion.reason.startswith("seen in ") for exclusion in cohort.exclusions)),
        "seen_by": list(means),
        **compare_with_internal(
            {"confidence": development.confidence, "test": development.test},
            test,
            confidence=confidence,
            shared=len({sighting.study.patient_id for sighting in shared}),
        ),
        "shift": covariate_shift(
            development.covariates,
            covariate_summary(run.prepared.table, described.covariates),
            confidence=confidence,
        ),
    }


def without_seen(
    cohort: Cohort, store: VolumeStore, *, checkpoint: Checkpoint, means: list[str], exclude: bool
) -> Cohort:
    """Cohort without the patients whom the network of a checkpoint was trained or chosen on, its volumes in the store.

    They are recognised by `means`, some of "patient_id" and "image". Unless they are to be excluded, with the reason, a
    CohortError lists all of them with the remedy.
    """
    if lacking := {s.study_id: why for s in cohort.studies if (why := checkpoint.lacking(s.files))}:
        rows = [f"  {name}: {why}" for name, why in lacking.items()]
        raise CohortError(
            f"cohort {cohort.name}: {len(lacking)} studies cannot be judged.\n" + "\n".join(rows) + "\nOr leave "
            f"them out with {to_paste('cohort.exclude', list(lacking))}"
        )
    fingerprints = {study.study_id: list(store.open(study).fingerprints.values()) for study in cohort.studies}
    _, development = checkpoint.reported()
    found = development.seen.find(cohort.studies, fingerprints, means=means)
    if not found:
        return cohort
    if not exclude:
        rows = [f"  {s.study.study_id} (patient {s.study.patient_id}): of its {s.split}, by {s.how}" for s in found]
        patients = dict.fromkeys(sighting.study.patient_id for sighting in found)
        raise CohortError(
            f"cohort {cohort.name}: {len(found)} studies of {len(patients)} patients were used to train or choose "
            f"{checkpoint.file}; expected patients that it has not seen.\n" + "\n".join(rows) + "\nLeave them out with "
            f"{to_paste('cohort.exclude', list(patients))}, or all at once with seen=exclude. If the two cohorts "
            "merely number their patients alike, compare the images only: seen_by=[image]."
        )
    left = cohort.without(
        Exclusion(study_id=s.study.study_id, patient_id=s.study.patient_id, reason=s.reason) for s in found
    )
    lost = len(cohort.studies) - len(left.studies)
    logger.warning("%d of %d studies were seen in training or validation; left out.", lost, len(cohort.studies))
    return left


def _check_settings(config: DictConfig) -> None:
    faults = []
    if OmegaConf.is_missing(config, "checkpoint") or not config.checkpoint:
        faults.append("checkpoint: found none; expected a run folder, a .ckpt or pretrained. Give checkpoint=PATH.")
    if config.seen not in ("error", "exclude"):
        faults.append(f"seen: found '{config.seen}'; expected error or exclude. Correct it.")
    means = list(config.seen_by or [])
    if not means or not set(means) <= set(MEANS):
        faults.append(f"seen_by: found {means}; expected some of {', '.join(MEANS)}. Correct it.")
    if faults:
        raise ConfigError("\n".join(faults))
