"""The folds of a cross-validation as one evaluation: each patient judged by the network that has not seen them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from idh_lightning.evaluation.baselines import Baseline
from idh_lightning.evaluation.intervals import Integers
from idh_lightning.evaluation.postprocessing import PostProcessing

RUN = "run"
"""Column with the name of the run in which a patient was tested."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Post-processing of several runs, each used for its own test patients; it stands in for a single `PostProcessing`.

    The logits of different networks have no common scale, so those handed to `decide` are the calibrated ones (see
    `calibrated`); threshold, prediction sets and baselines are those of the patient's run.

    Attributes:
        of_run: Run -> what it learnt.
    """

    of_run: Mapping[str, PostProcessing]

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Folds as the metrics.json of a pooled cross-validation describes them, without their baselines."""
        sections = {name: metrics[name]["runs"] for name in ("operating_point", "calibration", "conformal")}
        return cls(
            of_run={
                run: PostProcessing.from_metrics(
                    {name: each[run] for name, each in sections.items()} | {"baselines": {}}
                )
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
        """Table predictions.csv of pooled folds: the logit as the network gave it, all else as its run decides.

        Args:
            studies: With run and calibrated logits.
            columns: Of the studies, to be kept in front.
        """
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
