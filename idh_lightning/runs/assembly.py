"""Configuration to objects: the only module that instantiates, and where OmegaConf ends."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import lightning
import numpy as np
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from idh_lightning.attribution import Method
from idh_lightning.callbacks import BatchSeed, PredictionWriter, Provenance, Tracker, WholeCheckpointIO, tracking_mode
from idh_lightning.cohort import (
    SEQUENCES,
    SPLITS,
    Cohort,
    Study,
    cohort_table,
    exclusions_table,
    faults_table,
    raise_or_exclude,
    without_left_out,
)
from idh_lightning.config.checks import CONF_DIR, check_config
from idh_lightning.data import BankReport, FeatureBankDataModule, IDHDataModule
from idh_lightning.errors import CheckpointError, CohortError, ConfigError, IDHError, SplitError
from idh_lightning.files import atomic_write, locked, write_text
from idh_lightning.models import LATER, StemTailNetwork, WeightsOrigin, calibrate_batch_norm
from idh_lightning.module import IDHClassifier
from idh_lightning.phantom import PhantomCohort
from idh_lightning.reports.cohort_page import write_cohort_report
from idh_lightning.volumes import PrepareReport, Preprocessing, VolumeStore

logger = logging.getLogger(__name__)

_OUR_CALLBACKS = "idh_lightning.callbacks."

NO_GPU = "and torch finds no such GPU on this machine; expected one that `nvidia-smi` lists and this torch can use."

CALIBRATION_VOLUMES = 32
"""Volumes from which an untrained network takes its BatchNorm statistics."""

CALIBRATION_BATCH = 8
"""Synthetic volumes whose statistics are taken at once."""

CALIBRATION_SEED = 1_000_003
"""Of the synthetic patients for calibration."""


@dataclass(frozen=True, kw_only=True)
class PreparedCohort:
    """A cohort that is ready for training.

    Attributes:
        cohort: Studies and exclusions; no errors are left.
        splits: One row per study: study_id, patient_id, label, split, fold, age_years, ...; None if it has no split.
        store: Holds the volumes of every study.
        report: What preparing them took.
    """

    cohort: Cohort
    splits: pd.DataFrame | None
    store: VolumeStore
    report: PrepareReport

    @property
    def table(self) -> pd.DataFrame:
        """The splits, where they are known to be there."""
        if self.splits is None:
            raise SplitError("the cohort has no split; expected one. Prepare it with must_split=True.")
        return self.splits


def checked(config: DictConfig) -> DictConfig:
    """Return the configuration after refusing unknown keys and contradictions.

    Raises:
        ConfigError: Listing all of them.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    check_config(plain, dict(choices))  # type: ignore[arg-type]
    rehearse(config)
    if "trainer" in config:
        try:  # what Lightning itself refuses, a word that it does not know, say
            _trainer(config.trainer, logger=False, enable_checkpointing=False)
        except (MisconfigurationException, InstantiationException, TypeError, ValueError, ImportError) as error:
            raise ConfigError(
                f"trainer: Lightning refuses these settings: {error} Expected some that it knows. Correct trainer.*, "
                "or take trainer=default."
            ) from error
    return config


def rehearse(config: DictConfig) -> None:
    """Make everything that needs no study, so that a wrong setting is refused before any volume is prepared.

    The network is made without memory for its weights; a file or tag of weights is read into that all the same.

    Raises:
        ConfigError: Listing what cannot be made, and a device, checkpoint or file that is not there.
    """
    faults = [*_absent_devices(config), *_absent_files(config)]
    made: dict[str, Any] = {}
    for section in ("objective", "split", "augment", "explain", "explanation", "evaluation"):
        if config.get(section):
            faults += _fault(section, partial(_make, made, config, section))
    if config.get("optimizer"):
        faults += _fault("optimizer, scheduler", lambda: _schedule(config))
    if config.get("model"):
        faults += _fault("model", lambda: _sketch(config, made))
    for section in (config.get("logger") or {}).values():
        if str(section._target_).endswith("wandb_logger"):
            faults += _fault("logger", partial(tracking_mode, section.mode))
    faults += _fault("explanation", lambda: _method_files(getattr(made.get("explanation"), "methods", None)))
    if faults:
        raise ConfigError("\n".join(faults))


