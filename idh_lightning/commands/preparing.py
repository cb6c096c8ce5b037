"""Checks of a cohort, its volumes in the store and its pictures, without training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from idh_lightning.cohort import Cohort
from idh_lightning.files import atomic_write, write_text
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.inference.study_page import write_refused
from idh_lightning.reports.drawing import panel_title
from idh_lightning.reports.panels import brain_panel, cam_panel, registration_panel
from idh_lightning.runs.preparation import prepare_configured
from idh_lightning.runs.rehearsal import check
from idh_lightning.volumes import PrepareReport, VolumeStore
from idh_lightning.volumes.mapping import head_around, pair_around


def prepare(config: DictConfig) -> PrepareReport:
    """Prepare the cohort of a configuration, write and print what was found, and return what preparing it took.

    Errors in it are raised as one CohortError where `cohort.on_error` is "raise".
    """
    check(config)
    folder = Path(config.paths.run)
    inspect = partial(write_refused_panels, folder=folder / "figures") if config.figures else None
    prepared = prepare_configured(config, must_split=False, inspect=inspect)
    cohort, store, report = prepared.cohort, prepared.store, prepared.report
    write_text(folder / "brains.csv", brains_table(cohort, store).to_csv(index=False))
    if len(registered := registrations_table(cohort, store)):
        write_text(folder / "registrations.csv", registered.to_csv(index=False))
    if config.figures:
        write_study_panels(cohort, store, folder / "figures")
    Console(soft_wrap=True).print(
        f"{len(cohort.studies)} studies of {len({study.patient_id for study in cohort.studies})} patients are ready, "
        f"{len(cohort.exclusions)} excluded; {report.built} volumes made and {report.reused} found "
        f"in {report.elapsed_s:.0f} s.\nStore:  {store.folder}\nReport: {folder / 'cohort_report.html'}",
        highlight=False,
    )
    return report


def brains_table(cohort: Cohort, store: VolumeStore) -> pd.DataFrame:
    """Table of the brains of a cohort: volume, whether each was extracted from a head, tumour mask within it."""
    found = [store.open(study).found for study in cohort.studies]
    return pd.DataFrame(
        {
            "study_id": [study.study_id for study in cohort.studies],
            "brain_ml": [round(one.volume_ml, 1) for one in found],
            "extracted": [one.extracted for one in found],
            "tumour_kept": [None if one.tumour_kept is None else round(one.tumour_kept, 4) for one in found],
        }
    )


def registrations_table(cohort: Cohort, store: VolumeStore) -> pd.DataFrame:
    """Table of the sequences of a cohort that were registered: why, how far each was off, and the quality of it."""
    return pd.DataFrame(
        {
            "study_id": study.study_id,
            "sequence": one.sequence,
            "reference": one.reference,
            "reason": one.reason,
            "moved_mm": round(one.moved_mm, 2),
            "turned_degrees": round(one.turned_degrees, 2),
            "quality": round(one.quality, 3),
        }
        for study in cohort.studies
        for one in store.open(study).registrations
    )


def write_refused_panels(cohort: Cohort, report: PrepareReport, folder: Path) -> None:
    """Write pictures of registrations for which studies are refused, in place of all that an earlier run has drawn."""
    for old in folder.glob("*_registered.png"):
        old.unlink()
    for study in cohort.studies:
        write_refused(study, report, ResultFolder(folder))


def write_study_panels(cohort: Cohort, store: VolumeStore, folder: Path) -> None:
    """Write one picture per study: what the network will be given, with the tumour outlined, in three planes.

    Where the brain was extracted from a head, a second one, <study_id>_brain.png, shows the head with its outline; a
    sequence that was registered has one as well, <study_id>_<sequence>_registered.png, also of studies that are refused
    for it.
    """
    for study in track(cohort.studies, description="Drawing studies"):
        stored = store.open(study)
        image = np.asarray(stored.image, dtype=np.float32)
        title = panel_title(study, cohort.target)
        figure = cam_panel(image, cohort.sequences, None, stored.mask, stored.affine_ras, title)
        with atomic_write(folder / f"{study.study_id}.png") as temporary:
            figure.savefig(temporary, dpi=90)
        if stored.found.extracted:
            name = stored.found.sequence
            head = head_around(study.files[name], stored)
            figure = brain_panel(*head, f"{study.study_id}, {name}: brain of {stored.found.volume_ml:.0f} mL")
            with atomic_write(folder / f"{study.study_id}_brain.png") as temporary:
                figure.savefig(temporary, dpi=90)
        for one in stored.registrations:
            pair = pair_around(study.files, one, stored.grid)
            figure = registration_panel(*pair, f"{study.study_id}: {one.words}")
            with atomic_write(folder / f"{study.study_id}_{one.sequence}_registered.png") as temporary:
                figure.savefig(temporary, dpi=90)
