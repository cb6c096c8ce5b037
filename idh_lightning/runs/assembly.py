"""Assembly of a run: the configuration comes in, objects go out, once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import lightning
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from idh_lightning.callbacks import BatchSeed, PredictionWriter, Provenance, StopTogether, Tracker, WholeCheckpointIO
from idh_lightning.callbacks.tracking import without_places
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import task_overrides
from idh_lightning.cohort import IDH, Study
from idh_lightning.cohort.checks import counted
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.config.places import without_folders
from idh_lightning.data import IDHDataModule
from idh_lightning.errors import CheckpointError
from idh_lightning.evaluation import Evaluation
from idh_lightning.machine import is_first_process
from idh_lightning.models import LATER, WeightsOrigin
from idh_lightning.models.radiomics import sites_of
from idh_lightning.module import IDHClassifier
from idh_lightning.phantom import PhantomCohort
from idh_lightning.runs.locating import FineTuning
from idh_lightning.runs.preparation import PreparedCohort, Screen, prepare_configured, volume_store
from idh_lightning.runs.rehearsal import make_trainer, on_gpu, optimizer_of
from idh_lightning.runs.state import SHARED_FOLDERS, RunState, copy_training_state, weights_of

logger = logging.getLogger(__name__)

CALIBRATION_VOLUMES = 32
"""Volumes from which an untrained network takes its BatchNorm statistics."""

CALIBRATION_BATCH = 8
"""Synthetic volumes whose statistics are taken at once."""

CALIBRATION_SEED = 1_000_003
"""Of the synthetic patients for calibration."""

WORKERS_BESIDE_A_GPU = 4
"""Processes that read and augment where a GPU trains. Beside an H200 a study at 128^3 took 0.13 s with four and with
sixteen, which took four times as much memory (10 and 41 GB). On two cores that train themselves it took 0.34 s without
and 0.45 s with two.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Objects that fit and test.

    Attributes:
        model: To fit, or that of a checkpoint.
        data: Of the cohort of the run.
        trainer: With its callbacks and loggers.
        provenance: One of its callbacks.
        start: Checkpoint whose weights the fit begins with.
        to_fit: Whether the fit is asked for and not finished.
        accumulate: Steps per optimizer step.
        on_gpu: Whether the network trains on a GPU.
        monitor: Metric that the best checkpoint is chosen by.
        augmentation: Settings of the augmentation in primitives, which name a feature bank.
        calibration: Batches [B, C, D, H, W] that an untrained network takes its BatchNorm statistics from.
        calibrated_on: Their kind, "synthetic" or "training".
        fine_tuning: Of the locator; None where the stage `locate` is not asked for.
        make_trainer: From settings that differ to another trainer for the run's device.
    """

    model: IDHClassifier
    data: IDHDataModule
    trainer: lightning.Trainer
    provenance: Provenance
    start: Checkpoint | None
    to_fit: bool
    accumulate: int
    on_gpu: bool
    monitor: str
    augmentation: Mapping[str, Any]
    calibration: Callable[[], Iterator[Tensor]]
    calibrated_on: str
    fine_tuning: FineTuning | None
    make_trainer: Callable[..., lightning.Trainer]

    def loggers(self, kind: type[Any]) -> list[Any]:
        """Loggers of a kind."""
        return [each for each in self.trainer.loggers if isinstance(each, kind)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Run, assembled.

    Attributes:
        folder: Of the run.
        stages: Asked for.
        prepared: Cohort, split and volumes.
        evaluation: Predictions and cohort -> metrics.
        map_comparison: Networks and studies -> scored maps.
        shared: Name in SHARED_FOLDERS -> folder.
        state: Finished stages.
        training: None where no trainer is needed.
    """

    folder: Path
    stages: Sequence[str]
    prepared: PreparedCohort
    evaluation: Evaluation
    map_comparison: Any
    shared: Mapping[str, Path]
    state: RunState
    training: Training | None = None


