"""Seconds and memory of training beside a plain pipeline and MONAI's, and of preparing, explaining and predicting."""

from __future__ import annotations

import gc
import importlib.util
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import psutil
import SimpleITK as sitk
import torch
import torchio as tio
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from idh_lightning.benchmark.device import HALVES, device_name, device_of, forget_gpu_peak, wait_for_gpu
from idh_lightning.benchmark.tasks import TASKS
from idh_lightning.cli.tables import FittingTable
from idh_lightning.cohort import Study
from idh_lightning.data import FeatureBankDataModule, IDHDataModule
from idh_lightning.errors import ConfigError
from idh_lightning.files import atomic_write, write_json
from idh_lightning.machine import freed_memory_kept
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.fast.convolutions import restore_convolutions
from idh_lightning.runs.assembly import classifier, data_module
from idh_lightning.runs.preparation import prepare_configured
from idh_lightning.runs.rehearsal import check, precision

logger = logging.getLogger(__name__)

TITLES = {
    "plain": "plain: SimpleITK resampling each time, TorchIO's own transforms, float32; freed memory kept as below",
    "stock": "the same, with memory as torch comes",
    "on_the_fly": "this project, data=on_the_fly",
    "bank": "this project, data=feature_bank, once it is filled",
    "monai": "MONAI: CacheDataset, Rand3DElastic, RandAffine, RandFlip, EfficientNetBN",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds and memory of one pipeline, a key of `TITLES`; else a note why it was not measured.

    `seconds_per_study` is the median over the repetitions, reading and augmentation included; `peak_mb` the highest
    resident memory of this process and its workers meanwhile, `peak_gpu_mb` the most that was allocated on the GPU at
    once; `once_per_view_s` the seconds per study and view that were spent before, to fill the bank.
    """

    pipeline: str
    seconds_per_study: float | None = None
    peak_mb: float | None = None
    peak_gpu_mb: float | None = None
    once_per_view_s: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        """Sentence for the log."""
        on_gpu = "" if self.peak_gpu_mb is None else f", {self.peak_gpu_mb:.0f} MB on the GPU"
        measured = f"{self.seconds_per_study:.3f} s per study, {self.peak_mb:.0f} MB{on_gpu}" if not self.note else ""
        return f"{self.pipeline}: {measured or self.note}"


def measure_pipelines(config: DictConfig) -> None:
    """Measure every pipeline, one after the other, and write benchmark.json and benchmark.png into the run folder."""
    pipelines, tasks = list(config.benchmark.pipelines), list(config.benchmark.tasks)
    _check(pipelines, tasks)
    check(config)
    run_folder = Path(config.paths.run)
    prepared = prepare_configured(config)
    data = data_module(config, prepared)
    measured = []
    for pipeline in pipelines:
        logger.info("%s ...", TITLES[pipeline])
        torch.manual_seed(config.seed)
        network = classifier(config, prepared).network.to(device_of(config))
        measured.append(_PIPELINES[pipeline](config, data, network))
        logger.info("%s", measured[-1])
        del network
        gc.collect()
    seconds = {}
    for task in tasks:
        network = classifier(config, prepared).network.to(device_of(config))
        seconds[task] = TASKS[task].seconds(config, data, network.eval())
        logger.info("%s: %.2f s per study", task, seconds[task])
    write_json(run_folder / "benchmark.json", _record(config, measured, seconds))
    with atomic_write(run_folder / "benchmark.png") as temporary:
        _chart(measured).savefig(temporary, dpi=150)
    _show(config, measured, seconds, run_folder)


def _check(pipelines: Sequence[str], tasks: Sequence[str] = ()) -> None:
    for key, found, known in (("pipelines", pipelines, TITLES), ("tasks", tasks, TASKS)):
        if any(one not in known for one in found) or (key == "pipelines" and not found):
            raise ConfigError(f"benchmark.{key}: found {list(found)}; expected some of {', '.join(known)}. Correct it.")


def _plain(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    """Plain pipeline with the memory settings that this project has as well."""
    with freed_memory_kept():
        return _stock(config, data, network, pipeline="plain")


def _stock(config: DictConfig, data: IDHDataModule, network: StemTailNetwork, pipeline: str = "stock") -> Measured:
    """Read and resample each time, augment with TorchIO, float32 and one pass through the whole network."""
    settings: Any = OmegaConf.to_container(config.augment, resolve=True)
    augmentation = hydra.utils.instantiate({**settings, "fused": False}, _convert_="all")
    shape = data.store.open(data.studies["train"][0]).image.shape[1:]
    stock: nn.Module = network.train().network
    restore_convolutions(stock)
    model = _Learner(stock, config)
    chosen, size = data.studies["train"][: int(config.benchmark.studies)], int(config.data.batches.batch_size)

    def epoch() -> int:
        for start in range(0, len(chosen), size):
            studies = chosen[start : start + size]
            subjects = [augmentation(_resampled(study, data.store.sequences, shape)) for study in studies]
            volumes = torch.stack([subject["image"].data.permute(0, 3, 2, 1).float() for subject in subjects])
            model.step(stock, volumes, torch.tensor([study.label for study in studies]))
        return len(chosen)

    return _measure(pipeline, config, epoch)


def _on_the_fly(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    with freed_memory_kept():
        return _measure("on_the_fly", config, _epochs_of(config, data, network, network))


def _bank(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    with freed_memory_kept(), tempfile.TemporaryDirectory(dir=config.paths.run, prefix="bank-") as folder:  # a new bank
        bank = FeatureBankDataModule(
            studies=data.studies,
            store=data.store,
            augmentation=data.augmentation,
            seed=data.seed,
            folder=folder,
            batch_size=data.batch_size,
            views=2,
        )
        report = bank.fill(network, {"benchmark": True})
        epoch = _epochs_of(config, bank, network, network.tail)
        return _measure("bank", config, epoch, once_per_view_s=report.elapsed_s / report.computed)


def _monai(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    """Cache what does not change, augment with MONAI's transforms, float32 and one pass through MONAI's B7."""
    if importlib.util.find_spec("monai") is None:
        return Measured(pipeline="monai", note="not installed; pip install 'idh_lightning[benchmark]'")
    from idh_lightning.benchmark.monai_pipeline import batches, model

    shape = data.store.open(data.studies["train"][0]).image.shape[1:]
    stock = model(len(data.store.sequences)).train()
    stock.to(device_of(config))
    learner = _Learner(stock, config)
    chosen = data.studies["train"][: int(config.benchmark.studies)]
    loader = batches(chosen, data.store.sequences, shape, batch_size=data.batch_size, seed=data.seed)

    def epoch() -> int:
        for batch in loader:
            learner.step(stock, batch["image"].as_tensor(), batch["label"])
        return len(chosen)

    with freed_memory_kept():
        return _measure("monai", config, epoch)


def _epochs_of(
    config: DictConfig, data: IDHDataModule, network: StemTailNetwork, logits: Callable[[Tensor], Tensor]
) -> Callable[[], int]:
    """Function that trains on the data module's next epoch each time it is called."""
    model = _Learner(network.train(), config, as_trained=True)
    epochs = count()

    def epoch() -> int:
        seen = 0
        for inputs, labels, *_ in data.training_loader(next(epochs)):
            model.step(logits, inputs, labels)
            seen += len(labels)
        return seen

    return epoch


_PIPELINES = {"plain": _plain, "stock": _stock, "on_the_fly": _on_the_fly, "bank": _bank, "monai": _monai}


class _Learner:
    """The least that training takes: loss, backward pass, clipping and AdamW over what is trainable."""

    def __init__(self, network: nn.Module, config: DictConfig, *, as_trained: bool = False) -> None:
        """Take what is trainable of a network; without `as_trained` it computes in float32 and with stock AdamW."""
        self.device = device_of(config)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=as_trained or None)
        self.half = HALVES.get(precision(config.trainer)) if as_trained and self.device == "cuda" else None
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.half == torch.float16)

    def step(self, logits: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> None:
        with torch.autocast(self.device, dtype=self.half, enabled=self.half is not None):
            found = logits(inputs.to(self.device))
        loss = nn.functional.cross_entropy(found.float(), labels.to(self.device))
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


def _resampled(study: Study, sequences: Sequence[str], shape: Sequence[int]) -> tio.Subject:
    """Study as the plain pipeline sees it: squeezed to the grid by SimpleITK, z-normalised where not zero."""
    channels = []
    for name in sequences:
        image = sitk.ReadImage(str(study.files[name]), sitk.sitkFloat32)
        size = list(reversed(shape))
        spacing = (np.array(image.GetSpacing()) * image.GetSize() / size).tolist()
        form = image.GetOrigin(), spacing, image.GetDirection()
        array = sitk.GetArrayFromImage(sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *form, 0.0))
        brain = array != 0
        array[brain] = (array[brain] - array[brain].mean()) / array[brain].std()
        channels.append(array)
    return tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(np.stack(channels)).permute(0, 3, 2, 1)))


