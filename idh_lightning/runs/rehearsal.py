"""Rehearsal of a run: everything that needs no study is made, so that a fault is told before volumes are prepared."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from idh_lightning.attribution.maps import method_files
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import SEQUENCES
from idh_lightning.config.checks import check_config
from idh_lightning.config.instantiation import NO_GPU, instantiate_section
from idh_lightning.errors import CheckpointError, ConfigError, IDHError
from idh_lightning.machine import is_first_process
from idh_lightning.models import LATER, StemTailNetwork
from idh_lightning.models.encoders import MEDICALNET
from idh_lightning.models.segmentation import TumourSegmenter
from idh_lightning.volumes import Preprocessing

if TYPE_CHECKING:
    import lightning

logger = logging.getLogger(__name__)

ALIKE = 1.25
"""Times larger or smaller that voxels may be than those that a locator has learnt on, before it is told."""


def check(config: DictConfig) -> None:
    """Refuse unknown keys and contradictions, then make everything that needs no study.

    The network is made without memory for its weights; a file or tag of weights is read into that all the same.

    Raises:
        ConfigError: Listing what is unknown, or what cannot be made and a device, checkpoint or file that is not there.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_config(plain, dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {})
    faults = [*_absent_devices(config), *_absent_files(config)]

    def attempt(section: str, make: Callable[[], Any]) -> Any:
        """Object that a section describes; None where it cannot be made, which is a fault then."""
        try:
            return make()
        except Exception as error:
            faults.append(_in_words(section, error))
            return None

    made = {
        section: attempt(section, partial(instantiate_section, config[section]))
        for section in ("objective", "split", "augment", "explain", "explanation", "evaluation")
        if config.get(section)
    }
    if config.get("optimizer"):
        attempt("optimizer, scheduler", partial(_schedule, config))
    network = attempt("model", partial(_sketch, config, made.get("explain"))) if config.get("model") else None
    for section in (config.get("logger") or {}).values():
        if str(section._target_).endswith("wandb_logger"):
            from idh_lightning.callbacks import tracking_mode  # not above, as Lightning, which `prepare` does without

            attempt("logger", partial(tracking_mode, section.mode))
    attempt("explanation", partial(method_files, getattr(made.get("explanation"), "methods", None)))
    if faults:
        raise ConfigError("\n".join(faults))
    stages = set(config.get("stages") or ())
    taken_as_it_came = bool(stages & {"fit", "test"}) and not stages & {"pretrain", "locate"}
    locator = None if network is None else network.locator
    if locator is not None and locator.learnt_on and taken_as_it_came and config.get("checkpoint") is None:
        _tell_of_other_voxels(instantiate_section(config.data.preprocessing), locator)
    if "trainer" in config:
        _refuse_what_lightning_does(config.trainer)


def make_trainer(section: DictConfig, **settings: Any) -> lightning.Trainer:
    """Trainer of a section of the configuration, in the precision of this machine where it is "auto"."""
    made: lightning.Trainer = instantiate_section(section, precision=precision(section), _partial_=True)(**settings)
    return made


def precision(trainer: DictConfig) -> str:
    """Precision that "auto" stands for on this machine."""
    if trainer.precision != "auto":
        return str(trainer.precision)
    return "16-mixed" if on_gpu(trainer) else "bf16-mixed"


def on_gpu(trainer: DictConfig) -> bool:
    """Whether a trainer of these settings uses a GPU."""
    return torch.cuda.is_available() and trainer.get("accelerator") in ("auto", "gpu", "cuda")