def assemble(config: DictConfig, *, checkpoint: Checkpoint | None = None, screen: Screen | None = None) -> Run:
    """Cohort, split, volumes, data module, model, trainer and evaluation of a checked configuration.

    Args:
        config: As conf/train.yaml or conf/evaluate.yaml compose it.
        checkpoint: Judged on a cohort that it has not seen; None to train, or to test what the configuration names.
        screen: Leaves studies out of the cohort; see `prepare_cohort`.

    Raises:
        CohortError: If the cohort is faulty.
        SplitError: If its patients cannot be split, or a checkpoint has learnt from those who would now test it.
        CheckpointError: If a checkpoint cannot be used.
    """
    folder = Path(config.paths.run)
    logger.info("Run folder: %s", folder)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    began = time.perf_counter()
    prepared = prepare_configured(config, screen=screen)
    logger.info(
        "Cohort %s: %d studies of %d patients, sequences %s.",
        prepared.cohort.name,
        len(prepared.table),
        prepared.table["patient_id"].nunique(),
        ", ".join(prepared.cohort.sequences),
    )
    stages = list(config.get("stages", ["test"]))
    without_trainer = checkpoint is None and set(stages) <= {"explain", "report"}
    state, start = (RunState(folder, go_on=True), None) if without_trainer or checkpoint else _state(config, folder)
    training = None if without_trainer else _training(config, prepared, state, start, checkpoint)
    if training is not None:
        training.provenance.add_seconds("prepare", time.perf_counter() - began)
    return Run(
        folder=folder,
        stages=stages,
        prepared=prepared,
        evaluation=replace(instantiate_section(config.evaluation), target=prepared.cohort.target),
        map_comparison=instantiate_section(config.explanation) if "explanation" in config else None,
        shared={name: Path(config.paths[name]) for name in SHARED_FOLDERS if name in config.paths},
        state=state,
        training=training,
    )


def data_module(config: DictConfig, prepared: PreparedCohort) -> IDHDataModule:
    """Data module of a prepared cohort."""
    workers = config.data.batches.workers
    if workers is None:
        workers = min(joblib.cpu_count(), WORKERS_BESIDE_A_GPU) if on_gpu(config.trainer) else 0
    made: IDHDataModule = instantiate_section(config.data.batches, _partial_=True)(
        workers=workers,
        studies=prepared.by_split,
        store=prepared.store,
        augmentation=instantiate_section(config.augment),
        seed=config.seed,
    )
    return made


def _state(config: DictConfig, folder: Path) -> tuple[RunState, Path | None]:
    """State of a run, and the checkpoint whose weights it begins with.

    With `checkpoint=` an unfinished run and a fit, that run is taken over first; with a finished one or a .ckpt, a
    training of its own begins with the weights.
    """
    go_on = config.checkpoint == "last"
    other = str(config.checkpoint) if "fit" in config.stages and config.checkpoint and not go_on else None
    start = None if other is None else weights_of(other)
    adopting = other is not None and start is None
    if other is not None and adopting and is_first_process():
        copy_training_state(Path(other), folder)
    state = RunState(folder, go_on=go_on or adopting)
    if is_first_process() and go_on:
        state.clean()
        for stage in (stage for stage in config.stages if state.is_finished(stage)):
            logger.info("Stage %s is finished; it is not done again.", stage)
    return state, start


def _training(
    config: DictConfig, prepared: PreparedCohort, state: RunState, start: Path | None, judged: Checkpoint | None
) -> Training:
    data = data_module(config, prepared)
    known: dict[str, Any] = {
        "cohort": prepared.cohort.name,
        "target": prepared.cohort.target.to_dict(),
        "sequences": list(prepared.cohort.sequences),
    }
    to_fit = judged is None and "fit" in config.stages and not state.is_finished("fit")
    began_with = None if start is None else Checkpoint.read(start)
    if to_fit:
        model = classifier(config, prepared, began_with)
        if began_with is not None:
            prepared.refuse_learnt_from(began_with)
            known["trained_on_from"] = str(began_with.file.absolute())
            logger.info("Training on from the weights of %s, with a schedule of its own.", began_with.file)
    else:
        own = judged is None and ("fit" in config.stages or config.checkpoint in (None, "last"))
        used = judged or Checkpoint.read(state.run_folder if own else config.checkpoint)
        model = classifier_of(used)
        used.require_cohort(prepared.cohort)
        if judged is None and not own:
            prepared.refuse_learnt_from(used)
        if judged is not None:
            known |= {"checkpoint": str(judged.file), "trained_on": judged.reported()[1].cohort}
    _name_sites(model, prepared.cohort.studies)
    known["overrides"] = task_overrides()
    known["volumes_sha256"] = prepared.sha256
    known["weights"] = model.network.weights_origin.as_dict()
    trainer = _trainer(config, prepared, known)
    provenance = next(callback for callback in trainer.callbacks if isinstance(callback, Provenance))  # type: ignore[attr-defined]
    provenance.record["volumes"] = {"built": prepared.report.built, "reused": prepared.report.reused}
    if prepared.report.note:
        provenance.record["volumes"]["lock"] = prepared.report.note
    synthetic = config.data.get("calibrate_on") == "synthetic"
    settings: Any = OmegaConf.to_container(config.augment, resolve=True) if config.augment else {}
    return Training(
        model=model,
        data=data,
        trainer=trainer,
        provenance=provenance,
        start=began_with,
        to_fit=to_fit,
        accumulate=int(config.data.get("accumulate", 1)),
        on_gpu=on_gpu(config.trainer),
        monitor=str(config.monitor.metric) if "monitor" in config else "",
        augmentation=settings,
        calibration=partial(_synthetic_batches, config, prepared)
        if synthetic
        else partial(data.calibration_batches, CALIBRATION_VOLUMES),
        calibrated_on="synthetic" if synthetic else "training",
        fine_tuning=instantiate_section(config.locating) if to_fit and "locate" in config.stages else None,
        make_trainer=partial(make_trainer, config.trainer),
    )