def _measure(pipeline: str, config: DictConfig, epoch: Callable[[], int], *, once_per_view_s: float = 0.0) -> Measured:
    """Time the repetitions after one that is not counted."""
    epoch()
    seconds = []
    forget_gpu_peak()
    with _peak() as peak:
        for repeat in range(int(config.benchmark.repeats)):
            start = time.perf_counter()
            studies = epoch()
            wait_for_gpu()
            seconds.append((time.perf_counter() - start) / studies)
            logger.info("%s, repetition %d: %d studies, %.2f s each", pipeline, repeat + 1, studies, seconds[-1])
    return Measured(
        pipeline=pipeline,
        seconds_per_study=statistics.median(seconds),
        peak_mb=peak[0] / 2**20,
        peak_gpu_mb=torch.cuda.max_memory_allocated() / 2**20 if device_of(config) == "cuda" else None,
        once_per_view_s=once_per_view_s,
    )


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Highest resident memory meanwhile, of this process and its children, as the only value of a list."""
    process, found, done = psutil.Process(), [0.0], threading.Event()

    def resident() -> float:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return float(total)

    def watch() -> None:
        while not done.wait(0.02):
            found[0] = max(found[0], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found[0] = max(found[0], resident())


def _example(config: DictConfig, measured: Sequence[Measured]) -> dict[str, float] | None:
    """Speed of a whole training on the bank, filling it included, as a multiple of the yardstick's."""
    bank, first = next((one for one in measured if one.pipeline == "bank"), None), measured[0].seconds_per_study
    if bank is None or bank.seconds_per_study is None or first is None:
        return None
    example: dict[str, float] = {key: int(config.benchmark[key]) for key in ("views", "epochs", "training_studies")}
    with_bank = example["views"] * bank.once_per_view_s + example["epochs"] * bank.seconds_per_study
    yardstick = example["epochs"] * first
    return example | {
        "hours": with_bank * example["training_studies"] / 3600,
        "hours_of_the_yardstick": yardstick * example["training_studies"] / 3600,
        "times_as_fast": yardstick / with_bank,
    }


