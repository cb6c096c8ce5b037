"""From probabilities to decisions: the operating point, sets of possible classes, and what a decision is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from idh_lightning.cohort import IDH
from idh_lightning.errors import ConfigError
from idh_lightning.evaluation.discrimination import divide
from idh_lightning.evaluation.intervals import Bootstrap, Floats, Integers, wilson
from idh_lightning.records import Record

Rule = Literal["youden", "sensitivity", "specificity"]


def check_rule(rule: str, target: float | None) -> None:
    """Raise a ConfigError if the rule is unknown or does not go with the target."""
    if rule not in get_args(Rule):
        raise ConfigError(
            f"evaluation.operating_point: found {rule!r}; expected one of {', '.join(get_args(Rule))}. Choose one."
        )
    if (rule == "youden") != (target is None) or (target is not None and not 0 < target <= 1):
        raise ConfigError(
            f"evaluation.operating_target: found {target} with operating_point={rule}; expected a number in (0, 1] "
            "with sensitivity or specificity, and null with youden. Set both to agree."
        )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(Record):
    """The calibrated probability from which on a patient is called mutant.

    Attributes:
        threshold: In [0, 1].
        rule: How it was chosen; "fixed" where no patient had a part in it.
        target: The sensitivity or specificity asked for, or None.
        sensitivity: Reached on the patients it was chosen on; None where it is fixed.
        specificity: Reached on the patients it was chosen on; None where it is fixed.
        n: Number of those patients.
        split: Where those patients are from.
    """

    threshold: float
    rule: Rule | Literal["fixed"]
    target: float | None
    sensitivity: float | None
    specificity: float | None
    n: int
    split: str = "validation"

    @classmethod
    def choose(
        cls, labels: Integers, probabilities: Floats, *, rule: Rule = "youden", target: float | None = None
    ) -> Self:
        """Threshold, among the midpoints between neighbouring probabilities, that follows the rule.

        Args:
            labels: [n], 0 or 1; both present.
            probabilities: [n], calibrated.
            rule: "youden" maximises sensitivity + specificity - 1; "sensitivity" and "specificity" reach the target
                in the one and are best in the other. Of equally good thresholds the one nearest to 0.5 is taken.
            target: In (0, 1]; with the rules that need one.

        Raises:
            ConfigError: If the rule is unknown or does not go with the target.

        Source: Youden 1950, Cancer 3:32.
        """
        check_rule(rule, target)
        values = np.unique(probabilities)
        thresholds = np.r_[0.0, (values[1:] + values[:-1]) / 2, (values[-1] + 1) / 2]
        called = probabilities >= thresholds[:, None]
        sensitivity = called[:, labels == 1].mean(axis=1)
        specificity = 1 - called[:, labels == 0].mean(axis=1)
        if rule == "youden":
            merit = sensitivity + specificity
        else:
            bound, other = (sensitivity, specificity) if rule == "sensitivity" else (specificity, sensitivity)
            reached = bound >= float(target or 0) - 1e-12
            merit = np.where(reached if reached.any() else bound == bound.max(), other, -1.0)
        best = np.flatnonzero(merit >= merit.max() - 1e-12)
        chosen = best[np.argmin(np.abs(thresholds[best] - 0.5))]
        return cls(
            threshold=float(thresholds[chosen]),
            rule=rule,
            target=target,
            sensitivity=float(sensitivity[chosen]),
            specificity=float(specificity[chosen]),
            n=len(labels),
        )

    def __call__(self, probabilities: npt.ArrayLike) -> Integers:
        """Return 1 (mutant) where the probability reaches the threshold, else 0."""
        return (np.asarray(probabilities, dtype=float) >= self.threshold).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class ConformalSets(Record):
    """For each patient the classes that cannot be excluded: none, one or both.

    Of future patients of either class, at least `coverage` have their class in the set, whatever the network,
    provided that they resemble the validation patients and these were not used for training. (They did choose the
    epoch, so look at the coverage on test patients as well.)

    The classes are called by their names in the first target, IDH.

    Attributes:
        coverage: The share promised for each class.
        wildtype: A wildtype is excluded where 1 - P(wildtype) exceeds this; None: never, for want of patients.
        mutant: The same for mutants.
        n_wildtype: Number of validation patients behind it.
        n_mutant: The same for mutants.

    Source: Vovk 2012, arXiv:1209.2673 (label-conditional); Angelopoulos & Bates 2023, arXiv:2107.07511.
    """

    coverage: float
    wildtype: float | None
    mutant: float | None
    n_wildtype: int
    n_mutant: int

    @classmethod
    def fit(cls, labels: Integers, probabilities: Floats, *, coverage: float = 0.9) -> Self:
        """Sets from validation patients: labels and calibrated probabilities [n], coverage in (0, 1)."""
        wildtype = np.sort(probabilities[labels == 0])
        mutant = np.sort(1 - probabilities[labels == 1])

        def quantile(scores: Floats) -> float | None:
            # Rounding first: 10 * 0.9 is 9 patients, not the 10 that the last bit of a float would make of it.
            rank = math.ceil(round((len(scores) + 1) * coverage, 9))
            return float(scores[rank - 1]) if rank <= len(scores) else None

        return cls(
            coverage=coverage,
            wildtype=quantile(wildtype),
            mutant=quantile(mutant),
            n_wildtype=len(wildtype),
            n_mutant=len(mutant),
        )

    def __call__(self, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """[n, 2]: whether wildtype and whether mutant is in the set of each patient."""
        mutant = np.asarray(probabilities, dtype=float)
        wildtype_limit, mutant_limit = (math.inf if one is None else one for one in (self.wildtype, self.mutant))
        return np.stack([mutant <= wildtype_limit, 1 - mutant <= mutant_limit], axis=-1)

    def names(self, probabilities: npt.ArrayLike, classes: Sequence[str] = IDH.classes) -> list[str]:
        """Set of each patient in a word: the name of a class, "both" or "none"."""
        words = np.array(["none", *classes, "both"])
        return [str(word) for word in words[self(probabilities) @ np.array([1, 2])]]


def observed_sets(
    labels: Integers, names: Sequence[str], *, confidence: float, classes: Sequence[str] = IDH.classes
) -> dict[str, Any]:
    """Observed coverage of the sets of `ConformalSets.names`, by class and overall, and shares of each kind of set."""
    words = np.asarray(names)
    sets = np.stack([np.isin(words, [name, "both"]) for name in classes], axis=-1)
    covered = sets[np.arange(len(labels)), labels]
    size = sets.sum(axis=1)

    def share(hits: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_], denominator: str) -> dict[str, Any]:
        return wilson(int(hits[among].sum()), int(among.sum()), confidence, denominator=denominator)

    everyone = np.ones(len(labels), dtype=bool)
    return {
        "coverage": share(covered, everyone, "patients"),
        "coverage_wildtype": share(covered, labels == 0, f"{classes[0]} patients"),
        "coverage_mutant": share(covered, labels == 1, f"{classes[1]} patients"),
        "one_class": share(size == 1, everyone, "patients"),
        "both_classes": share(size == 2, everyone, "patients"),
        "no_class": share(size == 0, everyone, "patients"),
        "accuracy_of_one_class": share(covered, size == 1, "sets of one class"),
    }


def net_benefit(labels: Integers, probabilities: Floats, thresholds: Floats, weights: Floats) -> Floats:
    """Net benefit of treating patients from each of T thresholds on, in (0, 1).

    A false alarm weighs threshold / (1 - threshold) of a mutant found; probabilities of 1 treat all, of 0 none.

    Returns:
        [R, T], in mutants found per patient.

    Source: Vickers & Elkin 2006, Med. Decis. Making 26:565.
    """
    treated = probabilities[:, None] >= thresholds
    worth = np.where(labels[:, None] == 1, 1.0, -thresholds / (1 - thresholds)) * treated
    return divide(weights @ worth, np.broadcast_to(weights.sum(axis=1, keepdims=True), (len(weights), len(thresholds))))


def decision_curves(labels: Integers, strategies: Mapping[str, Floats], *, resamples: Bootstrap) -> dict[str, Any]:
    """Net benefit of strategies (name -> probabilities), and of treating all and none, at thresholds of 1% to 99%.

    The first strategy gets a pointwise percentile band.

    Returns:
        `thresholds`, `n`, one list per strategy, `band` with `strategy`, `low`, `high`.
    """
    thresholds = np.arange(1, 100) / 100
    everyone = {"treat_all": np.ones(len(labels)), "treat_none": np.zeros(len(labels))}
    sample = resamples.weights[:1]
    curves = {
        name: net_benefit(labels, probabilities, thresholds, sample)[0]
        for name, probabilities in {**strategies, **everyone}.items()
    }
    first = next(iter(strategies))
    drawn = net_benefit(labels, strategies[first], thresholds, resamples.weights[1 + len(resamples.strata) :])
    tails = [(1 - resamples.confidence) / 2, (1 + resamples.confidence) / 2]
    low, high = np.quantile(drawn, tails, axis=0)
    # Where all resamples agree, sums in another order leave the band below or above the curve by rounding.
    low, high = np.minimum(low, curves[first]), np.maximum(high, curves[first])
    return {
        "thresholds": thresholds.tolist(),
        "n": len(labels),
        **{name: curve.tolist() for name, curve in curves.items()},
        "band": {"strategy": first, "low": low.tolist(), "high": high.tolist()},
    }
