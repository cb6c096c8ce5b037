"""Damaged inputs end with a reason and without a number: some dozens of kinds here, any number with --damaged=500."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from test_predict import cohort, predictor, run  # noqa: F401 - fixtures
from tiny_studies import write_study

from idh_lightning.cohort import SEQUENCES
from idh_lightning.inference import Predictor

Damage = Callable[[Path, np.random.Generator], None]
"""Spoils one NIfTI file of a sound study."""


def voxels_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj).astype(np.float32), image.affine


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    nib.save(image, path)


def with_bytes(change: Callable[[bytes, np.random.Generator], bytes], *, inside: bool = False) -> Damage:
    """Change the bytes of the file, or those inside its compression."""

    def damage(path: Path, random: np.random.Generator) -> None:
        content = path.read_bytes()
        path.write_bytes(
            gzip.compress(change(gzip.decompress(content), random), 1) if inside else change(content, random)
        )

    return damage


def with_voxels(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Damage:
    def damage(path: Path, random: np.random.Generator) -> None:
        voxels, affine = voxels_of(path)
        save(path, change(voxels, random), affine)

    return damage


def with_affine(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Damage:
    def damage(path: Path, random: np.random.Generator) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        affine = change(nib.load(path).affine.copy(), random)
        content[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
        content[280:328] = affine[:3].astype("<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(content), 1))

    return damage


def with_header(offset: int, dtype: str, draw: Callable[[np.random.Generator], object]) -> Damage:
    def change(content: bytes, random: np.random.Generator) -> bytes:
        value = np.array(draw(random), dtype).tobytes()
        return content[:offset] + value + content[offset + len(value) :]

    return with_bytes(change, inside=True)


def some(voxels: np.ndarray, random: np.random.Generator, value: float) -> np.ndarray:
    flat = voxels.ravel().copy()
    flat[random.integers(0, flat.size, random.integers(1, 500))] = value
    return flat.reshape(voxels.shape)


def lost_slices(voxels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    axis = int(random.integers(3))
    length = voxels.shape[axis]
    start = int(length * random.uniform(0.35, 0.5))
    changed = np.moveaxis(voxels.copy(), axis, 0)
    changed[start : start + max(3, int(length * random.uniform(0.12, 0.4)))] = 0
    return np.moveaxis(changed, 0, axis)


def flipped_bit(content: bytes, random: np.random.Generator) -> bytes:
    place = int(random.integers(len(content) // 4, len(content)))
    return content[:place] + bytes([content[place] ^ (1 << int(random.integers(8)))]) + content[place + 1 :]


def bomb(content: bytes, random: np.random.Generator) -> bytes:
    return content + bytes(int(random.integers(48, 200)) << 20)


def replace_by(path: Path, other: str) -> None:
    path.unlink()
    if other == "folder":
        path.mkdir()
    elif other == "loop":
        path.symlink_to(path)
    elif other == "dangling":
        path.symlink_to(path.parent / "nowhere.nii.gz")
    elif other == "device":
        path.symlink_to("/dev/zero")
    elif other == "fifo":
        import os

        os.mkfifo(path)


DAMAGES: dict[str, Damage] = {
    "truncated": with_bytes(lambda content, random: content[: int(random.integers(400, len(content) - 8))]),
    "truncated_header": with_bytes(lambda content, random: content[: int(random.integers(1, 300))]),
    "truncated_inside": with_bytes(lambda content, random: content[: -int(random.integers(1, 20000))], inside=True),
    "empty": with_bytes(lambda content, random: b""),
    "empty_inside": with_bytes(lambda content, random: b"", inside=True),
    "text": with_bytes(lambda content, random: b"patient, FLAIR, 2024\n" * int(random.integers(1, 500))),
    "text_inside": with_bytes(lambda content, random: b"no image\n" * int(random.integers(1, 9999)), inside=True),
    "not_compressed": with_bytes(lambda content, random: gzip.decompress(content)[::-1]),
    "random_bytes": with_bytes(lambda content, random: random.bytes(int(random.integers(1, 99999)))),
    "random_inside": with_bytes(lambda content, random: random.bytes(int(random.integers(1, 99999))), inside=True),
    "flipped_bit": with_bytes(flipped_bit),
    "zeros_inside": with_bytes(lambda content, random: bytes(len(content)), inside=True),
    "bomb": with_bytes(bomb, inside=True),
    "nan": with_voxels(lambda voxels, random: some(voxels, random, np.nan)),
    "infinite": with_voxels(lambda voxels, random: some(voxels, random, -np.inf)),
    "constant": with_voxels(lambda voxels, random: np.full_like(voxels, random.integers(0, 100))),
    "four_dimensions": with_voxels(lambda voxels, random: np.stack([voxels] * int(random.integers(2, 4)), -1)),
    "one_slice": with_voxels(lambda voxels, random: voxels[:, :, :1]),
    "complex": with_voxels(lambda voxels, random: voxels.astype(np.complex64)),
    "colours": with_header(70, "<i2", lambda random: 128),
    "unknown_type": with_header(70, "<i2", lambda random: random.integers(3000, 9000)),
    "wider_type": with_header(70, "<i2", lambda random: 64),
    "bytes_as_other_type": with_bytes(
        lambda content, random: content[:352] + np.frombuffer(content[352:], "<i2").byteswap().tobytes(), inside=True
    ),
    "huge_header": with_header(42, "<i2", lambda random: random.integers(2000, 32000, 3)),
    "negative_header": with_header(42, "<i2", lambda random: [-5, 40, 40]),
    "zero_header": with_header(42, "<i2", lambda random: [0, 40, 40]),
    "dimensions": with_header(40, "<i2", lambda random: random.choice([-1, 0, 1, 2, 5, 9, 1000])),
    "far_offset": with_header(108, "<f4", lambda random: random.choice([1e9, 1e20, np.nan, np.inf, 5e8])),
    "nan_scale": with_header(112, "<f4", lambda random: [1.0, np.inf]),
    "nan_affine": with_affine(lambda affine, random: affine * np.nan),
    "zero_affine": with_affine(lambda affine, random: affine * 0),
    "tiny_spacing": with_affine(lambda affine, random: affine / 1000),
    "sheared": with_affine(lambda affine, random: affine + np.eye(4, k=1) * random.uniform(1, 3)),
    "elsewhere": with_affine(lambda affine, random: affine + np.eye(4)[:, 3:] @ np.ones((1, 4)) * 0 + _shift(random)),
    "lost_slices": with_voxels(lost_slices),
    "noise": with_voxels(lambda voxels, random: random.integers(1, 500, voxels.shape).astype(np.float32)),
    "shuffled": with_voxels(lambda voxels, random: random.permutation(voxels.ravel()).reshape(voxels.shape)),
    **{
        f"a_{other}": lambda path, random, other=other: replace_by(path, other)
        for other in ("folder", "loop", "dangling", "device", "fifo", "missing")
    },
}  # fmt: skip


def _shift(random: np.random.Generator) -> np.ndarray:
    shift = np.zeros((4, 4))
    shift[:3, 3] = random.uniform(120, 900, 3)
    return shift


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take every kind once, on a sequence of its own; more of them by --damaged=N."""
    if "kind" in metafunc.fixturenames:
        number = max(metafunc.config.getoption("--damaged"), len(DAMAGES))
        kinds = [list(DAMAGES)[index % len(DAMAGES)] for index in range(number)]
        draws = list(enumerate(kinds))
        metafunc.parametrize(("number", "kind"), draws, ids=[f"{kind}-{number}" for number, kind in draws])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_study(folder, "patient", seed=100, mask=False)
    return folder / "patient"


