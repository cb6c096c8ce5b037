"""Entries of the volume store: a folder of arrays with their description, checked before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from idh_lightning.errors import VolumeError
from idh_lightning.volumes.brain import BrainRecord
from idh_lightning.volumes.reading import RAS_LPS, Geometry
from idh_lightning.volumes.registration import Registration

STORE_FORMAT = 2
"""Raise it whenever the same files and settings give another entry: old entries are then made anew."""

STORE_CHECKS = 4
"""Raise it whenever the same files give other faults: entries are then made anew under their names, which seeds of
augmentation depend on."""

ENTRY_FILE = "entry.json"


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A prepared study; its arrays stay on disk until they are looked at.

    Attributes:
        study_id: Whose it is.
        key: Names its folder in the store.
        image: As in `Volume`, but float16; mask, brain, presence and affine likewise.
        geometry: Of the study's own FLAIR, or what else the others were brought to, as in its file.
        fingerprints: Sequence -> hash of its voxels as they are in its file, whatever its name, header or compression.
        found: How the brain was found.
        registrations: Of the sequences that were not in their place.
    """

    study_id: str
    key: str
    image: NDArray[np.float16]
    mask: NDArray[np.uint8] | None
    brain: NDArray[np.uint8]
    presence: NDArray[np.float32]
    affine: NDArray[np.float64]
    geometry: Geometry
    fingerprints: Mapping[str, str]
    found: BrainRecord
    registrations: tuple[Registration, ...] = ()

    @classmethod
    def at(cls, folder: Path, entry: Mapping[str, Any]) -> StoredVolume:
        """Stored volume of a folder whose entry was read; only the headers of its arrays are.

        Raises:
            VolumeError: If an array is not as the entry describes it.
        """
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in entry["arrays"]}
        for name, array in arrays.items():
            description = entry["arrays"][name]
            if list(array.shape) != description["shape"] or array.dtype.str != description["dtype"]:
                raise VolumeError(f"{folder / name}.npy holds {array.dtype} {array.shape}. Prepare the cohort again.")
        return cls(
            study_id=entry["study_id"],
            key=entry["key"],
            image=arrays["image"],
            mask=arrays.get("mask"),
            brain=arrays["brain"],
            presence=np.array(entry["presence"], dtype=np.float32),
            affine=np.array(entry["affine"], dtype=np.float64),
            geometry=Geometry(**{key: tuple(value) for key, value in entry["native"].items()}),
            fingerprints=entry["fingerprints"],
            found=BrainRecord(**entry["brain"]),
            registrations=tuple(Registration.from_dict(one) for one in entry["registrations"]),
        )

    @property
    def grid(self) -> Geometry:
        """Geometry of the arrays."""
        depth, height, width = self.brain.shape
        return Geometry.from_affine((width, height, depth), self.affine)

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """[4, 4], voxel indices (w, h, d) of the grid to RAS mm."""
        return RAS_LPS @ self.affine

    @property
    def spacing_mm(self) -> list[float]:
        """Voxel size of the grid along D, H and W."""
        sizes: list[float] = np.linalg.norm(self.affine[:3, :3], axis=0)[::-1].tolist()
        return sizes


class DamageError(Exception):
    """An entry is not as it was written, or not there."""


class OutdatedError(DamageError):
    """An entry is whole, and less is known of its images than this version would say."""


def described_array(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    """Description of an array that was written to a file."""
    size, checksum = path.stat().st_size, file_checksum(path)
    return {"shape": array.shape, "dtype": array.dtype.str, "bytes": size, "sha256": checksum}


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_entry(folder: Path) -> dict[str, Any]:
    """Description of an entry, after the checks that cost nothing: presence, format, sizes."""
    try:
        entry = cast(dict[str, Any], json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8")))
        if entry["format"] != STORE_FORMAT or entry["key"] != folder.name:
            raise DamageError(f"{ENTRY_FILE} is of another entry")
        if entry.get("checks") != STORE_CHECKS:
            raise OutdatedError("its images were checked by another version")
        for name, array in entry["arrays"].items():
            size = (folder / f"{name}.npy").stat().st_size
            if size != array["bytes"]:
                raise DamageError(f"{name}.npy has {size} bytes of {array['bytes']}")
    except FileNotFoundError as error:
        raise DamageError(
            f"there is no {Path(error.filename).name}" if folder.exists() else "there is no entry"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{ENTRY_FILE} cannot be read ({error})") from error
    return entry


def verified_entry(folder: Path) -> dict[str, Any]:
    """Description of an entry after reading all of it and comparing the checksums."""
    entry = read_entry(folder)
    for name, array in entry["arrays"].items():
        if file_checksum(folder / f"{name}.npy") != array["sha256"]:
            raise DamageError(f"{name}.npy has another checksum than when it was written")
    return entry
