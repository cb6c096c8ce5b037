"""Damaged DICOM files end with a reason and without a number, classic and Enhanced; more of them by --damaged=N."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dicom import classic, enhanced, frames_of, lump, save

from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.series import new_study_of_series, select

LUMP = lump()
Damage = Callable[[bytes, np.random.Generator], bytes]


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """Some bits of the header changed."""
    changed = bytearray(content)
    for place in random.integers(132, 1400, 8):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def replaced(content: bytes, random: np.random.Generator) -> bytes:
    """A piece of the header written over."""
    start = int(random.integers(132, 1200))
    return content[:start] + random.bytes(40) + content[start + 40 :]


DAMAGES: dict[str, Damage] = {
    "truncated": lambda content, random: content[: int(random.integers(132, len(content) - 2))],
    "flipped": flipped,
    "replaced": replaced,
    "empty": lambda content, random: b"",
    "noise": lambda content, random: content[:132] + random.bytes(len(content)),
    "zeros": lambda content, random: content[:132] + bytes(len(content)),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take every kind twice, on a classic and on an Enhanced series; more of them by --damaged=N."""
    if "damage" in metafunc.fixturenames:
        number = max(metafunc.config.getoption("--damaged"), 4 * len(DAMAGES))
        draws = [(list(DAMAGES)[index % len(DAMAGES)], index) for index in range(number)]
        metafunc.parametrize(("damage", "number"), draws, ids=[f"{kind}-{index}" for kind, index in draws])


def test_a_damaged_series_is_refused_or_is_the_same_image(damage: str, number: int, tmp_path: Path) -> None:
    """A change may hit what is not read; then the image is as it was, at its place."""
    random = np.random.default_rng(number)
    whole = [enhanced(frames_of(LUMP))] if number // len(DAMAGES) % 2 else classic(LUMP)
    folder = save(whole, tmp_path / "dicom")
    path = sorted(folder.iterdir())[len(whole) // 2]
    path.write_bytes(DAMAGES[damage](path.read_bytes(), random))
    series, unread = dicom_series(folder)
    new = new_study_of_series(select(series, named={}, sequences=["T2"]), tmp_path / "out", study_id="p")
    assert new.study is not None or len(new.problem) > 20
    assert series or unread
    if new.study is not None:
        image = sitk.ReadImage(str(new.study.files["T2"]))
        voxels = sitk.GetArrayFromImage(image)
        assert voxels.shape == LUMP.shape or new.notes
        assert np.isfinite(voxels).all()