def classifier(config: DictConfig, prepared: PreparedCohort, start: Checkpoint | None = None) -> IDHClassifier:
    """Model to train for the sequences of a cohort.

    It begins with the weights of the checkpoint `start`, or without one with those that `model.weights` says.
    Unless the checkpoint fits, a CheckpointError is raised.
    """
    given: dict[str, Any] = {} if start is None else {"weights": LATER}
    if start is not None and config.model.locator is not None:
        given["locator"] = start.locator()
    # The voxels of the package have learnt to vote on IDH alone.
    patients = _training_patients(prepared, start) if prepared.cohort.target == IDH else None
    given["training_patients"] = patients
    network = instantiate_section(config.model, _partial_=True)(sequences=prepared.cohort.sequences, **given)
    if start is not None:
        start.require_target(prepared.cohort.target)
        network.weights_origin = WeightsOrigin(**start.recipe["weights"])
    elif prepared.cohort.target != IDH and network.vote is not None and "locate" not in config.stages:
        network.vote.silence()
    recipe = _recipe(config, prepared, network.weights_origin)
    recipe["model"]["training_patients"] = patients
    model = IDHClassifier(
        network=network,
        objective=instantiate_section(config.objective),
        optimizer=optimizer_of(config),
        scheduler=instantiate_section(config.scheduler, _partial_=True),
        weight_decay=float(config.optimizer.get("weight_decay", 0.0)),
        recipe=recipe,
    )
    if start is not None:
        # As objects, so that a setting which an older recipe does not have yet counts as its default.
        read: dict[str, Callable[[Any], Any]] = {"preprocessing": instantiate_section, "sequences": list}
        differ = [key for key, made in read.items() if made(start.recipe[key]) != made(recipe[key])]
        if differ:
            found, expected = (", ".join(str(of[key]) for key in differ) for of in (start.recipe, recipe))
            raise CheckpointError(
                f"{start.file}: learnt from other {' and '.join(differ)}: {found}; expected {expected}. Use the "
                "settings of its run."
            )
        start.load_into(network)
    return model


def _training_patients(prepared: PreparedCohort, start: Checkpoint | None) -> int:
    """Number of patients that a training learns from, or that the checkpoint which it begins with did, if more."""
    before = 0 if start is None else start.recipe["model"].get("training_patients") or 0
    return max(before, len({study.patient_id for study in prepared.by_split["train"]}))


def _name_sites(model: IDHClassifier, studies: Sequence[Study]) -> None:
    """Tell a model that harmonises sites those of the studies; warn of sites that a trained one does not know."""
    model.sites = dict(zip((study.study_id for study in studies), sites_of(model.network, studies), strict=True))
    known = model.recipe["model"].get("sites") or {}
    other = Counter(site for site in model.sites.values() if site not in known) if known else {}
    for site, number in sorted(other.items()):
        logger.warning(
            "Site %s: %s not harmonised; the network knows %s.",
            repr(site) if site else "not given",
            counted(number, "study is", "studies are"),
            ", ".join(known),
        )


def classifier_of(checkpoint: Checkpoint) -> IDHClassifier:
    """Model of a checkpoint, to be tested."""
    objective = instantiate_section(checkpoint.recipe["objective"])
    return IDHClassifier(network=checkpoint.network(), objective=objective, recipe=dict(checkpoint.recipe)).eval()