def _refuse_what_lightning_does(section: DictConfig) -> None:
    """Raise a ConfigError of settings that Lightning itself refuses, a word that it does not know, say."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        make_trainer(section, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, InstantiationException, TypeError, ValueError, ImportError) as error:
        raise ConfigError(
            f"trainer: Lightning refuses these settings: {error} Expected some that it knows. Correct trainer.*, "
            "or take trainer=default."
        ) from error


def optimizer_of(config: DictConfig) -> Callable[..., Optimizer]:
    """Constructor of the optimizer; "auto" becomes fused on a CPU, where passes over memory are what counts."""
    fused = {"fused": not on_gpu(config.trainer)} if config.optimizer.get("fused") == "auto" else {}
    made: Callable[..., Optimizer] = instantiate_section(config.optimizer, _partial_=True, **fused)
    return made


def _in_words(section: str, error: Exception) -> str:
    told: BaseException | None = error
    while told is not None and not isinstance(told, IDHError):
        told = told.__cause__
    if told is not None:
        return str(told)
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    words = " ".join(str(cause).split())
    return f"{section}: {type(cause).__name__}: {words}; expected settings that go together. Correct {section}."


def _schedule(config: DictConfig) -> None:
    optimizer = optimizer_of(config)([torch.nn.Parameter(torch.zeros(1))])
    instantiate_section(config.scheduler, _partial_=True)(optimizer, total_steps=100)


def _tell_of_other_voxels(preprocessing: Preprocessing, locator: TumourSegmenter) -> None:
    """Warn where a locator would see a part of the brain, or voxels of another size than it has learnt on."""
    usual = Preprocessing(grid=locator.learnt_on)
    room = [voxels * usual.voxel_mm for voxels in usual.shape]  # a brain that has less makes its voxels larger
    voxel_mm = max(preprocessing.voxel_mm, *(mm / voxels for mm, voxels in zip(room, preprocessing.shape, strict=True)))
    seen_mm = voxel_mm * locator.voxels_in_one(preprocessing.shape)
    if is_first_process() and (preprocessing.crop != "brain" or not 1 / ALIKE < seen_mm / usual.voxel_mm < ALIKE):
        grid = ",".join(map(str, usual.shape))
        logger.warning(
            "crop %s, voxels of %.1f mm: the locator has learnt on voxels of %.1f mm around whole brains and may "
            "miss tumours in others. Teach it on these with 'stages=[locate,fit,test,report]', leave it out with "
            "model.locator=null explain=grad_cam, or take data.preprocessing.crop=brain "
            "data.preprocessing.edge_mm=null 'data.grid=[%s]'.",
            *(preprocessing.crop, seen_mm, usual.voxel_mm, grid),
        )


def _sketch(config: DictConfig, method: Any) -> StemTailNetwork:
    """Network in outline, in which the layers that are to be explained have been found."""
    # auto takes what there is, and numbers that nobody computes with need no good beginning
    outlined = config.model.weights in ("auto", "none") and config.model.backbone not in MEDICALNET
    weights = LATER if outlined else config.model.weights
    chosen = (config.get("cohort") or {}).get("sequences") or ()
    sequences = [name for name in SEQUENCES if name in chosen] or SEQUENCES
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = instantiate_section(config.model, _partial_=True, weights=weights)
        network: StemTailNetwork = made(sequences=sequences)
    layers = getattr(method, "layer", None) or ()
    with network.watch(*([layers] if isinstance(layers, str) else layers)):
        return network


def _absent_devices(config: DictConfig) -> Iterator[str]:
    settings: Any = config.get("trainer") or {}
    asked, there = settings.get("accelerator", "auto"), torch.cuda.device_count()
    if asked in ("gpu", "cuda") and not there:
        yield f"trainer.accelerator: found {asked}, {NO_GPU} Set trainer.accelerator=auto."
    elif on_gpu(settings) and isinstance(settings.devices, int) and settings.devices > there:
        yield f"trainer.devices: found {settings.devices}; expected at most the {there} that torch finds. Set it so."


def _absent_files(config: DictConfig) -> Iterator[str]:
    checkpoint, stages = config.get("checkpoint"), set(config.get("stages") or ())
    if checkpoint not in (None, "last") and stages:
        try:
            if "fit" not in stages:
                Checkpoint.locate(checkpoint)
        except CheckpointError as error:
            yield str(error)
    run_folder = Path(config.paths.run)
    if stages and stages <= {"explain", "report"} and not (run_folder / "predictions.csv").is_file():
        yield (
            f"{run_folder / 'predictions.csv'}: there is no such file; expected the predictions of the run that is to "
            "be explained or reported. Add 'test' to stages, or name the folder of that run: hydra.run.dir=RUN."
        )
