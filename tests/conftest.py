"""Fixtures shared by the tests: tiny networks, and stores that hold what the test wrote."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import brain_of_made_up_head

from idh_lightning.cohort import Study
from idh_lightning.models import StemTailNetwork


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_configure() -> None:
    torch.set_num_threads(1)  # for fixtures of a module, which are made before the one above


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--damaged", type=int, default=0, help="how many damaged inputs to predict; every kind at least")
    parser.addoption("--kills", type=int, default=1, help="at how many random moments a run is killed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases = Counter[tuple[Path, str]]()
    for item in items:
        case = (item.path, getattr(item, "originalname", item.name))
        cases[case] += 1
        # Cases of one test mostly run the same lines, and counting these takes half as long again.
        if cases[case] > 1 and item.config.pluginmanager.hasplugin("pytest_cov"):
            item.add_marker("no_cover")
    if not os.environ.get("IDH_REAL_DATA"):
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="IDH_REAL_DATA does not name the folder of real MRI"))


@cache
def _untrained(**settings: object) -> tuple[StemTailNetwork, torch.Tensor]:
    """Network, and the state in which making it leaves random numbers."""
    torch.manual_seed(0)
    return StemTailNetwork(**settings), torch.get_rng_state()  # type: ignore[arg-type]


@pytest.fixture
def small_network() -> Callable[..., StemTailNetwork]:
    """Return a maker of untrained B0 networks, which run on 32^3 volumes in milliseconds."""

    def make(**settings: object) -> StemTailNetwork:
        settings = {"backbone": "tf_efficientnet_b0", "weights": "none"} | settings
        if settings["weights"] != "none" or not {type(value) for value in settings.values()} <= {str, bool, float}:
            return _untrained.__wrapped__(**settings)[0]
        network, state = _untrained(**settings)  # a copy takes a quarter of the time
        torch.set_rng_state(state)
        return copy.deepcopy(network)

    return make


@dataclass
class FakeStored:
    """What a store returns, with arrays that the test chose."""

    key: str
    image: np.memmap
    mask: np.ndarray | None
    brain: np.ndarray
    affine_ras: np.ndarray


class FakeStore:
    """A store over a folder of .npy files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, study: Study, image: np.ndarray) -> None:
        np.save(self.folder / f"{study.study_id}.npy", image.astype(np.float16))

        mask = np.zeros(image.shape[1:], np.uint8)
        mask[tuple(slice(length // 2, length // 2 + 3) for length in mask.shape)] = 1
        np.save(self.folder / f"{study.study_id}_mask.npy", mask)

    def open(self, study: Study) -> FakeStored:
        image = np.load(self.folder / f"{study.study_id}.npy", mmap_mode="r")
        mask = np.load(self.folder / f"{study.study_id}_mask.npy", mmap_mode="r")
        shape = image.shape[1:]
        return FakeStored(
            key=study.study_id,
            image=image,
            mask=mask,
            brain=np.ones(shape, np.uint8),
            affine_ras=np.diag([-2.0, -2, 2, 1]),
        )


@pytest.fixture
def fake_store(tmp_path: Path) -> FakeStore:
    folder = tmp_path / "store"
    folder.mkdir()
    return FakeStore(folder)


def studies_of(labels: list[int], prefix: str) -> list[Study]:
    """Return one study per label, each of its own patient."""
    return [
        Study(study_id=f"{prefix}{index:03d}", patient_id=f"P{prefix}{index:03d}", label=label, files={})
        for index, label in enumerate(labels)
    ]


@pytest.fixture
def brains_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the brain of a made-up head known, where a test is about something else and the networks take seconds."""
    monkeypatch.setattr("idh_lightning.volumes.brain.extract_brain", brain_of_made_up_head)
