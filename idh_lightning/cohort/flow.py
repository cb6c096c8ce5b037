"""How many patients came in, were left out and why, and where the others went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from idh_lightning.cohort.checks import refused_studies
from idh_lightning.cohort.splits import SPLITS
from idh_lightning.cohort.study import Cohort

FLOW_COLUMNS: tuple[str, ...] = ("step", "group", "label", "patients", "studies")


def cohort_flow(cohort: Cohort, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the flow of patients from the table to the splits.

    Args:
        cohort: Settled; or refused, with studies whose errors stand.
        table: As a split returns it, or None before the split.

    Returns:
        One row per box: step ("read", "excluded", "refused", "used" or "split"), group (the first reason of an
        exclusion or refusal, or the split), label ("wildtype", "mutant" or ""), patients, studies. A patient counts as
        excluded where no study is left, under the reason of the first, so that read = excluded + refused + used and
        used = the splits, for both counts.
    """
    steps = {"excluded": cohort.exclusions, "refused": refused_studies(cohort)}
    faulty = {exclusion.study_id for exclusion in steps["refused"]}
    studies = [study for study in cohort.studies if study.study_id not in faulty]
    used = {study.patient_id for study in studies}
    lost: dict[str, tuple[str, str]] = {}
    for step, exclusions in steps.items():
        for exclusion in exclusions:
            if exclusion.patient_id not in used:
                lost.setdefault(exclusion.patient_id, (step, _reason(exclusion.reason)))
    rows = [("read", "", "", len(used) + len(lost), len(studies) + sum(map(len, steps.values())))]
    for step, exclusions in steps.items():
        for reason, count in sorted(Counter(_reason(exclusion.reason) for exclusion in exclusions).items()):
            rows.append((step, reason, "", sum(first == (step, reason) for first in lost.values()), count))
    rows += _by_label("used", "", ((study.patient_id, study.label) for study in studies))
    if table is not None:
        for split in SPLITS:
            part = table[table["split"] == split]
            rows += _by_label("split", split, zip(part["patient_id"], part["label"], strict=True))
    return pd.DataFrame(rows, columns=list(FLOW_COLUMNS))


def _reason(text: str) -> str:
    """Return the check that an exclusion begins with, in words."""
    return text.split(":", 1)[0]


def _by_label(step: str, group: str, studies: Iterable[tuple[str, int]]) -> list[tuple[str, str, str, int, int]]:
    listed = list(studies)
    rows = []
    for label, word in enumerate(("wildtype", "mutant")):
        patients = [patient for patient, own in listed if own == label]
        rows.append((step, group, word, len(set(patients)), len(patients)))
    return rows
