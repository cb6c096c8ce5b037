"""Words and numbers as people read them: the same on the terminal, in pages and figures, the model card and W&B."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from idh_lightning.cohort import IDH, Target


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: In metrics.json, explanations.csv and W&B.
        name: In tables and sentences.
        short: Where there is no room.
        meaning: In one line, with the names of the classes of a target to be put in; see `meant`.
        best: Which values are good.
    """

    key: str
    name: str
    short: str
    meaning: str
    best: Literal["high", "low", "0", "1"] = "high"

    def meant(self, target: Target) -> str:
        """Meaning in the words of a target."""
        return self.meaning.format(positive=target.positive, negative=target.negative)


def _by_key(*metrics: Metric) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


DISCRIMINATION = _by_key(
    Metric(
        "auroc", "ROC-AUC", "ROC-AUC", "chance that a random {positive} patient is ranked above a random {negative} one"
    ),
    Metric(
        "average_precision", "average precision", "AP", "precision averaged over recall; guessing gives the prevalence"
    ),
    Metric("sensitivity", "sensitivity (recall)", "sensitivity", "share of {positive} patients called {positive}"),
    Metric("specificity", "specificity", "specificity", "share of {negative} patients called {negative}"),
    Metric("ppv", "PPV (precision)", "PPV", "share of calls of {positive} that are right, at this prevalence"),
    Metric("npv", "NPV", "NPV", "share of calls of {negative} that are right, at this prevalence"),
    Metric("accuracy", "accuracy", "accuracy", "share of patients called right"),
    Metric("balanced_accuracy", "balanced accuracy", "balanced", "mean of sensitivity and specificity"),
    Metric("f1", "F1", "F1", "harmonic mean of precision and recall"),
    Metric("f1_macro", "F1, macro", "F1 macro", "mean of the F1 of both classes"),
    Metric("f1_weighted", "F1, weighted", "F1 weighted", "mean of the F1 of both classes, weighted by their patients"),
    Metric("mcc", "MCC", "MCC", "correlation of call and truth, −1 to 1"),
)

CALIBRATION = _by_key(
    Metric("ece", "calibration error (ECE)", "ECE", "mean distance of probability and observed share", "low"),
    Metric("brier", "Brier score", "Brier", "mean squared error of the probability; lower is better", "low"),
    Metric("log_loss", "log loss, nats", "log loss", "surprise about the truth; lower is better", "low"),
    Metric("calibration_slope", "slope", "slope", "1 is right; below 1 the probabilities are too extreme", "1"),
    Metric(
        "calibration_intercept", "intercept", "intercept", "0 is right; below 0 the probabilities are too high", "0"
    ),
)

LOCALISATION = _by_key(
    Metric("pointing_game", "hottest voxel inside the tumour", "pointing game", "1 where the map points at the tumour"),
    Metric(
        "energy_inside",
        "share of the map inside the tumour",
        "energy inside",
        "its sum in the tumour over that in the brain",
    ),
    Metric(
        "auprc",
        "average precision as a tumour detector",
        "AUPRC",
        "of the map's voxels; guessing gives the tumour's share",
    ),
    Metric("best_iou", "best overlap with the tumour (IoU)", "best IoU", "over all thresholds of the map"),
    Metric(
        "tumour_rank", "rank of the tumour among like regions", "tumour rank", "share of like regions that are cooler"
    ),
    Metric(
        "outside_brain",
        "share of the map outside the brain",
        "outside brain",
        "0 where all of the map is in the brain",
        "low",
    ),
)

SEGMENTATION = _by_key(
    Metric("dice", "median Dice", "Dice", "overlap of the tumour that was found with the mask, 0 to 1"),
    Metric("pointing_game", "likeliest voxel inside the tumour", "pointing game", "1 where it lies in the mask"),
)

METRICS = DISCRIMINATION | CALIBRATION | LOCALISATION

REFERENCE_MAP = "reference map"
"""A map of the same cells as those of a method that holds the share of tumour in each; a sharper one can exceed it."""