@pytest.fixture
def patient(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "patient"))


def test_the_sound_study_is_answered(predictor: Predictor, patient: Path) -> None:  # noqa: F811
    assert predictor.predict(patient)[0].status == "answered"


def test_no_number_is_given_for_a_damaged_sequence(
    number: int,
    kind: str,
    predictor: Predictor,  # noqa: F811
    patient: Path,
) -> None:
    random = np.random.default_rng(number)
    sequence = SEQUENCES[(number // len(DAMAGES) + number) % 4]
    DAMAGES[kind](patient / f"patient_{sequence}.nii.gz", random)
    began = time.monotonic()
    (answer,) = predictor.predict(patient)
    assert time.monotonic() - began < 30
    assert psutil.Process().memory_info().rss < 4e9
    if kind == "elsewhere" and answer.given:  # only its place is wrong, which registration puts right and tells of
        assert any("it was moved by" in text for text in answer.warnings)
        return
    assert answer.status in ("failed", "withheld"), (answer.status, answer.warnings, answer.probability)
    assert answer.probability is None
    assert all(len(reason) > 20 for reason in answer.reasons)
    assert answer.reasons


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for index, a in enumerate(SEQUENCES) for b in SEQUENCES[index + 1 :]],
)
def test_two_sequences_that_changed_places_are_noticed(
    first: str,
    second: str,
    predictor: Predictor,  # noqa: F811
    patient: Path,
) -> None:
    files = {name: patient / f"patient_{name}.nii.gz" for name in SEQUENCES}
    files[first], files[second] = files[second], files[first]
    (answer,) = predictor.predict(files)
    assert answer.status == "withheld"
    assert any(f"the file named {first} looks like {second}" in reason for reason in answer.reasons), answer.reasons


def test_one_image_under_two_names_is_noticed_though_its_intensities_differ(
    predictor: Predictor,  # noqa: F811
    patient: Path,
) -> None:
    voxels, affine = voxels_of(patient / "patient_T1.nii.gz")
    for scale in (1.0, 3.7):
        save(patient / "patient_T1c.nii.gz", voxels * scale, affine)
        (answer,) = predictor.predict(patient)
        assert answer.status == "withheld"
        assert any("the same image" in reason for reason in answer.reasons)


def test_a_head_whose_header_turns_it_upside_down_is_noticed(predictor: Predictor, patient: Path) -> None:  # noqa: F811
    for name in SEQUENCES:
        voxels, affine = voxels_of(patient / f"patient_{name}.nii.gz")
        save(patient / f"patient_{name}.nii.gz", voxels[:, :, ::-1], affine)
    (answer,) = predictor.predict(patient)
    assert answer.given is False or "Turned or upside down" in " ".join(answer.warnings)


def test_far_studies_are_flagged_instead_where_that_is_asked_for(
    run: Path,  # noqa: F811
    patient: Path,
) -> None:
    files = {name: patient / f"patient_{name}.nii.gz" for name in SEQUENCES}
    files["T1"], files["T2"] = files["T2"], files["T1"]
    (answer,) = Predictor(run, withhold=False).predict(files)
    assert answer.status == "flagged"
    assert answer.probability is not None