def _ratio(measured: Sequence[Measured], one: Measured, beside: str = "") -> float | None:
    """Speed of a pipeline as a multiple of that of another one, or of the first one."""
    found = [each.seconds_per_study for each in measured if not beside or each.pipeline == beside]
    first = found[0] if found else None
    return None if first is None or one.seconds_per_study is None else first / one.seconds_per_study


def _record(config: DictConfig, measured: Sequence[Measured], seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "grid": str(config.data.grid),
        "batch_size": int(config.data.batches.batch_size),
        "threads": torch.get_num_threads(),
        "device": device_name(config),
        "torch": torch.__version__,
        "rows": [
            asdict(one)
            | {"times_as_fast": _ratio(measured, one), "times_as_fast_as_stock": _ratio(measured, one, "stock")}
            for one in measured
        ],
        "whole_training_with_bank": _example(config, measured),
        "seconds_per_study_of_tasks": dict(seconds),
    }


def _show(config: DictConfig, measured: Sequence[Measured], seconds: Mapping[str, float], run_folder: Path) -> None:
    console = Console()
    title = f"Per training study, grid {config.data.grid}, batch {config.data.batches.batch_size}"
    headings = ("pipeline", "s per study", "times as fast", "as stock", "peak MB", "on the GPU")
    table = FittingTable(title, headings)
    for one in measured:
        ratio, as_stock = _ratio(measured, one), _ratio(measured, one, "stock")
        times = (one.seconds_per_study, ".3f"), (ratio, ".1f"), (as_stock, ".1f")
        found = *times, (one.peak_mb, ".0f"), (one.peak_gpu_mb, ".0f")
        seconds_cell, *cells = ("" if value is None else f"{value:{form}}" for value, form in found)
        table.add_row(TITLES[one.pipeline], seconds_cell or one.note, *cells)
    console.print(table)
    if seconds:
        table = FittingTable("Per study", ("task", "what it does", "s per study"), ("what it does",))
        for task, value in seconds.items():
            table.add_row(task, TASKS[task].words, f"{value:.2f}")
        console.print(table)
    example = _example(config, measured)
    if example:
        console.print(
            f"Training {example['training_studies']} studies for {example['epochs']} epochs on {example['views']} "
            f"views, filling the bank included: {example['times_as_fast']:.1f} times as fast as {measured[0].pipeline}."
        )
    console.print(f"{run_folder / 'benchmark.json'}", soft_wrap=True, highlight=False)


def _chart(measured: Sequence[Measured]) -> Figure:
    shown = [one for one in measured if one.seconds_per_study is not None]
    figure = Figure(figsize=(8, 0.7 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([TITLES[one.pipeline] for one in shown], [float(one.seconds_per_study or 0) for one in shown])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds per training study")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