BASELINES = {
    "model": "model",
    "age": "age alone",
    "age_sex": "age and sex",
    "deep": "deep layers of the model alone",
    "reader": "tumour reader of the model alone",
    "vote": "dense vote of the model alone",
    "model_age": "model and age",
    "features": "tumour size, shape, intensity",
    "prevalence": "prevalence (same for all)",
}

PREDICTION_SETS = {
    "coverage": "the truth is in the set",
    "coverage_wildtype": "the same, of {negative} patients",
    "coverage_mutant": "the same, of {positive} patients",
    "one_class": "set of one class: a decision",
    "both_classes": "set of both: undecided",
    "no_class": "set of none: unlike validation patients",
    "accuracy_of_one_class": "right, where there is a decision",
}

ANALYSES = {
    "without_astrocytoma_wildtype": "without “Astrocytoma, IDH-wildtype”",
    "without_follow_ups": "without follow-up studies",
    "every_study": "every study instead of every patient",
}

COVARIATES = {
    "mutant": "share of {positive} patients",
    "age_years": "age, years",
    "brain_ml": "brain, mL",
    "tumour_ml": "tumour, mL",
    "native_spacing_mm": "slice thickness, mm",
}

SUBGROUPS = {"follow_up": "follow-up study", "biopsy_before_imaging": "biopsy before imaging"}

NO_BETTER_THAN_CHANCE = "No better than chance: the interval of the ROC-AUC contains 0.5."

OVERLAPPING = "a patient with studies in several groups counts in each"

THRESHOLD_RULES = {
    "youden": "the greatest Youden index, sensitivity + specificity − 1",
    "sensitivity": "the sensitivity asked for",
    "specificity": "the specificity asked for",
}

CALIBRATION_METHODS = {"platt": "Platt scaling", "temperature": "temperature scaling", "none": "none"}

UNLIKE = {
    "same image": "two sequences are one image",
    "sequence identity": "sequences that may be exchanged",
    "orientation": "the head may lie turned",
    "least voxel edge": "voxel size",
    "greatest voxel edge": "slice thickness",
    "brain": "volume of the brain",
    "brain height": "height of the brain",
    "brain length": "length of the brain",
    "brain width": "width of the brain",
    "features": "image features of the network's first layers",
    "missing sequence": "a sequence is missing",
    "no tumour": "hardly any tumour was found",
    "lost part": "a part of an image is lost",
    "poor registration": "a sequence could not be laid on the others with certainty",
    "repeated sequence": "one file under two names",
    "small brain": "too little brain",
}
"""Ways in which a study is unlike the training ones, as predictions.csv names them -> in a sentence."""

NOT_COMPARED = "unknown range"
"""Stands where a checkpoint does not say what its training studies looked like."""

_PERCENTILES = {"p05": "5th percentile", "median": "median", "p95": "95th percentile"}


def in_words(key: str, words: Mapping[str, str | Metric] | None = None, target: Target = IDH) -> str:
    """Name of a key of metrics.json, from one of the mappings of this module; else the key itself as words."""
    found = (words or {}).get(key)
    if found is not None:
        named = found.name if isinstance(found, Metric) else found
        return named.format(positive=target.positive, negative=target.negative)
    if words is COVARIATES and (intensity := re.fullmatch(r"(\w+)_(p05|median|p95)", key)):
        return f"{intensity[1]}, {_PERCENTILES[intensity[2]]}"
    return key.replace("_", " ")


def unlike_in_words(name: str) -> str:
    """Way in which a study is unlike the training ones, such as "intensity of T1", in words."""
    kind, of, sequence = name.partition(" of ")
    kinds = {"intensity": "intensities", "roughness": "noise or sharpness"}
    return f"{kinds.get(kind, kind)}{of}{sequence}" if of else in_words(name, UNLIKE)


def group_in_words(group: object) -> str:
    """Name of a group of patients: those for whom a yes-or-no column is true are "yes"."""
    return {"True": "yes", "False": "no", "Yes": "yes", "No": "no"}.get(str(group), str(group))


def p_value_words(p: float) -> str:
    """P-value as it stands in a sentence."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
