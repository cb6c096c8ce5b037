"""Feature bank: the output of the frozen stem for each study, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchio as tio
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from idh_lightning.cohort import Study
from idh_lightning.data.datamodule import IDHDataModule
from idh_lightning.data.sampler import Draw
from idh_lightning.data.subjects import Batch, SeededSubjects, collate
from idh_lightning.data.workers import begin_worker
from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.files import atomic_write, locked
from idh_lightning.models import StemTailNetwork
from idh_lightning.volumes import VolumeStore

BANK_FORMAT = 9
"""Raise it whenever the same stem, volumes and settings give other features."""

_View = tuple[str, int, int | None]
"""Split, index of the study in it, number of the view; None for the study as it is."""

_Item = tuple[Tensor, int, str]
"""Features, label and study_id."""

FILLING_VOXELS = 16 * 65**3
"""Voxels of a sequence that are read at once while a bank is filled."""


class FeatureBatch(NamedTuple):
    """Input of the tail.

    Attributes:
        features: [B, F, d, h, w], float32: output of the stem.
        labels: [B], int64; 0 wildtype, 1 mutant.
        study_ids: B names.
    """

    features: Tensor
    labels: Tensor
    study_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class BankReport:
    """Summary of filling a bank: number of views that went through the stem and of those that were there, wall clock.

    `note` says how several runs are kept apart, where a lock cannot.
    """

    folder: Path
    computed: int
    reused: int
    elapsed_s: float
    note: str = ""


class FeatureBankDataModule(IDHDataModule):
    """Serves training and validation studies as features of the frozen stem; test studies as volumes.

    The stem is a fixed function, so its output is computed once for `views` augmented views of every training study
    and for every validation study as it is, in half precision, one file each. A file is whole or not there: a bank
    that was interrupted goes on where it stopped, and several runs may fill the same bank. Its name is a hash of the
    stem's weights and precision, the augmentation and the seed; the name of a file, of the study's volumes.

    Validation and test studies go through the whole network when a model is tested, so that what is reported does not
    depend on the bank.
    """

    def __init__(
        self,
        *,
        studies: Mapping[str, Sequence[Study]],
        store: VolumeStore,
        augmentation: Callable[[tio.Subject], tio.Subject] | None,
        seed: int,
        folder: str | Path,
        batch_size: int = 4,
        workers: int = 0,
        mutant_fraction: float = 0.5,
        views: int = 4,
        refresh: int | None = None,
    ) -> None:
        """Hold the settings; nothing is computed yet.

        Further arguments are those of `IDHDataModule`. The augmentation is applied before the stem; workers read and
        augment while the bank is filled. Of each training study there are `views` augmented views; after `refresh`
        epochs others take their place, computed while the tail learns from the present ones; None keeps them. `folder`
        is that of all banks.

        Raises:
            ConfigError: If a number is out of range.
        """
        super().__init__(
            studies=studies,
            store=store,
            augmentation=augmentation,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            mutant_fraction=mutant_fraction,
        )
        for name, found in (("views", views), ("refresh", refresh)):
            if found is not None and found < 1:
                raise ConfigError(f"data.batches.{name}: found {found}; expected at least 1. Correct it.")
        self.bank = Path(folder).absolute()
        self.views = views
        self.refresh = refresh
        self._network: StemTailNetwork | None = None
        self._folder = self.bank
        self._keys: dict[str, str] = {}
        self._ahead: _Ahead | None = None

    def fill(self, network: StemTailNetwork, augmentation_settings: Mapping[str, Any]) -> BankReport:
        """Compute what is missing of the first epoch's features, and keep the network for later views.

        Args:
            network: With its final stem; it computes where its weights are.
            augmentation_settings: All that decides what the augmentation does, in primitives.

        Raises:
            ModelError: If the features are not finite.
        """
        self._network = network
        device = next(network.parameters()).device.type
        key = {
            "format": BANK_FORMAT,
            "stem": _digest(network),
            "arithmetic": str(network.stem_dtype(device, to_train=True)),  # "auto" is another one on another machine
            "device": device,
            "cut": network.trainable_from,
            "augmentation": augmentation_settings,
            "seed": self.seed,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = self.bank / name
        return self._compute([*self._views_of("train", self._current_views(0)), *self._views_of("validation", [None])])

    def training_loader(self, epoch: int) -> DataLoader[Any]:
        """Loader of one epoch: the draws of `IDHDataModule`, each with one of the study's views."""
        views = self._current_views(epoch)
        if self._network is None:
            raise RuntimeError("the bank is empty; call fill before training")
        if self.refresh:
            self._refresh(epoch, self.refresh)
        sampler = self.sampler(epoch)
        return self._loader("train", views, sampler, drop_last=self.leaves_one_over(len(sampler)))

    def _refresh(self, epoch: int, every: int) -> None:
        """See to it that the views of an epoch are there, and begin with those that come after them."""
        if self._ahead is not None and epoch >= self._ahead.epoch:
            ahead, self._ahead = self._ahead, None
            ahead.finish()
        if epoch:
            self._compute(self._views_of("train", self._current_views(epoch)))
        following = (epoch // every + 1) * every
        last = self.trainer.max_epochs or 0 if self.trainer is not None else 0  # -1: none
        if self._ahead is None and (last < 0 or following < last):
            wanted = self._views_of("train", self._current_views(following))
            self._ahead = _Ahead(following, lambda stop: self._compute(wanted, stop))
            self._ahead.start()

    def teardown(self, stage: str | None = None) -> None:
        """Stop what is being computed for later epochs."""
        if self._ahead is not None:
            self._ahead.stop.set()
            self._ahead.join()
            self._ahead = None

    def on_exception(self, exception: BaseException) -> None:
        """Stop what is being computed for later epochs."""
        self.teardown()

    def val_dataloader(self) -> DataLoader[Any]:
        """Features of this process's validation studies."""
        return self._loader("validation", [None], self.own_share("validation"))

    def _loader(
        self, split: str, views: Sequence[int | None], sampler: Any, *, drop_last: bool = False
    ) -> DataLoader[Any]:
        """Loader without worker processes, which would only cost time: a study's features are read in a millisecond."""
        studies = self.studies[split]
        dataset = _Features([[self._file(study, view) for view in views] for study in studies], studies)
        return DataLoader(
            dataset, batch_size=self.batch_size, sampler=sampler, collate_fn=_collate_features, drop_last=drop_last
        )

    def _current_views(self, epoch: int) -> list[int]:
        first = (epoch // self.refresh) * self.views if self.refresh else 0
        return list(range(first, first + self.views))

    def _views_of(self, split: str, views: Sequence[int | None]) -> list[_View]:
        return [(split, index, view) for view in views for index in range(len(self.studies[split]))]

    def _file(self, study: Study, view: int | None) -> Path:
        name = "plain" if view is None else f"view{view}"
        return self._folder / f"{self._key(study)}_{name}.npy"

    def _key(self, study: Study) -> str:
        """Name of a study's volumes; the store, which reads a file to tell it, is asked once."""
        if study.study_id not in self._keys:
            self._keys[study.study_id] = self.store.open(study).key
        return self._keys[study.study_id]

    def _compute(self, wanted: Sequence[_View], stop: threading.Event | None = None) -> BankReport:
        start, note = time.monotonic(), ""
        missing = [item for item in wanted if not self._item_file(item).exists()]
        if missing:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Whoever comes second, another process of this run or another run of a sweep, finds the work done.
            with locked(self._folder / ".filling.lock") as note:
                missing = [item for item in missing if not self._item_file(item).exists()]
                self._compute_missing(missing, stop)
        return BankReport(
            folder=self._folder,
            computed=len(missing),
            reused=len(wanted) - len(missing),
            elapsed_s=time.monotonic() - start,
            note=note,
        )

    def _item_file(self, item: _View) -> Path:
        split, index, view = item
        return self._file(self.studies[split][index], view)

    def _compute_missing(self, missing: Sequence[_View], stop: threading.Event | None) -> None:
        """Compute and keep features; with an event that says when to stop, beside training and without disturbing it.

        Random numbers belong to the whole process, so that what draws some must then be in another one.
        """
        network = self._network
        assert network is not None
        device = next(network.parameters()).device
        with Progress(transient=True, disable=stop is not None) as progress:
            bar = progress.add_task("Filling the feature bank", total=len(missing))
            for split, augmentation in (("train", self.augmentation), ("validation", None)):
                items = [item for item in missing if item[0] == split]
                done = 0
                for batch in self._filling_loader(split, items, augmentation, beside_training=stop is not None):
                    if stop is not None and stop.is_set():
                        return
                    size = len(batch.study_ids)
                    self._keep(network, batch, [self._item_file(item) for item in items[done : done + size]], device)
                    done += size
                    progress.advance(bar, size)

    def _filling_loader(
        self,
        split: str,
        items: Sequence[_View],
        augmentation: Callable[[tio.Subject], tio.Subject] | None,
        *,
        beside_training: bool,
    ) -> DataLoader[Any]:
        draws = [Draw(index, self._view_seed(self.studies[split][index], view)) for _, index, view in items]
        return DataLoader(
            SeededSubjects(self.subjects(split), transform=augmentation),
            sampler=draws,
            batch_size=filling_batch(self.store.open(self.studies["train"][0]).image.shape[1:]),
            num_workers=(max(self.workers, 1) if beside_training else self.workers) if draws else 0,
            worker_init_fn=begin_worker,
            multiprocessing_context="spawn" if beside_training and draws else None,
            generator=torch.Generator(),
            collate_fn=collate,
        )

    def _keep(self, network: StemTailNetwork, batch: Batch, files: Sequence[Path], device: torch.device) -> None:
        features = network.stem(batch.volumes.to(device), to_train=True).half().cpu()
        if not torch.isfinite(features).all():
            raise ModelError(
                f"feature bank, studies {', '.join(batch.study_ids)}: the stem's output does not fit half "
                "precision; expected finite numbers. Use data=on_the_fly, which keeps no features."
            )
        for one, file in zip(features, files, strict=True):
            with atomic_write(file) as temporary:
                np.save(temporary, one.numpy(), allow_pickle=False)

    def _view_seed(self, study: Study, view: int | None) -> int:
        """Seed of a view: by the study, so that folds share what they have in common."""
        text = f"{self.seed}/{self._key(study)}/{view}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class _Ahead(threading.Thread):
    """Thread that computes the views of a later epoch beside training."""

    def __init__(self, epoch: int, compute: Callable[[threading.Event], object]) -> None:
        super().__init__(name=f"feature bank, epoch {epoch}", daemon=True)
        self.epoch = epoch
        self.compute = compute
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.compute(self.stop)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Wait until all is computed; raise what went wrong."""
        self.join()
        if self.error is not None:
            raise self.error


def filling_batch(grid: Sequence[int]) -> int:
    """Number of volumes [D, H, W] that are read at once while a bank is filled: 16 of up to 65^3, 2 of 128^3."""
    return min(max(FILLING_VOXELS // math.prod(grid), 1), 16)


class _Features(Dataset[_Item]):
    """Features of studies, each one of its views: chosen with the seed of the draw that asks for it, else the first."""

    def __init__(self, files: Sequence[Sequence[Path]], studies: Sequence[Study]) -> None:
        self.files = files
        self.studies = studies

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Item:
        files, study, seed = self.files[index], self.studies[index], getattr(index, "seed", None)
        file = files[0 if seed is None else int(np.random.default_rng(seed).integers(len(files)))]
        return torch.from_numpy(np.load(file)).float(), study.label, study.study_id


def _collate_features(items: Sequence[_Item]) -> FeatureBatch:
    features, labels, study_ids = zip(*items, strict=True)
    return FeatureBatch(torch.stack(features), torch.tensor(labels, dtype=torch.int64), list(study_ids))


def _digest(network: StemTailNetwork) -> str:
    """Hash of the stem's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.stem_state().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