def _make(made: dict[str, Any], config: DictConfig, section: str) -> None:
    made[section] = instantiate_section(config[section])


def _fault(section: str, make: Callable[[], object]) -> list[str]:
    """Return what is wrong with a section, in words, after making what it describes."""
    try:
        make()
    except Exception as error:
        told: BaseException | None = error
        while told is not None and not isinstance(told, IDHError):
            told = told.__cause__
        if told is not None:
            return [str(told)]
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        words = " ".join(str(cause).split())
        return [f"{section}: {type(cause).__name__}: {words}; expected settings that go together. Correct {section}."]
    return []


def _schedule(config: DictConfig) -> None:
    optimizer = factory(_optimizer(config))([torch.nn.Parameter(torch.zeros(1))])
    factory(config.scheduler)(optimizer, total_steps=100)


def _sketch(config: DictConfig, made: Mapping[str, Any]) -> None:
    """Make the network in outline, and find in it the layers that are to be explained."""
    weights = LATER if config.model.weights == "auto" else config.model.weights  # auto takes what there is
    channels = len((config.get("cohort") or {}).get("sequences") or SEQUENCES)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = factory({**config.model, "weights": weights})(in_channels=channels)
    layers = getattr(made.get("explain"), "layer", None) or ()
    with network.watch(*([layers] if isinstance(layers, str) else layers)):
        pass


def _absent_devices(config: DictConfig) -> Iterator[str]:
    settings: Any = config.get("trainer") or {}
    asked, there = settings.get("accelerator", "auto"), torch.cuda.device_count()
    if asked in ("gpu", "cuda") and not there:
        yield f"trainer.accelerator: found {asked}, {NO_GPU} Set trainer.accelerator=auto."
    elif on_gpu(settings) and isinstance(settings.devices, int) and settings.devices > there:
        yield f"trainer.devices: found {settings.devices}; expected at most the {there} that torch finds. Set it so."


def _absent_files(config: DictConfig) -> Iterator[str]:
    split = config.get("split") or {}
    if (file := split.get("file")) and not Path(file).is_file():
        yield f"split.file: {file}: no such file; expected the cohort.csv of a run, or a table like it. Correct it."
    checkpoint, stages = config.get("checkpoint"), set(config.get("stages") or ())
    if checkpoint not in (None, "last") and stages:
        try:
            if "fit" not in stages:
                checkpoint_file(Path(checkpoint))
            elif not Path(checkpoint).exists():
                yield f"checkpoint: {checkpoint}: there is no such run; expected a run folder. Correct checkpoint."
        except CheckpointError as error:
            yield str(error)
    run_folder = Path(config.paths.run)
    if stages and stages <= {"explain", "report"} and not (run_folder / "predictions.csv").is_file():
        yield (
            f"{run_folder / 'predictions.csv'}: there is no such file; expected the predictions of the run that is to "
            "be explained or reported. Add 'test' to stages, or name the folder of that run: hydra.run.dir=RUN."
        )


