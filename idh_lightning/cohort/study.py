"""The records that a cohort consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from idh_lightning.cohort.targets import IDH, Target

SEQUENCES: tuple[str, ...] = ("FLAIR", "T1", "T1c", "T2")
"""The MRI sequences in the order in which they are stacked as channels, everywhere."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One imaging session of one patient.

    Attributes:
        study_id: Unique within the cohort; names the files that a run writes about this study.
        patient_id: The person; the unit of splits and intervals. Follow-up studies share it.
        label: 0 or 1, the class of the target: wildtype and mutant where that is IDH.
        files: Sequence name -> NIfTI file, in the order of SEQUENCES; an absent sequence has no entry.
        mask: Tumour segmentation (any non-zero voxel is tumour), or None.
        age_years: Age at imaging, or None where unknown.
        sex: "F", "M" or None where unknown.
        follow_up: True for any session after the patient's first.
        carried: Further columns of the table (grade, diagnosis, MGMT ...) for subgroup analysis. They leak the
            label and never reach a model.
        aliases: Other names of the person.
    """

    study_id: str
    patient_id: str
    label: int
    files: Mapping[str, Path]
    mask: Path | None = None
    age_years: float | None = None
    sex: str | None = None
    follow_up: bool = False
    carried: Mapping[str, object] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a cohort: where, what, how bad, and what to do.

    Attributes:
        where: File, row or study, as a person would name it: "metadata.csv, study UCSF-PDGM-0169".
        study_id: The study it concerns, or None when it concerns the cohort as a whole.
        check: Short fixed name of the check, for example "unknown_label".
        found: What is there.
        expected: What should be.
        remedy: What the user does.
        severity: "error" stops the run (or excludes the study), "warning" is shown and recorded.
        patient_id: The patient of the study where that is known, so that a flow of patients can be counted.
    """

    where: str
    check: str
    found: str
    expected: str
    remedy: str
    study_id: str | None = None
    severity: Literal["error", "warning"] = "error"
    patient_id: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; expected {self.expected}. {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A study left out of the cohort, and why."""

    study_id: str
    patient_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The studies that a run uses and those that it leaves out.

    Attributes:
        name: For tables and titles, for example "ucsf_pdgm".
        sequences: The sequences that this cohort provides, a subset of SEQUENCES in that order; the model's channels.
        studies: Sorted by study_id; study_id unique.
        exclusions: Every study left out.
        faults: Everything found wrong so far, errors and warnings; `raise_or_exclude` turns the errors into one
            exception or into exclusions.
        notes: How the table was read and which columns are used for what, for people.
        target: What the labels are of.
    """

    name: str
    sequences: tuple[str, ...]
    studies: tuple[Study, ...]
    exclusions: tuple[Exclusion, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    target: Target = IDH

    def without(self, exclusions: Iterable[Exclusion]) -> Cohort:
        """Return the cohort without the studies that are named, which are among its exclusions then."""
        named = tuple(exclusions)
        lost = {exclusion.study_id for exclusion in named}
        return replace(
            self,
            studies=tuple(study for study in self.studies if study.study_id not in lost),
            exclusions=tuple(sorted((*self.exclusions, *named), key=lambda exclusion: exclusion.study_id)),
        )
