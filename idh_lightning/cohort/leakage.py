"""Leakage between cohorts: hashes of the patients of a run, which a checkpoint carries and which name nobody."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Self

from idh_lightning.cohort.identity import canonical_patient
from idh_lightning.cohort.study import Study

MEANS: tuple[str, ...] = ("patient_id", "image")
"""How a study can be recognised: by the identifier of its patient, or by the voxels of one of its images."""

_BYTES = 12


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A study of a new cohort that the network has met before.

    Attributes:
        study: As the new cohort has it.
        split: Where its patient was: train, validation or test.
        means: How it was recognised: "patient_id" or "image".
    """

    study: Study
    split: str
    means: str

    @property
    def how(self) -> str:
        """By what it was recognised, in words."""
        return "its patient_id" if self.means == "patient_id" else "the voxels of an image"

    @property
    def reason(self) -> str:
        """For exclusions.csv: the check in words, then the details."""
        return f"seen in {'training' if self.split == 'train' else self.split}: the checkpoint knows it by {self.how}"


@dataclass(frozen=True, kw_only=True)
class DevelopmentPatients:
    """Salted hashes of the patients of a run and of their images.

    An identifier can be guessed by somebody who holds the checkpoint and tries all that are likely: the salt keeps
    ready-made tables from working, and scrypt makes each guess dear. Images cannot be guessed. They are recognised
    under any name, compression or header, but not after resampling or a change of intensities.

    Attributes:
        salt: Random, of this checkpoint.
        patients: Split -> hashes of the patients' identifiers, all those of a patient who has several.
        images: Split -> hashes of the images' voxels.
        earlier: Those of the network whose weights the training began with, who are known by their images alone, since
            another cohort may have other patients under the same identifiers.
    """

    salt: str
    patients: Mapping[str, Set[str]]
    images: Mapping[str, Set[str]]
    earlier: DevelopmentPatients | None = None

    @classmethod
    def of(cls, studies: Iterable[Study], splits: Mapping[str, str], fingerprints: Mapping[str, Iterable[str]]) -> Self:
        """Hashes of the studies of a run, from study_id -> split and study_id -> hashes of the voxels of its images."""
        salt = secrets.token_hex(16)
        patients: dict[str, set[str]] = defaultdict(set)
        images: dict[str, set[str]] = defaultdict(set)
        for study in studies:
            split = splits[study.study_id]
            patients[split].update(_of_names(study, salt))
            images[split].update(_of_image(name, salt) for name in fingerprints[study.study_id])
        return cls(salt=salt, patients=dict(patients), images=dict(images))

    def find(
        self,
        studies: Iterable[Study],
        fingerprints: Mapping[str, Iterable[str]],
        *,
        means: Sequence[str] = MEANS,
        splits: Sequence[str] = ("train", "validation"),
    ) -> list[Overlap]:
        """Return which of some studies belong to patients of these splits, in their order, each once.

        All studies of a patient count as seen as soon as one is.

        Args:
            studies: Of a new cohort.
            fingerprints: study_id -> hashes of the voxels of its images.
            means: Some of MEANS.
            splits: Of the run.
        """
        studies = list(studies)
        known: dict[str, tuple[str, str]] = {}
        for study in studies:
            found: dict[str, tuple[Mapping[str, Set[str]], set[str]]] = {}
            if "patient_id" in means and study.patient_id not in known:
                found["patient_id"] = (self.patients, _of_names(study, self.salt))
            if "image" in means:
                found["image"] = (self.images, {_of_image(name, self.salt) for name in fingerprints[study.study_id]})
            for how, (table, hashes) in found.items():
                for split in splits:
                    if hashes & table.get(split, frozenset()):
                        known.setdefault(study.patient_id, (split, how))
        if self.earlier is not None and "image" in means:
            for one in self.earlier.find(studies, fingerprints, means=("image",), splits=splits):
                known.setdefault(one.study.patient_id, (one.split, one.means))
        return [
            Overlap(study=study, split=known[study.patient_id][0], means=known[study.patient_id][1])
            for study in studies
            if study.patient_id in known
        ]

    def to_dict(self) -> dict[str, Any]:
        """Primitives, for a checkpoint."""
        kinds = {"patients": self.patients, "images": self.images}
        hashes = {kind: {s: sorted(known[s]) for s in known} for kind, known in kinds.items()}
        return {"salt": self.salt, **hashes, "earlier": None if self.earlier is None else self.earlier.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Hashes that `to_dict` described."""
        known = {kind: {s: frozenset(hashes) for s, hashes in state[kind].items()} for kind in ("patients", "images")}
        earlier = state.get("earlier")
        return cls(salt=state["salt"], **known, earlier=None if earlier is None else cls.from_dict(earlier))


def _of_names(study: Study, salt: str) -> set[str]:
    return {_of_patient(canonical_patient(name), salt) for name in (study.patient_id, *study.aliases)}


def _of_patient(patient_id: str, salt: str) -> str:
    return hashlib.scrypt(patient_id.encode(), salt=bytes.fromhex(salt), n=2**10, r=8, p=1, dklen=_BYTES).hex()


def _of_image(fingerprint: str, salt: str) -> str:
    return hashlib.blake2b(fingerprint.encode(), salt=bytes.fromhex(salt), digest_size=_BYTES).hexdigest()