def _recipe(config: DictConfig, prepared: PreparedCohort, origin: WeightsOrigin) -> dict[str, Any]:
    """Settings that a checkpoint must carry so that nothing else is needed to use it, in primitives."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    recipe: dict[str, Any] = {
        "model": plain["model"],
        "objective": plain["objective"],
        "preprocessing": plain["data"]["preprocessing"],
        "explain": plain["explain"],
        "sequences": list(prepared.cohort.sequences),
        "cohort": prepared.cohort.name,
        "target": prepared.cohort.target.to_dict(),
        "weights": origin.as_dict(),
        "seed": plain["seed"],
        "fold": plain["fold"],
    }
    return {key: without_folders(part) for key, part in recipe.items()}


def _synthetic_batches(config: DictConfig, prepared: PreparedCohort) -> Iterator[Tensor]:
    """Yield volumes [B, C, D, H, W] of synthetic patients of a seed that no cohort has by default."""
    spacing_mm = float(config.cohort.get("spacing_mm", 2.0))
    reader = PhantomCohort(
        folder=Path(config.paths.data) / "calibration",
        patients=CALIBRATION_VOLUMES,
        spacing_mm=spacing_mm,
        seed=CALIBRATION_SEED,
    )
    # A store object of its own, since it remembers studies by names that the cohort may have as well.
    store = volume_store(config, prepared.cohort.sequences)
    studies = reader.read().studies[:CALIBRATION_VOLUMES]
    store.prepare(studies)
    volumes = [torch.from_numpy(np.array(store.open(study).image, dtype=np.float32)) for study in studies]
    for start in range(0, CALIBRATION_VOLUMES, CALIBRATION_BATCH):
        yield torch.stack(volumes[start : start + CALIBRATION_BATCH])


def _trainer(config: DictConfig, prepared: PreparedCohort, known: Mapping[str, object]) -> lightning.Trainer:
    folder = Path(config.paths.run)
    callbacks: list[Callback] = []
    for section in config.callbacks.values():
        ours = str(section._target_) == "idh_lightning.callbacks.Explanations"
        known_of = {"sequences": prepared.cohort.sequences, "target": prepared.cohort.target}
        extra = {"run_folder": folder, **known_of} if ours else {}
        callbacks.append(instantiate_section(section, _partial_=True)(**extra))
    found = [_logger(config, section) for section in config.logger.values()]
    loggers: list[Logger] = [each for each in found if each is not None]
    for each in loggers:
        if isinstance(each, Tracker):
            each.log_recipe(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
            if each.note:
                known = {**known, "tracking": f"offline: {each.note}"}
    callbacks += [
        PredictionWriter(run_folder=folder, cohort_table=prepared.table, target=prepared.cohort.target.name),
        Provenance(run_folder=folder, known=known),
        BatchSeed(seed=int(config.seed)),
        StopTogether(),
    ]
    return make_trainer(config.trainer, callbacks=callbacks, logger=loggers, plugins=[WholeCheckpointIO()])


def _logger(config: DictConfig, section: DictConfig) -> Logger | None:
    """Logger, None if it is disabled; a tracked run is told its sweep and its fold of a cross-validation."""
    if not str(section._target_).endswith("wandb_logger"):
        made: Logger = instantiate_section(section)
        return made
    settings: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    varied: dict[str, str] = {}
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        settings["group"] = settings["group"] or Path(hydra.sweep.dir).name
        varied = varied_here(Path(hydra.sweep.dir), list(hydra.overrides.task))
    chosen = [text for key, text in varied.items() if key not in ("seed", "fold")]
    fold = [f"fold {config.fold}"] if "folds" in config.split else []
    settings["name"] = settings["name"] or " ".join([str(config.name), *varied.values()])
    settings["job_type"] = settings["job_type"] or " ".join(chosen or fold) or None
    tracker: Logger | None = instantiate_section(settings, _partial_=True)(run_folder=Path(config.paths.run))
    return tracker


def varied_here(sweep_folder: Path, overrides: Sequence[str]) -> dict[str, str]:
    """Settings of a run that its sweep varies -> "key=value" without places and identities, by the run's overrides."""
    sweep: Any = OmegaConf.load(sweep_folder / "multirun.yaml")
    parser = OverridesParser.create()
    asked = {one.key_or_group: one for one in parser.parse_overrides(list(sweep.hydra.overrides.task))}
    varied: dict[str, str] = {}
    for one in parser.parse_overrides(list(overrides)):
        key = one.key_or_group
        if key not in asked or asked[key].is_sweep_override():
            *groups, last = key.split(".")
            value = without_places({last: getattr(one.value(), "text", one.value())})
            if "paths" not in groups and value:
                varied[key] = f"{key}={value[last]}"
    return varied
