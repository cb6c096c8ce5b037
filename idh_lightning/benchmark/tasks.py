"""Seconds per study of what is done beside training the classifier."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import default_collate

from idh_lightning.benchmark.device import device_of, wait_for_gpu
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.data import IDHDataModule
from idh_lightning.data.tumours import RandomisedStudies, TumourSample
from idh_lightning.machine import freed_memory_kept
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.segmentation import load_segmenter
from idh_lightning.objectives.segmentation import segmentation_loss
from idh_lightning.runs.locating import FineTuning
from idh_lightning.volumes import VolumeStore


def _prepare_task(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> float:
    studies = data.studies["train"][: int(config.benchmark.studies)]
    with tempfile.TemporaryDirectory(dir=config.paths.run, prefix="store-") as folder:
        store = VolumeStore(Path(folder), data.store.preprocessing, data.store.sequences)
        return store.prepare(studies).elapsed_s / len(studies)


def _explain_task(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> float:
    explain = instantiate_section(config.explain)
    volumes = next(iter(data.evaluation_loader("validation"))).volumes[:1].to(device_of(config))
    return _seconds(lambda: explain(network, volumes), int(config.benchmark.repeats))


def _predict_task(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> float:
    explain = instantiate_section(config.explain)
    study = data.studies["test"][0]

    def predict() -> None:
        volume = data.store.preprocessing(study, data.store.sequences).image
        volumes = torch.from_numpy(np.asarray(volume, dtype=np.float32))[None].to(device_of(config))
        with torch.no_grad():
            network(volumes)
        explain(network, volumes)

    return _seconds(predict, int(config.benchmark.repeats))


def _locate_task(config: DictConfig, data: IDHDataModule, network: StemTailNetwork) -> float:
    tuning: FineTuning = instantiate_section(config.locating)
    size, repeats, device = tuning.studies_at_once(data.store), int(config.benchmark.repeats), device_of(config)
    samples = RandomisedStudies(
        data.studies["train"],
        data.store,
        length=size * (repeats + 1),
        seed=data.seed,
        randomisation=tuning.randomisation,
    )
    segmenter = load_segmenter().train().requires_grad_(True).to(device)
    optimizer, draws = torch.optim.AdamW(segmenter.parameters(), lr=tuning.learning_rate), count()

    def step() -> None:
        drawn = default_collate([samples[next(draws)] for _ in range(size)])
        batch = TumourSample(*(one.to(device) for one in drawn))
        segmentation_loss(segmenter(batch.volumes), batch.masks, batch.labels).backward()  # type: ignore[arg-type, no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    with freed_memory_kept():
        return _seconds(step, repeats) / size


def _seconds(action: Callable[[], object], repeats: int) -> float:
    """Median of the repetitions after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        wait_for_gpu()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class Task(NamedTuple):
    """Something that is timed: what it does, in words, and its seconds per study."""

    words: str
    seconds: Callable[[DictConfig, IDHDataModule, StemTailNetwork], float]


TASKS = {
    "prepare": Task("read, check and resample", _prepare_task),
    "locate": Task("fine-tune the locator, randomisation included", _locate_task),
    "explain": Task("network and map, prepared before", _explain_task),
    "predict": Task("read, resample, network and map", _predict_task),
}
