"""The feature bank: what the frozen stem makes of each study, computed once and kept on disk."""

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
from idh_lightning.data.subjects import SeededSubjects, collate
from idh_lightning.data.workers import begin_worker
from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.files import atomic_write, locked
from idh_lightning.models import StemTailNetwork
from idh_lightning.volumes import VolumeStore

BANK_FORMAT = 5
"""Raise it whenever the same stem, volumes and settings give other features."""

FILLING_VOXELS = 16 * 65**3
"""Voxels of a sequence that are read at once while a bank is filled."""


class FeatureBatch(NamedTuple):
    """What the tail is fed.

    Attributes:
        features: [B, F, d, h, w], float32: what the stem made of the volumes.
        labels: [B], int64; 0 wildtype, 1 mutant.
        study_ids: B names.
        shares: [B, d, h, w], the share of tumour in each cell of the locator's grid, moved as the volumes were; NaN
            throughout in a study without a mask. None where nothing is learnt from masks.
    """

    features: Tensor
    labels: Tensor
    study_ids: list[str]
    shares: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BankReport:
    """What filling a bank did.

    Attributes:
        folder: Holds the features.
        computed: Number of views that went through the stem.
        reused: Number of views that were there.
        elapsed_s: Wall clock.
        note: How several runs are kept apart, where a lock cannot.
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
        mixing: float = 0.0,
        dropout: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        """Hold what is needed to fill the bank and to make loaders.

        Args:
            studies: See `IDHDataModule`, as all that is not said here.
            store: Already holds every study.
            augmentation: Applied to training subjects before the stem, or None.
            seed: Of the run.
            folder: Of all banks; made when needed.
            batch_size: Studies per batch, before gradient accumulation.
            workers: Processes that read and augment while the bank is filled.
            mutant_fraction: Share of mutants among the training draws.
            views: Augmented views of each training study.
            refresh: Number of epochs after which other views take their place, computed while the tail learns from the
                present ones; None keeps them.
            mixing: Parameter of a beta distribution: how far a training study's features are mixed with those of
                another one of the same label; 0 for not at all.
            dropout: Share of a training study's feature channels that are set to zero.
            noise: Standard deviation of Gaussian noise, as a share of that of the study's features.

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
        ranges = {
            "views": views >= 1,
            "refresh": refresh is None or refresh >= 1,
            "mixing": mixing >= 0,
            "dropout": 0 <= dropout < 1,
            "noise": noise >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ConfigError(
                    f"data.batches.{name}: found {locals()[name]}; expected views and refresh of at least 1, mixing "
                    "and noise of at least 0, dropout in [0, 1). Correct it."
                )
        self.bank = Path(folder).absolute()
        self.views = views
        self.refresh = refresh
        self.feature_augmentation = FeatureAugmentation(dropout=dropout, noise=noise)
        self.mixing = mixing
        self._network: StemTailNetwork | None = None
        self._place = self.bank
        self._keys: dict[str, str] = {}
        self._ahead: _Ahead | None = None

    def fill(self, network: StemTailNetwork, augmentation_settings: Mapping[str, Any]) -> BankReport:
        """Compute what is missing of the first epoch's features, and remember the stem for later views.

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
            "arithmetic": str(network.stem_dtype(device)),  # "auto" is another precision on another machine
            "device": device,
            "cut": network.trainable_from,
            "locator": network.locator_stage,
            "augmentation": augmentation_settings,
            "seed": self.seed,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._place = self.bank / name
        return self._compute([*self._views_of("train", self._current_views(0)), *self._views_of("validation", [None])])

    def training_loader(self, epoch: int) -> DataLoader[Any]:
        """Return the loader of one epoch: the draws of `IDHDataModule`, each with one of the study's views."""
        views = self._current_views(epoch)
        if self._network is None:
            raise RuntimeError("the bank is empty; call fill before training")
        if self.refresh:
            self._refresh(epoch, self.refresh)
        dataset = _TrainingFeatures(
            files=[[self._file(study, view) for view in views] for study in self.studies["train"]],
            studies=self.studies["train"],
            augmentation=self.feature_augmentation,
            mixing=self.mixing,
        )
        sampler = self.sampler(epoch)
        return self._loader(dataset, sampler, drop_last=self.leaves_one_over(len(sampler)))

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
        """Return the features of this process's validation studies."""
        studies = self.studies["validation"]
        files = [self._file(study, None) for study in studies]
        return self._loader(_Features(files, studies), self.own_share("validation"))

    def _loader(self, dataset: Dataset[Any], sampler: Any, *, drop_last: bool = False) -> DataLoader[Any]:
        """Reading a study's features takes less than a millisecond, so that worker processes would only cost time."""
        return DataLoader(
            dataset, batch_size=self.batch_size, sampler=sampler, collate_fn=_collate_features, drop_last=drop_last
        )

    def _current_views(self, epoch: int) -> list[int]:
        first = (epoch // self.refresh) * self.views if self.refresh else 0
        return list(range(first, first + self.views))

    def _views_of(self, split: str, views: Sequence[int | None]) -> list[tuple[str, int, int | None]]:
        return [(split, index, view) for view in views for index in range(len(self.studies[split]))]

    def _file(self, study: Study, view: int | None) -> Path:
        name = "plain" if view is None else f"view{view}"
        return self._place / f"{self._key(study)}_{name}.npy"

    def _key(self, study: Study) -> str:
        """Return the name of a study's volumes; the store, which reads a file to tell it, is asked once."""
        if study.study_id not in self._keys:
            self._keys[study.study_id] = self.store.open(study).key
        return self._keys[study.study_id]

    def _compute(
        self, wanted: Sequence[tuple[str, int, int | None]], stop: threading.Event | None = None
    ) -> BankReport:
        start = time.monotonic()
        network = self._network
        assert network is not None
        note = ""
        missing = [item for item in wanted if not self._item_file(item).exists()]
        if missing:
            self._place.mkdir(parents=True, exist_ok=True)
            # Whoever comes second, another process of this run or another run of a sweep, finds the work done.
            with locked(self._place / ".filling.lock") as note:
                missing = [item for item in missing if not self._item_file(item).exists()]
                self._compute_missing(network, missing, stop)
        return BankReport(
            folder=self._place,
            computed=len(missing),
            reused=len(wanted) - len(missing),
            elapsed_s=time.monotonic() - start,
            note=note,
        )

    def _grid(self) -> Sequence[int]:
        shape: Sequence[int] = self.store.open(self.studies["train"][0]).image.shape
        return shape[1:]

    def _item_file(self, item: tuple[str, int, int | None]) -> Path:
        split, index, view = item
        return self._file(self.studies[split][index], view)

    def _compute_missing(
        self,
        network: StemTailNetwork,
        missing: Sequence[tuple[str, int, int | None]],
        stop: threading.Event | None,
    ) -> None:
        """Compute and keep features; with an event that says when to stop, beside training and without disturbing it.

        Random numbers belong to the whole process, so that what draws some must then be in another one.
        """
        device = next(network.parameters()).device
        workers = self.workers if stop is None else max(self.workers, 1)
        with Progress(transient=True, disable=stop is not None) as progress:
            bar = progress.add_task("Filling the feature bank", total=len(missing))
            for split, augmentation in (("train", self.augmentation), ("validation", None)):
                items = [(index, view) for name, index, view in missing if name == split]
                draws = [Draw(index, self._view_seed(self.studies[split][index], view)) for index, view in items]
                loader: DataLoader[Any] = DataLoader(
                    SeededSubjects(self.subjects(split), transform=augmentation),
                    sampler=draws,
                    batch_size=filling_batch(self._grid()),
                    num_workers=workers if draws else 0,
                    worker_init_fn=begin_worker,
                    multiprocessing_context="spawn" if stop is not None and draws else None,
                    generator=torch.Generator(),
                    collate_fn=collate,
                )
                done = 0
                for batch in loader:
                    if stop is not None and stop.is_set():
                        return
                    features = network.stem(batch.volumes.to(device)).half().cpu()
                    if not torch.isfinite(features).all():
                        raise ModelError(
                            f"feature bank, studies {', '.join(batch.study_ids)}: the stem's output does not fit half "
                            "precision; expected finite numbers. Use data=on_the_fly, which keeps no features."
                        )
                    shares = None
                    if network.locator_stage is not None and batch.masks is not None:
                        shares = network.tumour_fraction(batch.masks).half().numpy()
                    for place, item in enumerate(items[done : done + len(features)]):
                        file = self._file(self.studies[split][item[0]], item[1])
                        if shares is not None:
                            _save(_shares_file(file), shares[place])
                        _save(file, features[place].numpy())  # last: a file of features says that all is there
                    done += len(features)
                    progress.advance(bar, len(features))

    def _view_seed(self, study: Study, view: int | None) -> int:
        """Return the seed of a view: by the study, so that folds share what they have in common."""
        text = f"{self.seed}/{self._key(study)}/{view}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class _Ahead(threading.Thread):
    """Computes beside training what a later epoch will want."""

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
    """Return how many volumes [D, H, W] are read at once while a bank is filled: 16 of up to 65^3, 2 of 128^3."""
    return min(max(FILLING_VOXELS // math.prod(grid), 1), 16)


class FeatureAugmentation:
    """Random changes of a study's features [F, d, h, w]."""

    def __init__(self, *, dropout: float = 0.0, noise: float = 0.0) -> None:
        """Choose how much; see `FeatureBankDataModule`."""
        self.dropout = dropout
        self.noise = noise

    def __call__(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed features; with all settings 0, the same ones."""
        if self.dropout:
            kept = torch.rand(len(features), generator=generator) >= self.dropout
            features = features * kept[:, None, None, None] / (1 - self.dropout)
        if self.noise:
            features = features + self.noise * features.std() * torch.randn(features.shape, generator=generator)
        return features


BankItem = tuple[Tensor, int, str, Tensor | None]
"""Features, label, study_id and share of tumour in each cell."""


class _Features(Dataset[BankItem]):
    """The plain features of studies, in order."""

    def __init__(self, files: Sequence[Path], studies: Sequence[Study]) -> None:
        self.files = files
        self.studies = studies

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> BankItem:
        study = self.studies[index]
        return _read(self.files[index]), study.label, study.study_id, None


class _TrainingFeatures(Dataset[BankItem]):
    """One of the views of a study, chosen and changed with the seed of the draw that asks for it."""

    def __init__(
        self,
        files: Sequence[Sequence[Path]],
        studies: Sequence[Study],
        augmentation: FeatureAugmentation,
        mixing: float,
    ) -> None:
        self.files = files
        self.studies = studies
        self.augmentation = augmentation
        self.mixing = mixing
        self.alike = {label: [index for index, study in enumerate(studies) if study.label == label] for label in (0, 1)}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, draw: int) -> BankItem:
        seed: int = draw.seed  # type: ignore[attr-defined]
        choice = np.random.default_rng(seed)
        study = self.studies[draw]
        file = self._view(draw, choice)
        features, tumour = _read(file), _read_shares(file)
        if self.mixing:
            other = self._view(int(choice.choice(self.alike[study.label])), choice)
            share = max(own := float(choice.beta(self.mixing, self.mixing)), 1 - own)
            features = share * features + (1 - share) * _read(other)
            of_other = _read_shares(other)
            tumour = None if tumour is None or of_other is None else share * tumour + (1 - share) * of_other
        features = self.augmentation(features, torch.Generator().manual_seed(seed))
        return features, study.label, study.study_id, tumour

    def _view(self, index: int, choice: np.random.Generator) -> Path:
        return self.files[index][int(choice.integers(len(self.files[index])))]


def _read(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file)).float()


def _shares_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}_tumour.npy")


def _read_shares(file: Path) -> Tensor | None:
    """Return the share of tumour in each cell that lies beside a file of features, if the study has a mask."""
    beside = _shares_file(file)
    return _read(beside) if beside.exists() else None


def _save(file: Path, array: np.ndarray) -> None:
    with atomic_write(file) as temporary:
        np.save(temporary, array, allow_pickle=False)


def _collate_features(items: Sequence[BankItem]) -> FeatureBatch:
    features, labels, study_ids, shares = zip(*items, strict=True)
    known = next((share for share in shares if share is not None), None)
    return FeatureBatch(
        torch.stack(features),
        torch.tensor(labels, dtype=torch.int64),
        list(study_ids),
        None
        if known is None
        else torch.stack([torch.full_like(known, torch.nan) if share is None else share for share in shares]),
    )


def _digest(network: StemTailNetwork) -> str:
    """Return a hash of the stem's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.stem_state().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
