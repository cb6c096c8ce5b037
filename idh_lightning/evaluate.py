"""Judge a checkpoint on a labelled cohort: `python -m idh_lightning.evaluate checkpoint=... cohort=...`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from idh_lightning import build
from idh_lightning.allocation import freed_memory_kept
from idh_lightning.callbacks import Provenance
from idh_lightning.cohort import Cohort, Exclusion
from idh_lightning.cohort.seen import MEANS
from idh_lightning.entry import entry
from idh_lightning.errors import CheckpointError, CohortError, ConfigError
from idh_lightning.evaluation import (
    Development,
    Learnt,
    compare_with_internal,
    covariate_shift,
    covariate_summary,
    describe,
    read_table,
)
from idh_lightning.files import write_json, write_text
from idh_lightning.reports.html import write_report
from idh_lightning.train import quieten, refuse_other_sequences, summarise, write_features
from idh_lightning.volumes import VolumeStore

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> dict[str, Any]:
    """Predict, evaluate, explain and report a cohort with what a checkpoint has learnt; return its metrics.

    Nothing is learnt from the cohort. Writes a run folder as training does, but for checkpoints.

    Raises:
        CheckpointError: If the checkpoint cannot be used, or was written by a run that did not come to its report.
        CohortError: If the cohort has faults, or patients whom the checkpoint was trained or chosen on.
    """
    quieten()
    _check_settings(config)
    file = build.checkpoint_file(Path(config.checkpoint))
    model = build.load_classifier(file)
    learnt, development = _brought_along(file)
    _take_over(config, model.recipe)
    build.checked(config)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    run_folder = Path(config.paths.run)

    began = time.perf_counter()

    def screen(cohort: Cohort, store: VolumeStore) -> Cohort:
        return without_seen(
            cohort, store, development, means=config.seen_by, exclude=config.seen == "exclude", checkpoint=file
        )

    prepared = build.prepare(config, screen=screen)
    refuse_other_sequences(model.recipe["sequences"], prepared.cohort.sequences, file)
    known = {
        "cohort": prepared.cohort.name,
        "sequences": list(prepared.cohort.sequences),
        "weights": model.network.weights_origin.as_dict(),
        "checkpoint": str(file),
        "trained_on": development.cohort,
    }
    trainer = build.trainer(config, prepared, known)
    provenance = next(callback for callback in trainer.callbacks if isinstance(callback, Provenance))  # type: ignore[attr-defined]
    provenance.add_seconds("prepare", time.perf_counter() - began)
    data = build.data_module(config, prepared)
    with freed_memory_kept():
        trainer.test(model, datamodule=data, verbose=False)

    began = time.perf_counter()
    described = describe(prepared.cohort.studies, prepared.store)
    predictions = run_folder / "predictions.csv"
    evaluation = build.evaluation(config)
    results = evaluation(
        read_table(predictions),
        read_table(run_folder / "cohort.csv"),
        write_features(described, run_folder),
        learnt,
    )
    write_text(predictions, results.predictions.to_csv(index=False))
    studies = prepared.cohort.studies
    shared = development.seen.find(studies, described.fingerprints, means=config.seen_by, splits=("test",))
    metrics: dict[str, Any] = results.metrics | {
        "external": {
            "trained_on": development.cohort,
            "n_train": development.covariates["n"],
            "left_out": int(sum(exclusion.reason.startswith("seen in ") for exclusion in prepared.cohort.exclusions)),
            "seen_by": list(config.seen_by),
            **compare_with_internal(
                {"confidence": development.confidence, "test": development.test},
                results.metrics["test"],
                confidence=evaluation.confidence,
                shared=len({sighting.study.patient_id for sighting in shared}),
            ),
            "shift": covariate_shift(
                development.covariates,
                covariate_summary(prepared.table, described.covariates),
                confidence=evaluation.confidence,
            ),
        }
    }
    write_json(run_folder / "metrics.json", metrics)
    provenance.add_seconds("report", time.perf_counter() - began)
    provenance.write()
    write_report(run_folder)
    summarise(metrics, run_folder)
    return metrics


def without_seen(
    cohort: Cohort,
    store: VolumeStore,
    development: Development,
    *,
    means: list[str],
    exclude: bool,
    checkpoint: Path,
) -> Cohort:
    """Return a cohort without the patients whom a network was trained or chosen on.

    Args:
        cohort: Its volumes are in the store.
        store: Knows the hashes of the images.
        development: From the checkpoint.
        means: How patients are recognised, some of "patient_id" and "image".
        exclude: Whether they are left out, with the reason; else they are an error.
        checkpoint: For the message.

    Raises:
        CohortError: Listing all of them with the remedy.
    """
    fingerprints = {study.study_id: list(store.open(study).fingerprints.values()) for study in cohort.studies}
    found = development.seen.find(cohort.studies, fingerprints, means=means)
    if not found:
        return cohort
    if not exclude:
        rows = [f"  {s.study.study_id} (patient {s.study.patient_id}): of its {s.split}, by {s.how}" for s in found]
        patients = dict.fromkeys(sighting.study.patient_id for sighting in found)
        raise CohortError(
            f"cohort {cohort.name}: {len(found)} studies of {len(patients)} patients were used to train or choose "
            f"{checkpoint}; expected patients that it has not seen.\n" + "\n".join(rows) + "\nLeave them out with "
            f"cohort.exclude=[{','.join(patients)}], or all at once with seen=exclude. If the two cohorts merely "
            "number their patients alike, compare the images only: seen_by=[image]."
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
        faults.append("checkpoint: found none; expected a run folder or a .ckpt. Give checkpoint=PATH.")
    if config.seen not in ("error", "exclude"):
        faults.append(f"seen: found '{config.seen}'; expected error or exclude. Correct it.")
    means = list(config.seen_by or [])
    if not means or not set(means) <= set(MEANS):
        faults.append(f"seen_by: found {means}; expected some of {', '.join(MEANS)}. Correct it.")
    if faults:
        raise ConfigError("\n".join(faults))


def _brought_along(file: Path) -> tuple[Learnt, Development]:
    """Return what a run put into its checkpoint when it reported."""
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not {"learnt", "development"} <= set(content):
        raise CheckpointError(
            f"{file}: holds no threshold, calibration and patients; expected a checkpoint of a run that wrote its "
            "report (best.ckpt). Report that run: stages=[report] hydra.run.dir=RUN and the overrides it was made with."
        )
    return Learnt.from_dict(content["learnt"]), Development.from_dict(content["development"])


def _take_over(config: DictConfig, recipe: dict[str, Any]) -> None:
    """Put what the checkpoint decides into the configuration: preprocessing, sequences, explanation."""
    with open_dict(config):
        config.data.preprocessing = recipe["preprocessing"]
        config.data.missing = recipe["preprocessing"]["missing"]
        config.explain = recipe["explain"]
        if "sequences" in config.cohort:
            config.cohort.sequences = recipe["sequences"]


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate what the command line composes."""
    run(config)


if __name__ == "__main__":
    main()
