from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
import torchio as tio
from conftest import FakeStore, studies_of
from hypothesis import given
from hypothesis import strategies as st

from idh_lightning.data import ClassBalancedSampler, Draw, ExternalDataModule, IDHDataModule, collate, to_subject
from idh_lightning.errors import SplitError
from idh_lightning.volumes.augmentation import Augmentation

LABELS = [0] * 17 + [1] * 5


def draws(seed: int = 0, epoch: int = 0, **settings: object) -> list[int]:
    return list(ClassBalancedSampler(LABELS, seed=seed, epoch=epoch, **settings))  # type: ignore[arg-type]


@given(
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda labels: 0 < sum(labels) < len(labels)),
    fraction=st.floats(0.1, 0.9),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
def test_every_process_gets_the_same_number_of_draws_in_the_asked_proportion(
    labels: list[int], fraction: float, world_size: int, epoch: int
) -> None:
    samplers = [
        ClassBalancedSampler(labels, seed=1, epoch=epoch, mutant_fraction=fraction, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    for sampler in samplers:
        mutants = sum(labels[index] for index in sampler)
        assert abs(mutants - fraction * len(sampler)) <= 1
        assert all(0 <= index < len(labels) for index in sampler)


def test_no_study_comes_up_twice_before_all_of_its_class_have() -> None:
    counts = Counter(int(index) for index in draws())
    for label in (0, 1):
        seen = [counts[index] for index, other in enumerate(LABELS) if other == label]
        assert max(seen) - min(seen) <= 1


def test_order_and_seeds_are_a_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[tuple[int, int]]:
        return [(int(draw), draw.seed) for draw in ClassBalancedSampler(LABELS, seed=seed, epoch=epoch)]  # type: ignore[attr-defined]

    assert drawn(3, 2) == drawn(3, 2)
    assert drawn(3, 2) != drawn(3, 3)
    assert drawn(3, 2) != drawn(4, 2)


def test_processes_share_an_epoch_without_overlap_of_the_majority() -> None:
    first, second = (set(draws(rank=rank, world_size=2)) for rank in (0, 1))
    wildtype = {index for index, label in enumerate(LABELS) if label == 0}
    assert not first & second & wildtype


def test_a_draw_keeps_its_seed_on_the_way_to_a_worker() -> None:
    draw = pickle.loads(pickle.dumps(Draw(7, 11)))
    assert (draw, draw.seed) == (7, 11)


def test_one_class_or_an_impossible_fraction_is_refused() -> None:
    with pytest.raises(SplitError, match="0 mutant; expected both classes"):
        ClassBalancedSampler([0, 0], seed=0, epoch=0)
    with pytest.raises(SplitError, match=r"mutant_fraction: found 1\.5"):
        draws(mutant_fraction=1.5)


def data_module(store: FakeStore, workers: int = 0, augmentation: object = None) -> IDHDataModule:
    studies = {
        "train": studies_of([0, 0, 0, 0, 1, 1], "t"),
        "validation": studies_of([0, 1], "v"),
        "test": studies_of([0, 1, 0], "x"),
    }
    generator = np.random.default_rng(0)
    for members in studies.values():
        for study in members:
            store.put(study, generator.normal(size=(3, 6, 7, 8)))
    return IDHDataModule(
        studies=studies,
        store=store,
        augmentation=augmentation,
        seed=0,
        batch_size=2,
        workers=workers,  # type: ignore[arg-type]
    )


def test_a_volume_leaves_torchio_as_it_lay_in_the_store(fake_store: FakeStore) -> None:
    data = data_module(fake_store)
    study = data.studies["test"][1]
    batch = collate([to_subject(fake_store.open(study), study)])
    np.testing.assert_array_equal(batch.volumes[0].numpy(), np.asarray(fake_store.open(study).image, np.float32))
    assert batch.labels.tolist() == [1]
    assert batch.study_ids == [study.study_id]


def test_left_is_left_for_torchio(fake_store: FakeStore) -> None:
    study = studies_of([0], "s")[0]
    fake_store.put(study, np.arange(8.0).reshape(1, 1, 1, 8) * np.ones((1, 4, 4, 8)))
    flipped = tio.RandomFlip(axes=("LR",), flip_probability=1.0)(to_subject(fake_store.open(study), study))
    volume = collate([flipped]).volumes[0, 0]
    np.testing.assert_array_equal(volume[0, 0].numpy(), np.arange(8.0)[::-1])


def test_evaluation_shows_every_study_once_in_order(fake_store: FakeStore) -> None:
    data = data_module(fake_store)
    shown = [name for batch in data.evaluation_loader("test") for name in batch.study_ids]
    assert shown == [study.study_id for study in data.studies["test"]]


def test_training_batches_do_not_depend_on_the_number_of_workers(fake_store: FakeStore) -> None:
    def epoch(workers: int) -> list[torch.Tensor]:
        data = data_module(fake_store, workers, tio.Compose([tio.RandomNoise(std=(0.5, 1.0))]))
        return [batch.volumes for batch in data.training_loader(3)]

    alone, helped = epoch(0), epoch(2)
    assert len(alone) == 3
    for one, other in zip(alone, helped, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_training_batches_do_not_depend_on_the_number_of_cores(fake_store: FakeStore) -> None:
    effects = Augmentation(affine=tio.RandomAffine(), noise=tio.RandomNoise())
    data = data_module(fake_store, augmentation=effects)
    alone = list(data.training_loader(epoch=1))
    torch.set_num_threads(3)
    try:
        together = list(data.training_loader(epoch=1))
    finally:
        torch.set_num_threads(1)
    assert [batch.study_ids for batch in together] == [batch.study_ids for batch in alone]
    assert all(torch.equal(one.volumes, other.volumes) for one, other in zip(together, alone, strict=True))


def test_the_same_study_is_augmented_differently_in_each_epoch(fake_store: FakeStore) -> None:
    data = data_module(fake_store, 0, tio.Compose([tio.RandomNoise(std=(0.5, 1.0))]))
    seen = [
        {
            name: volume
            for batch in data.training_loader(epoch)
            for name, volume in zip(batch.study_ids, batch.volumes, strict=True)
        }
        for epoch in (0, 1)
    ]
    shared = set(seen[0]) & set(seen[1])
    assert shared
    assert all(not torch.equal(seen[0][name], seen[1][name]) for name in shared)


def test_an_absent_split_is_refused(fake_store: FakeStore) -> None:
    with pytest.raises(SplitError, match="no studies in test"):
        IDHDataModule(
            studies={"train": studies_of([0, 1], "t"), "validation": studies_of([0, 1], "v")},
            store=fake_store,  # type: ignore[arg-type]
            augmentation=None,
            seed=0,
        )


def test_calibration_batches_hold_distinct_training_volumes(fake_store: FakeStore) -> None:
    batches = list(data_module(fake_store).calibration_batches(4))
    assert sum(len(batch) for batch in batches) == 4
    stacked = torch.cat(batches)
    assert len({float(volume.sum()) for volume in stacked}) == 4


def test_a_cohort_that_only_judges_is_served_as_test_studies_alone(fake_store: FakeStore) -> None:
    studies = studies_of([0, 1, 0], "x")
    for study in studies:
        fake_store.put(study, np.full((2, 4, 4, 4), study.label))
    served = {"store": fake_store, "augmentation": None, "seed": 0, "batch_size": 2, "workers": 0}
    data = ExternalDataModule(studies={"test": studies}, **served)  # type: ignore[arg-type]
    (loader,) = data.test_dataloader()
    assert [name for batch in loader for name in batch.study_ids] == [study.study_id for study in studies]
    with pytest.raises(SplitError, match="no studies in test"):
        ExternalDataModule(studies={}, **served)  # type: ignore[arg-type]
    with pytest.raises(SplitError, match="no studies in train, validation"):
        IDHDataModule(studies={"test": studies}, **served)  # type: ignore[arg-type]
