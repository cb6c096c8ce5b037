"""Preparation of a cohort: read, checked, brought into the volume store, split, and written down."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import task_overrides
from idh_lightning.cohort import (
    SPLITS,
    TARGETS,
    Cohort,
    LeaveSiteOut,
    Study,
    cohort_table,
    exclusions_table,
    faults_table,
    raise_or_exclude,
    target_of,
    without_left_out,
)
from idh_lightning.cohort.leakage import MEANS
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import CohortError, SplitError
from idh_lightning.files import locked, write_text
from idh_lightning.reports.cohort_page import write_cohort_report
from idh_lightning.runs.harmonising import require_sites
from idh_lightning.volumes import PrepareReport, VolumeStore

logger = logging.getLogger(__name__)

Screen = Callable[[Cohort, VolumeStore], Cohort]
"""Leaves studies out, or refuses the cohort, once its volumes are in the store, before the split."""

Inspection = Callable[[Cohort, PrepareReport], None]
"""Looks at a cohort as it was read, with the studies that will be refused."""


@dataclass(frozen=True, kw_only=True)
class PreparedCohort:
    """Cohort that is ready for training.

    Attributes:
        cohort: Studies and exclusions; no errors are left.
        splits: One row per study: study_id, patient_id, label, split, fold, age_years, ...; None if it has no split.
        store: Holds the volumes of every study.
        report: Of preparing them.
    """

    cohort: Cohort
    splits: pd.DataFrame | None
    store: VolumeStore
    report: PrepareReport

    @property
    def table(self) -> pd.DataFrame:
        """The splits, where they are known to be there."""
        if self.splits is None:
            raise SplitError("the cohort has no split; expected one. Prepare it with must_split=True.")
        return self.splits

    @property
    def by_split(self) -> dict[str, list[Study]]:
        """Studies of train, validation and test."""
        split = dict(zip(self.table["study_id"], self.table["split"], strict=True))
        return {name: [one for one in self.cohort.studies if split.get(one.study_id) == name] for name in SPLITS}

    @property
    def sha256(self) -> str:
        """Hash of volumes, labels and split: two runs with the same one learnt from the same data."""
        keys = {study.study_id: self.store.open(study).key for study in self.cohort.studies}
        rows = self.table[["study_id", "patient_id", "label", "split"]].sort_values("study_id").to_numpy().tolist()
        return hashlib.sha256(json.dumps([[*map(str, row), keys[row[0]]] for row in rows]).encode()).hexdigest()

    def refuse_learnt_from(self, checkpoint: Checkpoint) -> None:
        """Raise a SplitError if a network learnt from patients by whom it would now be chosen or tested.

        They are known by identifier where the cohort is that of the checkpoint, else by the voxels of their images.
        """
        if checkpoint.development is None:
            logger.warning(
                "%s: its run wrote no report, so who trained it cannot be compared with the split.", checkpoint.file
            )
            return
        development, studies = checkpoint.development, self.by_split
        means = MEANS if development.cohort == self.cohort.name else ("image",)
        now = [*studies["validation"], *studies["test"]]
        fingerprints = {study.study_id: list(self.store.open(study).fingerprints.values()) for study in now}
        for split, before in (("test", ("train", "validation")), ("validation", ("train",))):
            if found := development.seen.find(studies[split], fingerprints, means=means, splits=before):
                raise SplitError(
                    f"{checkpoint.file}: learnt from {len(found)} of the {len(studies[split])} {split} studies, such "
                    f"as {found[0].study.study_id}; expected patients that it has not seen. Use the split of its run: "
                    f"split=given split.file={checkpoint.file.parent.parent / 'cohort.csv'}"
                )


def prepare_cohort(
    reader: Any,
    store_of: Callable[[tuple[str, ...]], VolumeStore],
    split: Callable[[Cohort], pd.DataFrame],
    run_folder: Path,
    *,
    must_split: bool = True,
    require: Callable[[Cohort], None] | None = None,
    screen: Screen | None = None,
    inspect: Inspection | None = None,
) -> PreparedCohort:
    """Read a cohort, put its volumes into the store, split its patients, and write down who is in and who is out.

    Writes cohort_report.html, exclusions.csv, cohort.csv and splits.csv into the run folder, and prints what was found
    wrong.

    Args:
        reader: Of the cohort.
        store_of: Volume store for the sequences of a cohort.
        split: Assigns patients to train, validation and test.
        run_folder: To write into.
        must_split: Whether a cohort that cannot be split is refused; else its table is None and a warning says why.
        require: Refuses a cohort before volumes are prepared.
        screen: Leaves studies out before the split.
        inspect: Called before faulty studies are refused.

    Raises:
        CohortError: If the table or the images are wrong and `cohort.on_error` is "raise"; it lists every fault. The
            report has been written by then, and the volumes of the sound studies are in the store.
        SplitError: If the patients cannot be split as asked, or are to be split by sites that the cohort does not name.
    """
    cohort: Cohort = reader.read()
    if isinstance(split, LeaveSiteOut):
        split.sites(cohort)  # a column that is not there is told before volumes are prepared
    if require is not None:
        require(cohort)
    store = store_of(cohort.sequences)
    console = Console(soft_wrap=True)
    for note in cohort.notes:
        console.print(note, markup=False, highlight=False)
    store.folder.mkdir(parents=True, exist_ok=True)
    # Whoever comes second, another process of this run or another run of a sweep, finds the work done.
    with locked(store.folder / ".preparing.lock") as note:
        report = replace(store.prepare(cohort.studies), note=note)
    if inspect is not None:
        inspect(cohort, report)
    found = replace(cohort, faults=(*cohort.faults, *report.faults))
    try:
        cohort = raise_or_exclude(cohort, report.faults, on_error=reader.on_error)
    except CohortError as error:
        page = write_cohort_report(found, run_folder / "cohort_report.html")
        found = replace(found, faults=tuple(fault for fault in found.faults if fault.severity == "warning"))
        raise CohortError(f"{error}\nEvery study that is refused, and why: {page}") from error
    finally:  # what is raised lists the errors itself
        if found.faults:
            console.print(faults_table(found, rows_per_check=5))
    if screen is not None:
        cohort = screen(cohort, store)
    table: pd.DataFrame | None = None
    try:
        table = split(cohort)
        cohort = without_left_out(cohort, table)
    except SplitError as error:
        if must_split:
            raise
        logger.warning("The cohort is prepared but cannot be split, so cohort.csv is not written. %s", error)
    finally:
        write_text(run_folder / "exclusions.csv", exclusions_table(cohort).to_csv(index=False))
        write_cohort_report(cohort, run_folder / "cohort_report.html", table)
    if table is not None:
        _write_tables(cohort, table, run_folder)
    return PreparedCohort(cohort=cohort, splits=table, store=store, report=report)


def _write_tables(cohort: Cohort, table: pd.DataFrame, run_folder: Path) -> None:
    """Write cohort.csv, with the files of every study since the report lays the maps over them, and splits.csv."""
    listed = cohort_table(cohort, table)
    files = pd.DataFrame.from_dict(
        {
            study.study_id: {
                name.lower(): str(path.absolute())
                for name, path in (*study.files.items(), ("mask", study.mask))
                if path is not None
            }
            for study in cohort.studies
        },
        orient="index",
    )
    for name in files:
        listed[name] = listed["study_id"].map(files[name])
    write_text(run_folder / "cohort.csv", listed.to_csv(index=False))
    splits = table[["study_id", "patient_id", "label", "split", "fold"]]
    write_text(run_folder / "splits.csv", splits.to_csv(index=False))


def prepare_configured(
    config: DictConfig, *, must_split: bool = True, screen: Screen | None = None, inspect: Inspection | None = None
) -> PreparedCohort:
    """Cohort of a configuration, prepared; see `prepare_cohort`."""
    column = (config.get("model") or {}).get("harmonise")
    return prepare_cohort(
        instantiate_section(config.cohort),
        partial(volume_store, config),
        instantiate_section(config.split),
        Path(config.paths.run),
        must_split=must_split,
        require=None if column is None else partial(require_sites, column),
        screen=screen,
        inspect=inspect,
    )


def take_target_over(config: DictConfig, checkpoint: Checkpoint) -> None:
    """Have a cohort that is to be judged read the target of a checkpoint; a CheckpointError if another is typed."""
    if "target" not in config.cohort:
        return
    target, section = checkpoint.target, config.cohort
    if any(one.startswith("cohort.target=") for one in task_overrides()) and section.target != target.name:
        checkpoint.require_target(target_of(section.target, section.classes))
    section.target = target.name
    if target.name not in TARGETS and section.classes is None:
        section.classes = list(target.classes)


def volume_store(config: DictConfig, sequences: Sequence[str]) -> VolumeStore:
    """Volume store of a configuration, for these sequences."""
    made: VolumeStore = instantiate_section(config.data.store)(
        preprocessing=instantiate_section(config.data.preprocessing), sequences=sequences
    )
    return made
