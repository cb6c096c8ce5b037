"""Several runs side by side: folds pooled, seeds compared, two networks tested on the same patients."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn import metrics
from statsmodels.stats.multitest import multipletests

from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation.discrimination import compare_auroc


def pool(runs: Mapping[str, pd.DataFrame], split: str = "test") -> pd.DataFrame:
    """Out-of-fold predictions of a cross-validation as one table, with the column run.

    Raises:
        EvaluationError: If a patient is in that split of two runs, so that they are no folds of one cohort.
    """
    parts = [table[table["split"] == split].assign(run=name) for name, table in runs.items()]
    pooled = pd.concat(parts, ignore_index=True)
    twice = pooled.groupby(pooled["patient_id"].astype(str))["run"].nunique()
    shared = sorted(twice.index[twice > 1])
    if shared:
        raise EvaluationError(
            f"runs {', '.join(runs)}: {len(shared)} patients are in the {split} split of more than one, first "
            f"{shared[0]}; expected folds of one cohort. Give one run per fold, or compare the runs instead."
        )
    return pooled


def relation(runs: Mapping[str, pd.DataFrame]) -> Literal["folds", "same patients"]:
    """Relation of runs to each other, from their test patients alone.

    Args:
        runs: Name -> its patients, from `patient_predictions`.

    Raises:
        EvaluationError: If there are fewer than two, or they share some patients and not others.
    """
    if len(runs) < 2:
        raise EvaluationError(f"runs: found {len(runs)}; expected two or more. Name more run folders.")
    people = {name: set(table["patient_id"]) for name, table in runs.items()}
    pairs = [(first, second, len(people[first] & people[second])) for first, second in combinations(people, 2)]
    if all(shared == 0 for *_, shared in pairs):
        return "folds"
    if all(shared == len(people[first]) == len(people[second]) for first, second, shared in pairs):
        return "same patients"
    partly = [pair for pair in pairs if pair[2] > 0 and not pair[2] == len(people[pair[0]]) == len(people[pair[1]])]
    first, second, shared = (partly or [pair for pair in pairs if pair[2]])[0]
    raise EvaluationError(
        f"runs {first} and {second}: {shared} of {len(people[first])} and {len(people[second])} test patients are "
        "the same; expected none in any two runs (folds, to be pooled) or the same in all (to be compared). Name the "
        "runs of one cross-validation, or of one split."
    )


def compare_all(runs: Mapping[str, pd.DataFrame], *, confidence: float = 0.95) -> list[dict[str, Any]]:
    """`compare_runs` of every pair of runs, with `names` and the p-value after Holm's correction, `p_holm`."""
    rows = [
        {"names": [first, second], **compare_runs(runs[first], runs[second], confidence=confidence)}
        for first, second in combinations(runs, 2)
    ]
    tested = [row for row in rows if row["p_value"] is not None]
    if tested:
        corrected = multipletests([row["p_value"] for row in tested], method="holm")[1]
        for row, p in zip(tested, corrected, strict=True):
            row["p_holm"] = float(p)
    return rows


def compare_runs(first: pd.DataFrame, second: pd.DataFrame, *, confidence: float = 0.95) -> dict[str, Any]:
    """Paired DeLong comparison of two runs (from `patient_predictions`) on the patients that both have.

    Raises:
        EvaluationError: If they share no patients of both classes, or disagree about a label.
    """
    columns = ["patient_id", "label", "logit"]
    both = first[columns].merge(second[columns], on="patient_id", suffixes=("_first", "_second"))
    if (both["label_first"] != both["label_second"]).any():
        raise EvaluationError("the two runs disagree about a label; expected one cohort. Give runs on the same table.")
    if both["label_first"].nunique() < 2:
        raise EvaluationError(
            f"the two runs share {len(both)} patients; expected some of both classes. "
            "Give runs with the same split seed and fold."
        )
    return compare_auroc(
        both["label_first"].to_numpy(dtype=np.int64),
        both["logit_first"].to_numpy(dtype=float),
        both["logit_second"].to_numpy(dtype=float),
        confidence=confidence,
    )


def spread(runs: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Spread of results from run to run: over seeds, or over folds.

    Args:
        runs: Name -> its patients, from `patient_predictions`.

    Returns:
        `runs`: name -> metric -> value; `summary`: metric -> mean, sd (null for one run), minimum, maximum, n (runs);
        `patients`: where all runs hold the same patients (seeds), how much a patient's probability moves (mean over
        patients of its sd over runs) and the share of patients who are not called the same in all runs; else `why`.

    Raises:
        EvaluationError: If there are no runs, or one has patients of a single class.
    """
    if not runs:
        raise EvaluationError("runs: none given; expected one or more. Name some run folders.")
    tables = {name: table.set_index("patient_id").sort_index() for name, table in runs.items()}
    values = {name: _scores(name, table) for name, table in tables.items()}
    scores = pd.DataFrame.from_dict(values, orient="index")
    summary = {
        metric: {
            "mean": float(column.mean()),
            "sd": float(column.std()) if len(column) > 1 else None,
            "minimum": float(column.min()),
            "maximum": float(column.max()),
            "n": len(column),
        }
        for metric, column in ((str(name), scores[name]) for name in scores)
    }
    first, *others = tables.values()
    patients: dict[str, Any] = {"n": len(first)}
    if not others:
        patients = {"n": len(first), "why": "one run only"}
    elif all(first.index.equals(other.index) for other in others):
        probability = np.stack([table["probability"] for table in tables.values()])
        called = np.stack([table["predicted"] == 1 for table in tables.values()])
        patients["probability_sd"] = float(probability.std(axis=0, ddof=1).mean())
        patients["called_differently"] = float(np.mean(called.any(axis=0) & ~called.all(axis=0)))
    else:
        patients = {"n": 0, "why": "the runs hold different patients"}
    return {"split": "test", "runs": values, "summary": summary, "patients": patients}


def _scores(name: str, patients: pd.DataFrame) -> dict[str, float]:
    labels, called = patients["label"].to_numpy(dtype=np.int64), patients["predicted"].to_numpy()
    if len(set(labels)) < 2:
        raise EvaluationError(f"run {name}: all patients have label {labels[0]}; expected both classes. Leave it out.")
    return {
        "auroc": float(metrics.roc_auc_score(labels, patients["logit"])),
        "average_precision": float(metrics.average_precision_score(labels, patients["logit"])),
        "brier": float(np.mean((patients["probability"] - labels) ** 2)),
        "accuracy": float(metrics.accuracy_score(labels, called)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(labels, called)),
        "f1": float(metrics.f1_score(labels, called, zero_division=0)),
    }
