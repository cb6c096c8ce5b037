"""Seconds and memory against the plain way: `python -m idh_lightning.benchmark [overrides]`."""

from __future__ import annotations

import gc
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from rich.table import Table
from torch import Tensor, nn

from idh_lightning import build
from idh_lightning.batches import FeatureBankDataModule, IDHDataModule
from idh_lightning.cohort import Study
from idh_lightning.config import CONF_DIR
from idh_lightning.errors import ConfigError, exits_with_message
from idh_lightning.files import replacing, write_json
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.convolutions import restore_convolutions

logger = logging.getLogger(__name__)

TITLES = {
    "plain": "plain: SimpleITK resampling each time, TorchIO's own transforms, float32",
    "on_the_fly": "this project, data=on_the_fly",
    "bank": "this project, data=feature_bank, once it is filled",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way to train, measured.

    Attributes:
        way: A key of `TITLES`.
        seconds_per_study: Median over the repetitions, reading and augmentation included.
        peak_mb: Highest resident memory of this process and its workers while it ran.
        once_per_view_s: Seconds per study and view that were spent before, to fill the bank; else 0.
    """

    way: str
    seconds_per_study: float
    peak_mb: float
    once_per_view_s: float = 0.0


def run(config: DictConfig) -> list[Measured]:
    """Measure every way, one after the other, and write benchmark.json and benchmark.png into the run folder.

    Raises:
        ConfigError: If a way is unknown.
    """
    ways = list(config.benchmark.ways)
    _check(ways)
    build.checked(config)
    run_folder = Path(config.paths.run)
    prepared = build.prepare(config)
    data = build.data_module(config, prepared)
    measured = []
    for way in ways:
        torch.manual_seed(config.seed)
        measured.append(_WAYS[way](config, data, build.classifier(config, prepared).network))
        logger.info("%s: %.2f s per study, %.0f MB", way, measured[-1].seconds_per_study, measured[-1].peak_mb)
        gc.collect()
    write_json(run_folder / "benchmark.json", _record(config, measured))
    figure = _chart(measured)
    with replacing(run_folder / "benchmark.png") as temporary:
        figure.savefig(temporary, dpi=150)
    _show(config, measured, run_folder)
    return measured


def _check(ways: Sequence[str]) -> None:
    unknown = [way for way in ways if way not in TITLES]
    if unknown or not ways:
        raise ConfigError(f"benchmark.ways: found {ways}; expected some of {', '.join(TITLES)}. Correct it.")


def _plain(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    """Read and resample each time, augment with TorchIO, float32 and one pass through the whole network."""
    settings: Any = OmegaConf.to_container(config.augment, resolve=True)
    augmentation = hydra.utils.instantiate({**settings, "fused": False}, _convert_="all")
    shape = data.store.open(data.studies["train"][0]).image.shape[1:]
    stock: nn.Module = network.train().network
    restore_convolutions(stock)
    model = _Learner(stock)

    def epoch() -> None:
        for studies in _batches(data.studies["train"], config):
            subjects = [augmentation(_resampled(study, data.store.sequences, shape)) for study in studies]
            volumes = torch.stack([subject["image"].data.permute(0, 3, 2, 1).float() for subject in subjects])
            model.step(stock(volumes), torch.tensor([study.label for study in studies]))

    return _measure("plain", config, epoch)


def _on_the_fly(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    return _measure("on_the_fly", config, _epoch_of(config, data, network, lambda batch: network(batch.volumes)))


def _bank(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> Measured:
    with tempfile.TemporaryDirectory(dir=config.paths.run, prefix="bank-") as folder:  # never one that is filled
        bank = FeatureBankDataModule(
            studies=data.studies,
            store=data.store,
            augmentation=data.augmentation,
            seed=data.seed,
            folder=folder,
            batch_size=data.batch_size,
            workers=data.workers,
            views=2,
        )
        report = bank.fill(network, {"benchmark": True})
        epoch = _epoch_of(config, bank, network, lambda batch: network.tail(batch.features))
        return _measure("bank", config, epoch, once_per_view_s=report.elapsed_s / report.computed)


def _epoch_of(
    config: DictConfig, data: IDHDataModule, network: StemTailNetwork, logits: Callable[[Any], Tensor]
) -> Callable[[], None]:
    """Return what trains on the first studies of the data module's next epoch, each time it is called."""
    model = _Learner(network.train(), fused=True)
    epochs = count()

    def epoch() -> None:
        seen = 0
        for batch in data.training_loader(next(epochs)):
            model.step(logits(batch), batch.labels)
            seen += len(batch.labels)
            if seen >= config.benchmark.studies:
                return

    return epoch


_WAYS: dict[str, Callable[[DictConfig, IDHDataModule, StemTailNetwork], Measured]] = {
    "plain": _plain,
    "on_the_fly": _on_the_fly,
    "bank": _bank,
}


class _Learner:
    """The least that training takes: loss, backward pass, clipping and AdamW over what is trainable."""

    def __init__(self, network: nn.Module, *, fused: bool | None = None) -> None:
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=fused)

    def step(self, logits: Tensor, labels: Tensor) -> None:
        nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _batches(studies: Sequence[Study], config: DictConfig) -> list[Sequence[Study]]:
    size = int(config.data.batches.batch_size)
    chosen = studies[: int(config.benchmark.studies)]
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def _resampled(study: Study, sequences: Sequence[str], shape: Sequence[int]) -> tio.Subject:
    """Return a study as the plain way sees it: squeezed to the grid by SimpleITK, z-normalised where not zero."""
    channels = []
    for name in sequences:
        image = sitk.ReadImage(str(study.files[name]), sitk.sitkFloat32)
        size = list(reversed(shape))
        spacing = [
            old * length / new for old, length, new in zip(image.GetSpacing(), image.GetSize(), size, strict=True)
        ]
        resampled = sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), 0.0
        )
        array = sitk.GetArrayFromImage(resampled)
        brain = array != 0
        array[brain] = (array[brain] - array[brain].mean()) / array[brain].std()
        channels.append(array)
    tensor = torch.from_numpy(np.stack(channels)).permute(0, 3, 2, 1)
    return tio.Subject(image=tio.ScalarImage(tensor=tensor))