def device(wanted: str) -> torch.device:
    """Return the device of a setting: "auto" is a GPU where there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(wanted)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: found {wanted}; expected auto, cpu, cuda or cuda:N. Correct it.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: found {wanted}, {NO_GPU} Set device=auto.")
    return found


def prepare(
    config: DictConfig, *, must_split: bool = True, screen: Callable[[Cohort, VolumeStore], Cohort] | None = None
) -> PreparedCohort:
    """Read a cohort, put its volumes into the store, split its patients, and write down who is in and who is out.

    Writes cohort_report.html, exclusions.csv, cohort.csv and splits.csv into the run folder, and prints what was found
    wrong.

    Args:
        config: With the groups cohort, data and split.
        must_split: Whether a cohort that cannot be split is refused; else its table is None and a warning says why.
        screen: Leaves studies out (or refuses the cohort) once its volumes are in the store, before the split.

    Raises:
        CohortError: If the table or the images are wrong and `cohort.on_error` is "raise"; it lists every fault. The
            report has been written by then, and the volumes of the sound studies are in the store.
        SplitError: If the patients cannot be split as asked.
    """
    run_folder = Path(config.paths.run)
    reader = instantiate_section(config.cohort)
    cohort: Cohort = reader.read()
    store: VolumeStore = factory(config.data.store)(
        preprocessing=instantiate_section(config.data.preprocessing), sequences=cohort.sequences
    )
    console = Console(soft_wrap=True)
    for note in cohort.notes:
        console.print(note, markup=False, highlight=False)
    store.folder.mkdir(parents=True, exist_ok=True)
    # Whoever comes second, another process of this run or another run of a sweep, finds the work done.
    with locked(store.folder / ".preparing.lock") as note:
        report = replace(store.prepare(cohort.studies), note=note)
    found = replace(cohort, faults=(*cohort.faults, *report.faults))
    try:
        cohort = raise_or_exclude(cohort, report.faults, on_error=reader.on_error)
    except CohortError:
        write_cohort_report(found, run_folder / "cohort_report.html")
        found = replace(found, faults=tuple(fault for fault in found.faults if fault.severity == "warning"))
        raise
    finally:  # what is raised lists the errors itself
        if found.faults:
            console.print(faults_table(found, rows_per_check=5))
    if screen is not None:
        cohort = screen(cohort, store)
    table: pd.DataFrame | None = None
    try:
        table = instantiate_section(config.split)(cohort)
        cohort = without_left_out(cohort, table)
    except SplitError as error:
        if must_split:
            raise
        logger.warning("The cohort is prepared but cannot be split, so cohort.csv is not written. %s", error)
    finally:
        write_text(run_folder / "exclusions.csv", exclusions_table(cohort).to_csv(index=False))
    write_cohort_report(cohort, run_folder / "cohort_report.html", table)
    if table is not None:
        listed = cohort_table(cohort, table)
        files = pd.DataFrame.from_dict(
            {
                study.study_id: {
                    name.lower(): str(path.absolute())
                    for name, path in (*study.files.items(), ("mask", study.mask))
                    if path is not None
                }
                for study in cohort.studies
            },
            orient="index",
        )
        for name in files:  # the report lays the maps over these
            listed[name] = listed["study_id"].map(files[name])
        write_text(run_folder / "cohort.csv", listed.to_csv(index=False))
        splits = table[["study_id", "patient_id", "label", "split", "fold"]]
        write_text(run_folder / "splits.csv", splits.to_csv(index=False))
    return PreparedCohort(cohort=cohort, splits=table, store=store, report=report)


WORKERS_BESIDE_A_GPU = 4
"""Processes that read and augment where a GPU trains. Beside an H200 a study at 128^3 took 0.13 s with four and with
sixteen, which took four times as much memory (10 and 41 GB). On two cores that train themselves it took 0.34 s without
and 0.45 s with two.
"""


def data_module(config: DictConfig, prepared: PreparedCohort) -> IDHDataModule:
    """Return the data module of a prepared cohort."""
    workers = config.data.batches.workers
    if workers is None:
        workers = min(joblib.cpu_count(), WORKERS_BESIDE_A_GPU) if on_gpu(config.trainer) else 0
    made: IDHDataModule = factory(config.data.batches)(
        workers=workers,
        studies=studies_by_split(prepared),
        store=prepared.store,
        augmentation=instantiate_section(config.augment),
        seed=config.seed,
    )
    return made


def studies_by_split(prepared: PreparedCohort) -> dict[str, list[Study]]:
    """Return the studies of train, validation and test."""
    split = dict(zip(prepared.table["study_id"], prepared.table["split"], strict=True))
    return {name: [study for study in prepared.cohort.studies if split.get(study.study_id) == name] for name in SPLITS}


def fingerprint(prepared: PreparedCohort) -> str:
    """Return a hash of the volumes, labels and split of a run: two runs with the same one learnt from the same data."""
    keys = {study.study_id: prepared.store.open(study).key for study in prepared.cohort.studies}
    rows = prepared.table[["study_id", "patient_id", "label", "split"]].sort_values("study_id").to_numpy().tolist()
    return hashlib.sha256(json.dumps([[*map(str, row), keys[row[0]]] for row in rows]).encode()).hexdigest()


def classifier(config: DictConfig, prepared: PreparedCohort, start: Path | None = None) -> IDHClassifier:
    """Return a model to train for the sequences of a cohort.

    Args:
        config: With the groups model, objective, optimizer and scheduler.
        prepared: The cohort.
        start: A checkpoint that it begins with; None for the weights that `model.weights` says.

    Raises:
        CheckpointError: If the checkpoint does not fit.
    """
    if start is None:
        network = factory(config.model)(in_channels=len(prepared.cohort.sequences))
    else:
        network = factory({**config.model, "weights": LATER})(in_channels=len(prepared.cohort.sequences))
        _, content = read_checkpoint(start)
        network.weights_origin = WeightsOrigin(**content["recipe"]["weights"])
    model = IDHClassifier(
        network=network,
        objective=instantiate_section(config.objective),
        optimizer=factory(_optimizer(config)),
        scheduler=factory(config.scheduler),
        weight_decay=float(config.optimizer.get("weight_decay", 0.0)),
        recipe=recipe(config, prepared, network.weights_origin),
    )
    if start is not None:
        differ = [key for key in ("preprocessing", "sequences") if content["recipe"][key] != model.recipe[key]]
        if differ:
            found, expected = (", ".join(str(of[key]) for key in differ) for of in (content["recipe"], model.recipe))
            raise CheckpointError(
                f"{start}: learnt from other {' and '.join(differ)}: {found}; expected {expected}. Use the settings of "
                "its run."
            )
        try:
            model.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            raise _unusable(start, error) from error
    return model


def recipe(config: DictConfig, prepared: PreparedCohort, origin: WeightsOrigin) -> dict[str, Any]:
    """Return what a checkpoint must carry so that nothing else is needed to use it, in primitives."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "model": plain["model"],
        "objective": plain["objective"],
        "preprocessing": plain["data"]["preprocessing"],
        "explain": plain["explain"],
        "sequences": list(prepared.cohort.sequences),
        "cohort": prepared.cohort.name,
        "weights": origin.as_dict(),
        "seed": plain["seed"],
        "fold": plain["fold"],
    }


