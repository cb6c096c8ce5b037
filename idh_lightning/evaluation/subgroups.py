"""Results in parts of the test patients: where a network that is good on the whole may be poor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from idh_lightning.evaluation.cross_validation import Folds
from idh_lightning.evaluation.discrimination import auroc, average_precision, concordance, divide
from idh_lightning.evaluation.intervals import Bootstrap, Statistic, absent, wilson
from idh_lightning.evaluation.measurement import Measurement, count_patients
from idh_lightning.evaluation.postprocessing import PostProcessing
from idh_lightning.evaluation.predictions import patient_predictions


def group_names(values: pd.Series[Any]) -> pd.Series[Any]:
    """Values as names: 4.0 is "4" (a column with gaps is read as floats), a gap is "unknown"."""

    def name(value: Any) -> str:
        if pd.isna(value):
            return "unknown"
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return values.map(name, na_action=None).astype(object)


def age_bands(ages: pd.Series[Any], edges: Sequence[float]) -> pd.Series[Any]:
    """Band of each age in years: "under 40", "40 to 60", "60 and over"; an edge is in the band above it."""
    cuts = sorted(edges)
    names = [
        f"under {cuts[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(cuts)),
        f"{cuts[-1]:g} and over",
    ]
    years = ages.to_numpy(dtype=float)
    bands = np.array(names, dtype=object)[np.searchsorted(cuts, years, side="right")]
    return pd.Series(np.where(np.isnan(years), "unknown", bands), index=ages.index, dtype=object)


def group_scores(patients: pd.DataFrame, *, minimum: int, resamples: Bootstrap) -> dict[str, Statistic]:
    """`auroc`, `accuracy`, `sensitivity` and `specificity` of a group, each where enough patients carry it.

    Args:
        patients: One row each: label, logit, predicted.
        minimum: The fewest patients that a statistic may rest on: mutants for sensitivity, wildtypes for specificity,
            of each for the area. With fewer its value is null, and `why` says "too few".
        resamples: Of these patients, stratified by label.
    """
    labels = patients["label"].to_numpy(dtype=np.int64)
    right = patients["predicted"].to_numpy(dtype=np.int64) == labels
    mutant = labels == 1

    def too_few(n: int, who: str) -> Statistic:
        return absent(f"too few: {n} {who}, {minimum} needed", n)

    def share(among: Any, who: str) -> Statistic:
        n = int(among.sum())
        return wilson(int(right[among].sum()), n, resamples.confidence) if n >= minimum else too_few(n, who)

    rarer = min(
        ("mutant patients", int(mutant.sum())), ("wildtype patients", int((~mutant).sum())), key=lambda pair: pair[1]
    )
    area = too_few(rarer[1], rarer[0])
    if rarer[1] >= minimum:
        area = auroc(labels, patients["logit"].to_numpy(dtype=float), resamples=resamples)
    return {
        "auroc": area,
        "accuracy": share(np.ones(len(labels), dtype=bool), "patients"),
        "sensitivity": share(mutant, "mutant patients"),
        "specificity": share(~mutant, "wildtype patients"),
    }


def within_groups_auroc(
    patients: pd.DataFrame, groups: pd.Series[Any], *, minimum: int, resamples: int, seed: int, confidence: float
) -> Statistic:
    """Area over mutant-wildtype pairs of the same group, with a bootstrap interval within group and label.

    It answers whether the network sees more than the group: predicting nothing but the grade gives 0.5 within grades.
    Groups without both classes have no pairs and do not count; with fewer than `minimum` patients of each class in all
    groups that count there is no value.
    """
    labels = patients["label"].to_numpy(dtype=np.int64)
    scores = patients["logit"].to_numpy(dtype=float)
    names = groups.to_numpy(dtype=object)
    mixed = [name for name in sorted(set(names)) if len(set(labels[names == name])) == 2]
    inside = np.isin(names, mixed)
    counts = np.bincount(labels[inside], minlength=2)
    if counts.min() < minimum:
        return absent(f"too few: {counts.min()} of a class in groups that have both, {minimum} needed", counts.sum())
    labels, scores, names = labels[inside], scores[inside], names[inside]
    strata = [f"{label} {name}" for label, name in zip(labels, names, strict=True)]
    drawn = Bootstrap.draw(strata, resamples=resamples, seed=seed, confidence=confidence)
    right, pairs = np.zeros(len(drawn.weights)), np.zeros(len(drawn.weights))
    for name in mixed:
        member = names == name
        more_right, more_pairs = concordance(labels[member], scores[member], drawn.weights[:, member])
        right, pairs = right + more_right, pairs + more_pairs
    return drawn.interval(divide(right, pairs))


def subgroup_metrics(
    studies: pd.DataFrame,
    learnt: PostProcessing | Folds,
    named: Mapping[str, str],
    edges: Sequence[float],
    settings: Measurement,
) -> dict[str, Any]:
    """Results in each subgroup; studies are grouped first and then reduced to patients within the group."""
    entries: dict[str, Any] = {}
    columns = {name: group_names(studies[column]) if column in studies else None for name, column in named.items()}
    columns["age"] = age_bands(studies["age_years"], edges) if "age_years" in studies else None
    for name, groups in columns.items():
        column = named.get(name, "age_years")
        if groups is None:
            entries[name] = {"column": column, "why": f"no column {column} in the cohort"}
            continue
        patients = patient_predictions(studies.assign(_group=groups), learnt)
        entries[name] = {
            "column": column,
            "groups": {},
            "within_auroc": within_groups_auroc(
                patients,
                patients["_group"],
                minimum=settings.minimum_group,
                resamples=settings.bootstrap,
                seed=settings.seed,
                confidence=settings.confidence,
            ),
        }
        for group in _ordered(groups.unique()):
            members = patient_predictions(studies[groups == group], learnt)
            entries[name]["groups"][group] = {
                "n": len(members),
                "n_mutant": int(members["label"].sum()),
                **group_scores(members, minimum=settings.minimum_group, resamples=settings.resamples(members["label"])),
            }
    return entries


def sensitivity_analyses(
    studies: pd.DataFrame,
    learnt: PostProcessing | Folds,
    without: Mapping[str, Mapping[str, Any]],
    settings: Measurement,
) -> dict[str, Any]:
    """Results without some studies, and over studies in place of patients."""
    entries: dict[str, Any] = {}
    for name, left_out in without.items():
        column, value = left_out["column"], left_out["value"]
        entry: dict[str, Any] = {"column": column, "value": value}
        entries[f"without_{name}"] = entry
        if column not in studies:
            entry["why"] = f"no column {column} in the cohort"
            continue
        kept = studies[group_names(studies[column]) != str(value)]
        entry |= {"studies_left_out": len(studies) - len(kept), **count_patients(kept)}
        if min(entry["n_mutant"], entry["n"] - entry["n_mutant"]) < settings.minimum_group:
            entry["why"] = f"too few: {settings.minimum_group} patients of each class needed"
            continue
        entry["metrics"] = settings.measured(patient_predictions(kept, learnt))
    entries["every_study"] = _every_study(studies, settings)
    return entries


def _every_study(studies: pd.DataFrame, settings: Measurement) -> dict[str, Any]:
    """Areas over studies instead of patients; the studies of a patient are resampled together."""
    entry: dict[str, Any] = count_patients(studies)
    if entry["studies"] == entry["n"]:
        return entry | {"why": "each patient has one study"}
    labels, logits = studies["label"].to_numpy(dtype=np.int64), studies["logit"].to_numpy(dtype=float)
    resamples = settings.resamples(labels, studies["patient_id"].to_numpy(dtype=object))
    precision = average_precision(labels, logits, resamples.weights)
    return entry | {
        "metrics": {
            "auroc": auroc(labels, logits, resamples=resamples),
            "average_precision": resamples.interval(precision),
        }
    }


def _ordered(groups: Iterable[str]) -> list[str]:
    """Age bands from young to old, all else by name, and the unknown last."""
    return sorted(groups, key=lambda name: (name == "unknown", not name.startswith("under "), name))
