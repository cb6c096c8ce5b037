"""The synthetic cohort on disk: written once in the layout of UCSF-PDGM v5, then read like the real one."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]
from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from idh_lightning.cli.signals import end_with
from idh_lightning.cohort import UCSFPDGM
from idh_lightning.cohort.files import from_home
from idh_lightning.cohort.reader import refuse_single_name
from idh_lightning.cohort.study import SEQUENCES, Cohort, Study
from idh_lightning.cohort.targets import target_of
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.files import locked
from idh_lightning.phantom.anatomy import Grid
from idh_lightning.phantom.groups import CLINICAL_COLUMNS, SIGNS, draw_patients, list_studies
from idh_lightning.phantom.lesion import Signs
from idh_lightning.phantom.render import render_study

PHANTOM_FORMAT = 7
"""Raised whenever the same settings would give other files, so that an old cohort is never taken for a new one."""

CLINICAL_TABLE = "UCSF-PDGM-metadata_v5.csv"
SIGNS_TABLE = "signs.csv"
MANIFEST = "manifest.json"

_SIGN_COLUMNS = (
    "study_id", "patient_id", "label", "group", "follow_up", "missing",
    *SIGNS, "lobe", "side", "volume_ml", "oedema_share", "water", "mark",
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """All that decides what is in a cohort."""

    patients: int
    spacing_mm: float
    control: str
    seed: int
    missing_sequence: float

    def folder_name(self) -> str:
        """Name for people that ends in a hash of all settings, so that no two cohorts share a folder."""
        digest = hashlib.sha256(json.dumps([PHANTOM_FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()
        return f"{self.control}-{self.patients}-{self.spacing_mm:g}mm-{digest[:8]}"


class PhantomCohort:
    """A cohort of synthetic gliomas with known evidence, in files like those of UCSF-PDGM v5."""

    def __init__(
        self,
        folder: str | Path,
        *,
        patients: int = 280,
        spacing_mm: float = 2.0,
        control: str | None = "natural",
        seed: int = 0,
        missing_sequence: float = 0.0,
        workers: int | None = None,
        target: str = "idh",
        classes: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        on_error: Literal["raise", "exclude"] = "raise",
        sequences: Sequence[str] | None = None,
        missing: Literal["error", "zero"] = "error",
    ) -> None:
        """Check the settings; nothing is written yet.

        Args:
            folder: Holds one subfolder per cohort, named after its settings.
            patients: Number of patients; about one study in eighty is a follow-up on top of them.
            spacing_mm: Voxel size; 1 gives 240 x 240 x 155 voxels as in UCSF-PDGM.
            control: natural, null, trivial or shortcut; None, which is how YAML reads a bare null, means null.
            seed: Of the cohort. The training seed is another one, so that it does not change the patients.
            missing_sequence: Share of the studies that lack one of the sequences.
            workers: Processes that write, or None for one per core. The files do not depend on it.
            target: What is predicted, as in `UCSFPDGM`, like all that follows. The files do not depend on it.
            classes: See there.
            exclude: See there.
            on_error: See there.
            sequences: See there; all of them are written anyway.
            missing: See there.

        Raises:
            ConfigError: If a setting is out of range.
        """
        self.settings = PhantomSettings(
            patients=int(patients),
            spacing_mm=float(spacing_mm),
            control="null" if control is None else control,
            seed=int(seed),
            missing_sequence=float(missing_sequence),
        )
        if not 0.5 <= spacing_mm <= 8:
            raise ConfigError(f"cohort.spacing_mm: {spacing_mm}; expected 0.5 to 8 mm. Correct cohort.spacing_mm.")
        if seed < 0:
            raise ConfigError(f"cohort.seed: {seed}; expected 0 or more. Correct cohort.seed.")
        if workers is not None and workers < 1:
            raise ConfigError(f"cohort.workers: {workers}; expected 1 or more, or null for one per core. Correct it.")
        # Drawing takes milliseconds and checks what it is given.
        _studies(self.settings)
        self.folder = from_home(folder) / self.settings.folder_name()
        self.workers = workers
        self.on_error = on_error
        refuse_single_name(exclude)
        self.exclude = tuple(exclude)
        target_of(target, classes)  # refuses what the reader would refuse once all is written
        self._reading: dict[str, Any] = {
            "target": target,
            "classes": classes,
            "on_error": on_error,
            "sequences": sequences,
            "missing": missing,
        }

    def read(self) -> Cohort:
        """Return the cohort through the reader of the real data, after writing it unless it is there already."""
        folder = self.write()
        return UCSFPDGM(
            name="phantom", folder=folder, table=folder / CLINICAL_TABLE, exclude=self.exclude, **self._reading
        ).read()

    def write(self) -> Path:
        """Return the folder of the cohort; it is written if it is not there, and finished if it is not complete.

        Studies go to a sibling `<folder>.partial`, each one whole or not at all, and the sibling takes the name of the
        folder once it is complete. A run that was interrupted therefore goes on where it stopped. Two runs that want
        the same cohort wait for each other.

        Raises:
            CohortError: If the folder is there but is not a complete cohort of these settings.
        """
        folder = self.folder
        if _is_there(folder, self.settings):  # whoever may only read needs no lock
            return folder
        partial = folder.with_name(folder.name + ".partial")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock"), needed=True):
            if _is_there(folder, self.settings):
                return folder
            partial.mkdir(exist_ok=True)
            for leftover in partial.glob(".*"):
                shutil.rmtree(leftover)
            studies = _studies(self.settings)
            self._write_studies(partial, studies)
            studies[list(CLINICAL_COLUMNS)].to_csv(partial / CLINICAL_TABLE, index=False, lineterminator="\n")
            signs = studies.assign(patient_id=[f"UCSF-PDGM-{number:04d}" for number in studies["patient_number"]])
            signs[list(_SIGN_COLUMNS)].to_csv(partial / SIGNS_TABLE, index=False, lineterminator="\n")
            (partial / MANIFEST).write_text(json.dumps(_manifest(self.settings), indent=2) + "\n")
            partial.rename(folder)
        logger.info("Synthetic cohort: %s (%d studies written)", folder, len(studies))
        return folder

    def _write_studies(self, partial: Path, studies: pd.DataFrame) -> None:
        """Write the studies that are not there yet, in several processes."""
        todo = [
            (index, row)
            for index, row in enumerate(studies.to_dict("records"))
            if not (partial / f"{row['study_id']}_nifti").exists()
        ]
        if len(todo) < len(studies):
            logger.info("Synthetic cohort: %d of %d studies are there", len(studies) - len(todo), len(studies))
        count = min(self.workers or cpu_count(), max(1, len(todo)))
        tasks = (delayed(_write_study)(partial, row, index, self.settings) for index, row in todo)
        # Loky's processes, unlike those of multiprocessing, neither fork a process that has threads nor import the
        # caller's main module with all that it imports.
        done = Parallel(
            n_jobs=count, backend="loky", return_as="generator_unordered", initializer=end_with, initargs=(os.getpid(),)
        )(tasks)
        for _ in track(done, description="Writing the synthetic cohort", total=len(todo)):
            pass
        if count > 1:
            get_reusable_executor(reuse=True).shutdown(wait=True)


def write_configured(config: DictConfig) -> None:
    """Write the cohort of a configuration, unless it is there already, and say where it is and who is in it."""
    folder = instantiate_section(config.cohort).write()
    signs = read_signs(folder)
    patients = signs.drop_duplicates("patient_id")
    mutant = int(patients["label"].sum())
    Console(soft_wrap=True).print(
        f"{len(patients)} patients ({mutant} mutant), {len(signs)} studies: {folder.resolve()}", highlight=False
    )


def read_signs(folder: str | Path) -> pd.DataFrame:
    """Latent signs of every study of a written cohort, indexed by study_id."""
    return pd.read_csv(Path(folder) / SIGNS_TABLE, keep_default_na=False, index_col="study_id")


def evidence_file(study: Study) -> Path | None:
    """File of `SignMasks` codes of a synthetic study; None where the study has none, as real ones do."""
    file = None if study.mask is None else study.mask.with_name(f"{study.study_id}_evidence.nii.gz")
    return file if file is not None and file.is_file() else None


def _studies(settings: PhantomSettings) -> pd.DataFrame:
    patients = draw_patients(settings.patients, seed=settings.seed, control=settings.control)
    return list_studies(patients, seed=settings.seed, missing_sequence=settings.missing_sequence, sequences=SEQUENCES)


def _manifest(settings: PhantomSettings) -> dict[str, object]:
    return {"format": PHANTOM_FORMAT, "settings": asdict(settings)}


def _is_there(folder: Path, settings: PhantomSettings) -> bool:
    if not folder.exists():
        return False
    path = folder / MANIFEST
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != _manifest(settings):
        raise CohortError(
            f"{path}: {'other settings' if found else 'not there'}; expected the manifest of a complete synthetic "
            "cohort. Delete the folder; it is written anew."
        )
    logger.info("Synthetic cohort: %s (there already)", folder)
    return True


def _write_study(folder: Path, row: Mapping[Any, Any], index: int, settings: PhantomSettings) -> None:
    """Render one study and write its files; the study's folder appears when all of them are there."""
    study_id = str(row["study_id"])
    images = render_study(
        Signs.of(row),
        spacing_mm=settings.spacing_mm,
        patient_seed=np.random.SeedSequence([settings.seed, 2, row["patient_number"]]),
        study_seed=np.random.SeedSequence([settings.seed, 3, index]),
    )
    arrays: dict[str, NDArray[np.generic]] = {
        sequence: values for sequence, values in images.sequences.items() if sequence != row["missing"]
    }
    arrays |= {"tumor_segmentation": images.labels, "evidence": images.evidence}
    unfinished = folder / f".{study_id}"
    unfinished.mkdir()
    for name, values in arrays.items():
        _write_nifti(unfinished / f"{study_id}_{name}.nii.gz", values, images.grid)
    unfinished.rename(folder / f"{study_id}_nifti")


def _write_nifti(path: Path, values: NDArray[np.generic], grid: Grid) -> None:
    """Write an array [D, H, W]; equal arrays give equal bytes, since the gzip header holds neither name nor time.

    Augmentation draws from a hash of the bytes. isal is five times as fast as zlib, but on a busy machine it packed one
    file in about five hundred in another way.
    """
    image = nib.Nifti1Image(values.transpose(2, 1, 0), grid.affine_ras())
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine_ras(), code=1)
    image.set_sform(grid.affine_ras(), code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