def load_classifier(checkpoint: Path) -> IDHClassifier:
    """Return the model that a checkpoint holds, built from the recipe in it.

    Args:
        checkpoint: A `.ckpt` that a run wrote, or the folder of a run (its best.ckpt is taken).

    Raises:
        CheckpointError: If the file is absent, damaged, or was not written by this project.
    """
    file, content = read_checkpoint(checkpoint)
    try:
        written = content["recipe"]
        for part in ("model", "objective"):
            _refuse_foreign(written[part], file)
        network = factory({**written["model"], "weights": LATER})(in_channels=len(written["sequences"]))
        network.weights_origin = WeightsOrigin(**written["weights"])
        model = IDHClassifier(network=network, objective=instantiate_section(written["objective"]), recipe=written)
        model.load_state_dict(content["state_dict"])
    except CheckpointError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _unusable(file, error) from error
    return model.eval()


def checkpoint_file(checkpoint: Path) -> Path:
    """Return the `.ckpt` that a path stands for: itself, or the best.ckpt of a run folder.

    Raises:
        CheckpointError: If there is none.
    """
    file = checkpoint / "checkpoints" / "best.ckpt" if checkpoint.is_dir() else checkpoint
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; expected a checkpoint. Give a run folder or a .ckpt.")
    return file


