"""The tables of a report, what goes into their cells, and the names of what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idh_lightning.reports.figures import Estimate

METRICS: dict[str, tuple[str, str]] = {
    "auroc_bootstrap": ("ROC-AUC", "chance that a random mutant is ranked above a random wildtype; bootstrap interval"),
    "auroc": ("ROC-AUC, DeLong", "the same with DeLong's interval, which is narrow where a class is small"),
    "average_precision": ("average precision", "precision averaged over recall; guessing gives the prevalence"),
    "sensitivity": ("sensitivity (recall)", "share of mutants called mutant"),
    "specificity": ("specificity", "share of wildtypes called wildtype"),
    "ppv": ("PPV (precision)", "share of calls of mutant that are right, at this prevalence"),
    "npv": ("NPV", "share of calls of wildtype that are right, at this prevalence"),
    "accuracy": ("accuracy", "share of patients called right"),
    "balanced_accuracy": ("balanced accuracy", "mean of sensitivity and specificity"),
    "f1": ("F1, mutant", "harmonic mean of precision and recall"),
    "f1_macro": ("F1, macro", "mean of the F1 of both classes"),
    "f1_weighted": ("F1, weighted", "mean of the F1 of both classes, weighted by their patients"),
    "mcc": ("MCC", "correlation of call and truth, −1 to 1"),
}
CALIBRATION: dict[str, tuple[str, str]] = {
    "ece": ("calibration error (ECE)", "mean distance of probability and observed share"),
    "brier": ("Brier score", "mean squared error of the probability; lower is better"),
    "log_loss": ("log loss, nats", "surprise about the truth; lower is better"),
    "calibration_slope": ("slope", "1 is right; below 1 the probabilities are too extreme"),
    "calibration_intercept": ("intercept", "0 is right; below 0 the probabilities are too high"),
}


@dataclass(frozen=True)
class Table:
    """A table of a report; cells are text and escaped by the template.

    Attributes:
        caption: What it shows.
        head: Column headings.
        rows: Cells, the first of each row being its heading.
        wide: Which columns hold words, not numbers, counted from 0.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: Sequence[int] = (0,)


def cell(estimate: Estimate | None) -> str:
    """Return an estimate with its interval, or that the run has none."""
    return "not computed in this run" if estimate is None else estimate.text


def count(estimate: Estimate | None) -> str:
    """Return the patients that an estimate rests on."""
    return "" if estimate is None or estimate.n is None else str(estimate.n)


def signed(estimate: Estimate) -> str:
    """Return a difference with its sign and interval."""
    if estimate.value is None:
        return estimate.text
    interval = (
        "" if estimate.low is None or estimate.high is None else f" ({estimate.low:+.2f} to {estimate.high:+.2f})"
    )
    return f"{estimate.value:+.2f}{interval}".replace("-", "−")


def p_value_words(p: float) -> str:
    """Return a p-value as a reader would say it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
