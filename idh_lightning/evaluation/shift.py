"""Covariate shift between cohorts, and the difference of metrics between independent samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy
from scipy.special import ndtri

from idh_lightning.evaluation.intervals import Floats, absent, statistic

_DIGITS = 4
_VOXELS = 20_000


def study_covariates(
    image: npt.NDArray[np.floating],
    brain: npt.NDArray[np.integer],
    mask: npt.NDArray[np.integer] | None,
    *,
    sequences: Sequence[str],
    spacing_mm: Sequence[float],
    native_spacing_mm: Sequence[float],
) -> dict[str, float]:
    """Covariates of one study, known without its label.

    Args:
        image: [C, D, H, W], as the network is given it; a sequence that is missing is 0 everywhere.
        brain: [D, H, W], non-zero inside.
        mask: [D, H, W], non-zero in the tumour, or None.
        sequences: [C], names of the channels.
        spacing_mm: Voxel size of the grid along D, H, W.
        native_spacing_mm: Voxel size of the study's own images.

    Returns:
        `brain_ml`, `tumour_ml` (where there is a mask), `native_spacing_mm` (the longest edge of a voxel: the
        slice thickness), and of each sequence that is there `<name>_p05`, `<name>_median` and `<name>_p95` within the
        brain. Intensities are z-scores by then, so that their mean and spread say nothing, but their shape does.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    inside = np.asarray(brain) != 0
    found = {
        "brain_ml": float(inside.sum()) * voxel_ml,
        "native_spacing_mm": float(max(native_spacing_mm)),
    }
    if mask is not None:
        found["tumour_ml"] = float(np.count_nonzero(mask)) * voxel_ml
    for name, channel in zip(sequences, image, strict=True):
        values = np.asarray(channel)[inside].astype(np.float32)
        values = values[:: max(1, values.size // _VOXELS)]  # percentiles need no more, and sorting takes its time
        if values.size and np.any(values):
            low, middle, high = np.percentile(values, [5, 50, 95])
            found |= {f"{name}_p05": float(low), f"{name}_median": float(middle), f"{name}_p95": float(high)}
    return found


def covariate_summary(cohort: pd.DataFrame, covariates: pd.DataFrame) -> dict[str, Any]:
    """Covariate summary of training patients, in primitives for a checkpoint.

    Args:
        cohort: study_id, patient_id, label, and age_years where it is known; the studies to summarise.
        covariates: study_id and one column per covariate, from `study_covariates`.

    Returns:
        `n`, `n_mutant` and `values`: covariate -> the sorted values, one per patient in whom it is known (the mean over
        the patient's studies), to four digits. Each list is sorted on its own, so that no row is a patient.
    """
    columns = [name for name in ("age_years",) if name in cohort]
    studies = cohort[["study_id", "patient_id", "label", *columns]].merge(covariates, on="study_id", how="left")
    patients = studies.drop(columns="study_id").groupby("patient_id").mean(numeric_only=True)
    values = {}
    for name in patients.columns.drop("label"):
        known = np.sort(patients[name].dropna().to_numpy(dtype=float))
        if len(known):
            values[str(name)] = [float(f"{value:.{_DIGITS}g}") for value in known]
    return {"n": len(patients), "n_mutant": int((patients["label"] == 1).sum()), "values": values}


def covariate_shift(
    reference: Mapping[str, Any], other: Mapping[str, Any], *, confidence: float = 0.95
) -> dict[str, Any]:
    """Covariate shift of a cohort against the training patients of a network, both from `covariate_summary`.

    Returns:
        Covariate -> `reference` and `other` (mean, sd, n), `difference` (standardised: of the means, over the pooled
        sd; a statistic), `ks` (the largest distance between the two distribution functions) and `p_value` of the
        Kolmogorov-Smirnov test; or `why`. `mutant` is the share of mutants, with the p-value of Fisher's exact test
        and no `ks`. A difference beyond 0.1 is commonly called an imbalance.

    Source: Cohen 1988, with the standard error of Hedges & Olkin 1985, ch. 5; for shares Austin 2009, Stat. Med.
    28:3083.
    """
    entries: dict[str, Any] = {"mutant": _label_shift(reference, other, confidence)}
    for name in dict.fromkeys([*reference["values"], *other["values"]]):
        first, second = (np.asarray(part["values"].get(name, ()), dtype=float) for part in (reference, other))
        if min(len(first), len(second)) < 2:
            entries[name] = {"why": f"known in {len(first)} training patients and in {len(second)} of this cohort"}
            continue
        tested, moments = scipy.stats.ks_2samp(first, second), (_moments(first), _moments(second))
        entries[name] = {
            "reference": moments[0],
            "other": moments[1],
            "difference": _standardised(*moments, confidence),
            "ks": float(tested.statistic),
            "p_value": float(tested.pvalue),
        }
    return entries


def difference_of_independent(
    first: Mapping[str, Any], second: Mapping[str, Any], *, method: str = "MOVER"
) -> dict[str, Any]:
    """Difference (first minus second) of one statistic in two samples that share no patient.

    The interval recovers the variances from the two intervals, so it takes over their level and their lopsidedness:
    for intervals of DeLong that are not cut it is that of the sum of the two variances.

    Source: Zou & Donner 2008, Stat. Med. 27:1693 (method of variance estimates recovery).
    """
    n = int(first.get("n") or 0) + int(second.get("n") or 0)
    if first.get("value") is None or second.get("value") is None:
        return absent("one of the two has no value", n)
    value = float(first["value"]) - float(second["value"])
    if any(part.get(bound) is None for part in (first, second) for bound in ("low", "high")):
        return statistic(value, None, None, n, method)
    below = math.hypot(first["value"] - first["low"], second["high"] - second["value"])
    above = math.hypot(first["high"] - first["value"], second["value"] - second["low"])
    return statistic(value, value - below, value + above, n, method)


def compare_with_internal(
    internal: Mapping[str, Any], measured: Mapping[str, Any], *, confidence: float, shared: int = 0
) -> dict[str, Any]:
    """Metrics of another cohort beside the internal `test` of a checkpoint, with which it may have `shared` patients.

    Returns:
        `internal`: metric -> statistic; `differences`: metric -> other minus internal; or, in place of the latter,
        `why` there are none.
    """
    test = internal["test"]
    if shared:
        why = f"{shared} patients were internal test patients, so the two samples are not independent"
        return {"internal": test, "why": why}
    if not math.isclose(internal["confidence"], confidence):
        why = f"the internal intervals are at {internal['confidence']:g}, these at {confidence:g}"
        return {"internal": test, "why": why}
    differences = {name: difference_of_independent(measured[name], test[name]) for name in test if name in measured}
    return {"internal": test, "differences": differences}


def _label_shift(reference: Mapping[str, Any], other: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    shares = [part["n_mutant"] / part["n"] for part in (reference, other)]
    first, second = (
        {"mean": share, "sd": math.sqrt(share * (1 - share)), "n": part["n"]}
        for share, part in zip(shares, (reference, other), strict=True)
    )
    table = [[part["n_mutant"], part["n"] - part["n_mutant"]] for part in (reference, other)]
    return {
        "reference": first,
        "other": second,
        "difference": _standardised(first, second, confidence),
        "ks": None,
        "p_value": float(scipy.stats.fisher_exact(table).pvalue),
    }


def _standardised(first: Mapping[str, Any], second: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Cohen's d (second minus first) of two samples of known mean, sd and n."""
    m, n = first["n"], second["n"]
    spread = math.sqrt((first["sd"] ** 2 + second["sd"] ** 2) / 2)
    if spread < 1e-12:
        if math.isclose(first["mean"], second["mean"]):
            return statistic(0.0, None, None, n, "Cohen's d")
        return absent("no spread in either cohort, and different values", n)
    distance = (second["mean"] - first["mean"]) / spread
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt((m + n) / (m * n) + distance**2 / (2 * (m + n)))
    return statistic(distance, distance - half, distance + half, n, "Cohen's d")


def _moments(values: Floats) -> dict[str, float | int]:
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)), "n": len(values)}