def read_checkpoint(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of a checkpoint and all that it holds: see `load_classifier`."""
    file = checkpoint_file(checkpoint)
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not {"recipe", "state_dict"} <= set(content):
            raise ValueError("it has no recipe or no weights")
    except Exception as error:  # of any kind, where the file holds anything else
        raise _unusable(file, error) from error
    return file, content


def preprocessing_of(recipe: Mapping[str, Any], file: Path) -> Preprocessing:
    """Return the preprocessing that a checkpoint was trained with."""
    _refuse_foreign(recipe["preprocessing"], file)
    made: Preprocessing = instantiate_section(recipe["preprocessing"])
    return made


def explanation_of(recipe: Mapping[str, Any], file: Path) -> Method:
    """Return what makes maps in the way a checkpoint was tested: networks and volumes -> maps [B, D, H, W]."""
    _refuse_foreign(recipe["explain"], file)
    made: Method = instantiate_section(recipe["explain"])
    return made


def methods(names: Sequence[str] | None, network: StemTailNetwork) -> list[Method]:
    """Return methods of explanation by the names of their files in conf/explain.

    Args:
        names: None for all that fit the network: `evidence` needs a locator.
        network: What is to be explained.

    Raises:
        ConfigError: If there is no such file.
    """
    if names is None:
        names = [name for name in _method_files(None) if network.locator_stage is not None or name != "evidence"]
    return [instantiate_section(OmegaConf.load(file)) for file in _method_files(names).values()]


def _method_files(names: Sequence[str] | None) -> dict[str, Path]:
    """Return name -> file in conf/explain of methods of explanation, None for all; unknown names are refused."""
    files = {path.stem: path for path in sorted((CONF_DIR / "explain").glob("*.yaml"))}
    unknown = [name for name in names or () if name not in files]
    if unknown or (names is not None and not names):
        raise ConfigError(
            f"methods: found {', '.join(unknown) or 'none'}; expected names of files in conf/explain: "
            f"{', '.join(files)}. Correct the names, or write a file for a method of your own."
        )
    return {name: files[name] for name in (files if names is None else names)}


def map_comparison(config: DictConfig) -> Any:
    """Return what compares methods of explanation."""
    return instantiate_section(config.explanation)


def _unusable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: cannot be used ({type(error).__name__}: {error}); expected a checkpoint of this project. "
        "Give another one."
    )


def _refuse_foreign(section: Any, file: Path) -> None:
    """Refuse a recipe that would call anything but this package or torch.nn: a checkpoint may come from anywhere."""
    if isinstance(section, Mapping):
        target = section.get("_target_", "idh_lightning.")
        if not (isinstance(target, str) and target.startswith(("idh_lightning.", "torch.nn."))):
            raise CheckpointError(
                f"{file}: its recipe would call '{target}'; expected classes of idh_lightning or torch.nn. "
                "Use a checkpoint that this project wrote."
            )
        for value in section.values():
            _refuse_foreign(value, file)
    elif isinstance(section, list):
        for value in section:
            _refuse_foreign(value, file)


def add_to_checkpoint(file: Path, **content: Any) -> None:
    """Put further primitives into a checkpoint, replacing the file in one step."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    with atomic_write(file) as temporary:
        torch.save(checkpoint | content, temporary)


def calibrate(config: DictConfig, prepared: PreparedCohort, model: IDHClassifier, data: IDHDataModule) -> str:
    """Give an untrained network its BatchNorm statistics; return in words what they are of, "nothing" if pretrained.

    With `data.calibrate_on: synthetic` they come from synthetic patients that are no patients of the cohort. The frozen
    stem is then the same for all folds of a cross-validation, which share one feature bank, and no patient who is
    tested in some fold has had any part in it.
    """
    network = model.network
    if network.weights_origin.pretrained:
        return "nothing"
    synthetic = config.data.calibrate_on == "synthetic"
    batches = _synthetic_batches(config, prepared) if synthetic else data.calibration_batches(CALIBRATION_VOLUMES)
    used = f"{calibrate_batch_norm(network, batches)} {'synthetic' if synthetic else 'training'} volumes"
    logger.info("The network starts untrained: BatchNorm calibrated on %s.", used)
    return used


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
    store: VolumeStore = factory(config.data.store)(
        preprocessing=instantiate_section(config.data.preprocessing), sequences=prepared.cohort.sequences
    )
    studies = reader.read().studies[:CALIBRATION_VOLUMES]
    store.prepare(studies)
    volumes = [torch.from_numpy(np.array(store.open(study).image, dtype=np.float32)) for study in studies]
    for start in range(0, CALIBRATION_VOLUMES, CALIBRATION_BATCH):
        yield torch.stack(volumes[start : start + CALIBRATION_BATCH])


def fill_bank(config: DictConfig, model: IDHClassifier, data: IDHDataModule) -> BankReport | None:
    """Compute the features that training on a bank needs, on the GPU if training will use one.

    The stem must be final by then, calibrated or pretrained.
    """
    if not isinstance(data, FeatureBankDataModule):
        return None
    settings: Any = OmegaConf.to_container(config.augment, resolve=True)
    if on_gpu(config.trainer):
        model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    report = data.fill(model.network, settings)
    logger.info("Feature bank %s: %d views computed, %d reused.", report.folder, report.computed, report.reused)
    return report


def is_first_process() -> bool:
    """Return whether this process is the only one of its run, or the one of several that writes."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def precision(trainer: DictConfig) -> str:
    """Return the precision that "auto" stands for on this machine."""
    if trainer.precision != "auto":
        return str(trainer.precision)
    return "16-mixed" if on_gpu(trainer) else "bf16-mixed"


def trainer(config: DictConfig, prepared: PreparedCohort, known: Mapping[str, object]) -> lightning.Trainer:
    """Return the trainer with its callbacks and loggers."""
    run_folder = Path(config.paths.run)
    callbacks: list[Callback] = []
    for section in config.callbacks.values():
        ours = str(section._target_).startswith(_OUR_CALLBACKS)
        extra = {"run_folder": run_folder, "sequences": prepared.cohort.sequences} if ours else {}
        callbacks.append(factory(section)(**extra))
    found = [_logger(config, section) for section in config.logger.values()]
    loggers: list[Logger] = [each for each in found if each is not None]
    for each in loggers:
        if isinstance(each, Tracker):
            each.log_recipe(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
            if each.note:
                known = {**known, "tracking": f"offline: {each.note}"}
    callbacks += [
        PredictionWriter(run_folder=run_folder, cohort_table=prepared.table),
        Provenance(run_folder=run_folder, known=known),
        BatchSeed(seed=int(config.seed)),
    ]
    return _trainer(config.trainer, callbacks=callbacks, logger=loggers, plugins=[WholeCheckpointIO()])


def _trainer(section: DictConfig, **settings: Any) -> lightning.Trainer:
    made: lightning.Trainer = factory(OmegaConf.merge(section, {"precision": precision(section)}))(**settings)
    return made


def _logger(config: DictConfig, section: DictConfig) -> Logger | None:
    """Return a logger, None if it is disabled; a tracked run gets its place in a sweep and in a cross-validation."""
    if not str(section._target_).endswith("wandb_logger"):
        made: Logger = instantiate_section(section)
        return made
    settings: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if settings["group"] is None and hydra is not None and hydra.mode == RunMode.MULTIRUN:
        settings["group"] = Path(hydra.sweep.dir).name
    if settings["job_type"] is None and "folds" in config.split:
        settings["job_type"] = f"fold {config.fold}"
    tracker: Logger | None = factory(settings)(run_folder=Path(config.paths.run))
    return tracker


def evaluation(config: DictConfig) -> Any:
    """Return the evaluation, a function of predictions and cohort."""
    return instantiate_section(config.evaluation)


def _optimizer(config: DictConfig) -> dict[str, Any]:
    """Return the optimizer's settings; "auto" becomes fused on a CPU, where passes over memory are what counts."""
    settings: dict[str, Any] = OmegaConf.to_container(config.optimizer, resolve=True)  # type: ignore[assignment]
    if settings.get("fused") == "auto":
        settings["fused"] = not on_gpu(config.trainer)
    return settings


def optimizer_settings(name: str) -> dict[str, Any]:
    """Return what a file of conf/optimizer says."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "optimizer" / f"{name}.yaml"))
    settings: dict[str, Any] = content.get("optimizer", content)
    return settings


def on_gpu(trainer: DictConfig) -> bool:
    """Return whether a trainer of these settings uses a GPU."""
    return torch.cuda.is_available() and trainer.get("accelerator") in ("auto", "gpu", "cuda")


def instantiate_section(section: Any) -> Any:
    """Return what a section of the configuration describes."""
    return instantiate(section, _convert_="all")


def factory(section: Any) -> Callable[..., Any]:
    """Return the constructor of a section with its settings filled in.

    What is not a setting goes to the constructor directly: Hydra would turn data classes among its keyword arguments
    into configuration.
    """
    made: Callable[..., Any] = instantiate({**section, "_partial_": True}, _convert_="all")
    return made
