"""How many patients came in, were left out and why, and where the others went."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from idh_lightning.cohort.splits import SPLITS
from idh_lightning.cohort.study import Cohort

FLOW_COLUMNS: tuple[str, ...] = ("step", "group", "label", "patients", "studies")


def cohort_flow(cohort: Cohort, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the flow of patients from the table to the splits.

    Args:
        cohort: Settled, so that every faulty study is among the exclusions.
        table: As a split returns it, or None before the split.

    Returns:
        One row per box: step ("read", "excluded", "used" or "split"), group (the first reason of an exclusion, or the
        split), label ("wildtype", "mutant" or ""), patients, studies. A patient counts as excluded where no study is
        left, under the reason of the first, so that read = excluded + used and used = the splits, for both counts.
    """
    used = {study.patient_id for study in cohort.studies}
    lost: dict[str, str] = {}
    for exclusion in cohort.exclusions:
        if exclusion.patient_id not in used:
            lost.setdefault(exclusion.patient_id, _reason(exclusion.reason))
    rows = [("read", "", "", len(used) + len(lost), len(cohort.studies) + len(cohort.exclusions))]
    for reason in sorted({_reason(exclusion.reason) for exclusion in cohort.exclusions}):
        studies = sum(_reason(exclusion.reason) == reason for exclusion in cohort.exclusions)
        rows.append(("excluded", reason, "", sum(first == reason for first in lost.values()), studies))
    rows += _by_label("used", "", ((study.patient_id, study.label) for study in cohort.studies))
    if table is not None:
        for split in SPLITS:
            part = table[table["split"] == split]
            rows += _by_label("split", split, zip(part["patient_id"], part["label"], strict=True))
    return pd.DataFrame(rows, columns=list(FLOW_COLUMNS))


def _reason(text: str) -> str:
    """Return the check that an exclusion begins with, in words."""
    return text.split(":", 1)[0].replace("_", " ")


def _by_label(step: str, group: str, studies: Iterable[tuple[str, int]]) -> list[tuple[str, str, str, int, int]]:
    listed = list(studies)
    rows = []
    for label, word in enumerate(("wildtype", "mutant")):
        patients = [patient for patient, own in listed if own == label]
        rows.append((step, group, word, len(set(patients)), len(patients)))
    return rows