def _measure(way: str, config: DictConfig, epoch: Callable[[], None], *, once_per_view_s: float = 0.0) -> Measured:
    """Time the repetitions after one that is not counted."""
    epoch()
    seconds = []
    with _peak() as peak:
        for _ in range(int(config.benchmark.repeats)):
            start = time.perf_counter()
            epoch()
            seconds.append(time.perf_counter() - start)
    return Measured(
        way=way,
        seconds_per_study=statistics.median(seconds) / int(config.benchmark.studies),
        peak_mb=peak[0] / 2**20,
        once_per_view_s=once_per_view_s,
    )


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Give a list whose only value becomes the highest resident memory meanwhile, this process and its children."""
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
    """Return how many times faster a whole training on the bank is, filling it included, than the yardstick."""
    bank = next((one for one in measured if one.way == "bank"), None)
    if bank is None:
        return None
    views, epochs, studies = (int(config.benchmark[key]) for key in ("views", "epochs", "training_studies"))
    with_bank = views * bank.once_per_view_s + epochs * bank.seconds_per_study
    yardstick = epochs * measured[0].seconds_per_study
    return {
        "views": views,
        "epochs": epochs,
        "training_studies": studies,
        "hours": with_bank * studies / 3600,
        "hours_of_the_yardstick": yardstick * studies / 3600,
        "times_as_fast": yardstick / with_bank,
    }


def _record(config: DictConfig, measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        "grid": str(config.data.grid),
        "batch_size": int(config.data.batches.batch_size),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [asdict(one) for one in measured],
        "whole_training_with_bank": _example(config, measured),
    }


def _show(config: DictConfig, measured: Sequence[Measured], run_folder: Path) -> None:
    table = Table(title=f"Per training study, grid {config.data.grid}, batch {config.data.batches.batch_size}")
    for heading in ("way", "s per study", "times as fast", "peak MB"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for one in measured:
        ratio = measured[0].seconds_per_study / one.seconds_per_study
        table.add_row(TITLES[one.way], f"{one.seconds_per_study:.3f}", f"{ratio:.1f}", f"{one.peak_mb:.0f}")
    console = Console()
    console.print(table)
    example = _example(config, measured)
    if example:
        console.print(
            f"Training {example['training_studies']} studies for {example['epochs']} epochs on {example['views']} "
            f"views, filling the bank included: {example['times_as_fast']:.1f} times as fast as {measured[0].way}."
        )
    console.print(f"{run_folder / 'benchmark.json'}", soft_wrap=True, highlight=False)


def _chart(measured: Sequence[Measured]) -> Figure:
    figure = Figure(figsize=(8, 0.7 * len(measured) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([TITLES[one.way] for one in measured], [one.seconds_per_study for one in measured])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds per training study")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="benchmark")
@exits_with_message
def main(config: DictConfig) -> None:
    """Run what the command line composes."""
    run(config)


if __name__ == "__main__":
    main()
