"""Cohorts: study records, readers of tables and folders, labels, checks, and patient-grouped splits."""

from idh_lightning.cohort.checks import cohort_flow, exclusions_table, faults_table, raise_or_exclude
from idh_lightning.cohort.combined import Combined
from idh_lightning.cohort.labels import MUTANT, WILDTYPE
from idh_lightning.cohort.layouts import BIDS, EGD, UCSFPDGM, UPENNGBM, BraTS, Table
from idh_lightning.cohort.leakage import DevelopmentPatients
from idh_lightning.cohort.reader import Reader
from idh_lightning.cohort.splits import (
    SPLITS,
    AllTest,
    GivenSplit,
    HoldOut,
    KFold,
    LeaveSiteOut,
    cohort_table,
    verify_split,
    without_left_out,
)
from idh_lightning.cohort.study import SEQUENCES, Cohort, Exclusion, Fault, Study
from idh_lightning.cohort.targets import IDH, TARGETS, Target, target_of
from idh_lightning.cohort.unlabelled import NewStudy, new_studies, study_of_files

__all__ = [
    "BIDS",
    "EGD",
    "IDH",
    "MUTANT",
    "SEQUENCES",
    "SPLITS",
    "TARGETS",
    "UCSFPDGM",
    "UPENNGBM",
    "WILDTYPE",
    "AllTest",
    "BraTS",
    "Cohort",
    "Combined",
    "DevelopmentPatients",
    "Exclusion",
    "Fault",
    "GivenSplit",
    "HoldOut",
    "KFold",
    "LeaveSiteOut",
    "NewStudy",
    "Reader",
    "Study",
    "Table",
    "Target",
    "cohort_flow",
    "cohort_table",
    "exclusions_table",
    "faults_table",
    "new_studies",
    "raise_or_exclude",
    "study_of_files",
    "target_of",
    "verify_split",
    "without_left_out",
]
