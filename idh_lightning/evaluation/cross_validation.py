"""Several runs: the folds of a cross-validation as one evaluation, and runs set side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from sklearn import metrics

from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation.discrimination import compare_auroc
from idh_lightning.evaluation.intervals import Integers
from idh_lightning.evaluation.postprocessing import Baseline, PostProcessing

RUN = "run"
"""Column with the name of the run in which a patient was tested."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Post-processing of several runs, each used for its own test patients; it stands in for a single `PostProcessing`.

    The logits of different networks have no common scale, so those handed to `decide` are the calibrated ones (see
    `calibrated`); threshold, prediction sets and baselines are those of the patient's run.
    """

    of_run: Mapping[str, PostProcessing]

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Folds as the metrics.json of a pooled cross-validation describes them, without their baselines."""
        shared = {"baselines": {}} | {name: metrics[name] for name in ("target",) if name in metrics}
        sections = {name: metrics[name]["runs"] for name in ("operating_point", "calibration", "conformal")}
        return cls(
            of_run={
                run: PostProcessing.from_metrics({name: each[run] for name, each in sections.items()} | shared)
                for run in sections["calibration"]
            }
        )

    def calibrated(self, studies: pd.DataFrame) -> pd.DataFrame:
        """Studies with logits whose sigmoid is the calibrated probability; needs the column run."""

        def line(learnt: PostProcessing, rows: pd.DataFrame) -> pd.DataFrame:
            return rows.assign(logit=learnt.calibrator.slope * rows["logit"] + learnt.calibrator.intercept)

        return self._each(studies, line)

    def decide(self, patients: pd.DataFrame) -> pd.DataFrame:
        """Columns raw_probability, probability, predicted and prediction_set of patients with calibrated logits."""

        def decisions(learnt: PostProcessing, rows: pd.DataFrame) -> pd.DataFrame:
            return learnt.decide(_as_the_network_gave(learnt, rows))

        return self._each(patients, decisions)

    def predictions(self, studies: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        """Table predictions.csv of pooled folds: the logit as the network gave it, all else as its run decides."""
        given = self._each(studies, _as_the_network_gave)
        return pd.concat([given[[*columns, "logit"]], self.decide(studies)], axis=1)

    def to_metrics(self) -> dict[str, Any]:
        """Entries of metrics.json that say what was learnt, run by run."""
        each = {run: learnt.to_metrics() for run, learnt in self.of_run.items()}
        first = next(iter(self.of_run.values()))
        return {
            "operating_point": {"runs": {run: entry["operating_point"] for run, entry in each.items()}},
            "calibration": {"method": first.method, "runs": {run: entry["calibration"] for run, entry in each.items()}},
            "conformal": {"coverage": first.conformal.coverage, "runs": {r: e["conformal"] for r, e in each.items()}},
        }

    @property
    def baselines(self) -> dict[str, FoldBaseline | str]:
        """Name -> the baseline of all runs, or the reason why one of them has none."""
        names = dict.fromkeys(name for learnt in self.of_run.values() for name in learnt.baselines)
        found: dict[str, FoldBaseline | str] = {}
        for name in names:
            each = {run: learnt.baselines.get(name, "unknown in this run") for run, learnt in self.of_run.items()}
            lacking = {run: why for run, why in each.items() if isinstance(why, str)}
            if lacking:
                run, why = next(iter(lacking.items()))
                found[name] = why if len(lacking) == len(each) else f"run {run}: {why}"
            else:
                found[name] = FoldBaseline(
                    folds=self, of_run={run: one for run, one in each.items() if isinstance(one, Baseline)}
                )
        return found

    def _each(self, rows: pd.DataFrame, apply: Callable[[PostProcessing, pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
        """Results of each run on its own rows, in the order of all rows."""
        parts = [apply(self.of_run[str(run)], own) for run, own in rows.groupby(RUN, sort=False)]
        return pd.concat(parts).loc[rows.index]


@dataclass(frozen=True, kw_only=True)
class FoldBaseline:
    """One baseline, fitted in every run; it stands in for a single `Baseline`."""

    folds: Folds
    of_run: Mapping[str, Baseline]

    def known(self, patients: pd.DataFrame) -> pd.DataFrame:
        """Patients to whom it applies."""
        first = next(iter(self.of_run.values()))
        return first.known(patients)

    def logits(self, patients: pd.DataFrame) -> pd.Series[float]:
        """Log-odds of mutant, each by the baseline of the patient's run."""
        return self._each(patients, lambda baseline, rows: baseline.logits(rows)).astype(float)

    def called(self, patients: pd.DataFrame) -> Integers:
        """Class of each patient at the operating point of their run, [n]."""
        return self._each(patients, lambda baseline, rows: baseline.called(rows)).to_numpy(dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Primitives, for metrics.json."""
        first = next(iter(self.of_run.values()))
        return {
            "columns": list(first.columns),
            "fitted_on": first.fitted_on,
            "n": max(baseline.n for baseline in self.of_run.values()),
            "runs": {run: baseline.to_dict() for run, baseline in self.of_run.items()},
        }

    def _each(self, patients: pd.DataFrame, apply: Callable[[Baseline, pd.DataFrame], Any]) -> pd.Series[Any]:
        parts = []
        for run, rows in patients.groupby(RUN, sort=False):
            given = _as_the_network_gave(self.folds.of_run[str(run)], rows)
            parts.append(pd.Series(apply(self.of_run[str(run)], given), index=rows.index))
        return pd.concat(parts).loc[patients.index] if parts else pd.Series(dtype=float)


def _as_the_network_gave(learnt: PostProcessing, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the logits before calibration: means over a patient's studies stay means, as it is a line."""
    return rows.assign(logit=(rows["logit"] - learnt.calibrator.intercept) / learnt.calibrator.slope)


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
        from statsmodels.stats.multitest import multipletests  # not above, since few ask for it

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
    summary = {}
    for metric, column in scores.items():
        ends = {"minimum": float(column.min()), "maximum": float(column.max())}
        sd = float(column.std()) if len(column) > 1 else None
        summary[str(metric)] = {"mean": float(column.mean()), "sd": sd, **ends, "n": len(column)}
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
