"""A run folder to model_card.md: what a checkpoint is, what it was trained on, how good it is, what it is not for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.cli.tables import number
from idh_lightning.cohort import SPLITS
from idh_lightning.cohort.checks import counted
from idh_lightning.files import write_text
from idh_lightning.reports.caveats import caveats, trained_on
from idh_lightning.reports.page import badges
from idh_lightning.reports.run_folder import ReportedRun, read_run
from idh_lightning.reports.vocabulary import CALIBRATION_METHODS, LOCALISATION, METRICS, THRESHOLD_RULES, in_words

_RESULTS = (
    "auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "accuracy", "ece", "brier",
)  # fmt: skip
_LICENCES = {
    "phantom": "The cohort is synthetic, made by this package from the MNI152 template of nilearn; it has no patient.",
    "ucsf_pdgm": "The images are UCSF-PDGM (The Cancer Imaging Archive, CC BY): cite Calabrese et al. 2022.",
}


def write_model_card(run_folder: Path) -> str:
    """Write model_card.md into a run folder, from what else is in it, and return its text.

    Raises:
        EvaluationError: If there is no such folder or a file in it is damaged.
    """
    run = read_run(run_folder)
    text = f"---\n{_metadata(run)}\n---\n\n" + "\n".join(_lines(run)) + "\n"
    write_text(run_folder / "model_card.md", text)
    return text


def _metadata(run: ReportedRun) -> ModelCardData:
    """Front matter of the card, as the Hugging Face Hub reads it; the images decide the licence, so it names none."""
    results = [
        EvalResult("image-classification", "mri", "IDH status", key, value, metric_name=METRICS[key].name)
        for key in _RESULTS
        if (estimate := run.estimate("test", key)) is not None and (value := estimate.value) is not None
    ]
    tags = ["medical", "mri", "glioma", "idh", *(["synthetic"] if "phantom" in trained_on(run) else [])]
    name = f"IDH status, trained on {run.provenance.get('cohort', 'unknown')}"
    known: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    return ModelCardData(library_name="pytorch", tags=tags, **known)


def _lines(run: ReportedRun) -> Iterator[str]:
    cohort = str(run.provenance.get("cohort", "unknown"))
    sequences = ", ".join(run.provenance.get("sequences", [])) or "unknown"
    yield f"# IDH status of gliomas from MRI, trained on {cohort}"
    yield from ("", "Predicts P(IDH mutant) of a glioma from MRI. Research software.", "")
    yield from (" · ".join(f"**{badge}**" for badge in badges(trained_on(run))), "")
    yield from (f"- {sentence}" for sentence in caveats(run))
    yield from ("", "## What it is", "")
    yield f"- Input: {sequences}, one study, as NIfTI or DICOM; preprocessing is in the checkpoint."
    yield "- Output: calibrated probability with an interval, a call at the stored threshold, a conformal set, a map."
    backbone, cut = _value(run.config, "model", "backbone"), _value(run.config, "model", "trainable_from")
    grid, crop = _value(run.config, "data", "grid"), _value(run.config, "data", "crop")
    grid = " × ".join(map(str, grid)) if isinstance(grid, list) else grid
    yield f"- Network: {backbone}, trainable from {cut}, grid {grid}, crop {crop}."
    if (locator := _value(run.config, "model", "locator")) not in (None, "unknown"):
        yield (
            f"- A frozen segmentation network ({locator}) finds the tumour; the logit is the mean of that of the deep "
            "layers, gated by it, that of a linear reader of the located tumour's intensities, place and size, and the "
            "vote of its voxels."
        )
    weights = run.provenance.get("weights", {})
    yield f"- Starting weights: {weights.get('source', 'unknown')} (asked for: {weights.get('requested', 'unknown')})."
    yield f"- Code: commit {run.provenance.get('git_commit') or 'unknown'}; seed {_value(run.config, 'seed')}."
    yield from ("", "## Training cohort", "")
    yield from _cohort(run)
    yield from ("", "## Results", "", "Test patients, 95% intervals.", "", "| metric | value | interval | n |")
    yield "| --- | --- | --- | --- |"
    for key in _RESULTS:
        estimate = run.estimate("test", key)
        if estimate is not None and estimate.value is not None:
            yield f"| {METRICS[key].name} | {number(estimate.value)} | {estimate.interval} | {estimate.n} |"
    age = run.estimate("baselines", "age", "test", "auroc")
    if age is not None and age.value is not None:
        yield f"| ROC-AUC of age alone, the same patients | {number(age.value)} | {age.interval} | {age.n} |"
    yield ""
    threshold, slope = run.number("operating_point", "threshold"), run.number("calibration", "slope")
    if threshold is not None:
        rule = in_words(str(run.node("operating_point", "rule")), THRESHOLD_RULES)
        yield f"Threshold {number(threshold)} (rule: {rule}), chosen on validation patients."
    if slope is not None:
        method = in_words(str(run.node("calibration", "method")), CALIBRATION_METHODS)
        yield f"Calibration: {method}, slope {number(slope)} (near 0 where a network cannot rank validation patients)."
    yield from ("", "## Explanations", "")
    yield from _explanations(run)
    yield from ("", "## Limits", "")
    yield "- One cohort: nothing here says how the network does on other scanners, sites or treatments."
    yield "- A study unlike the training ones is flagged or withheld by `predict`; passing that check proves nothing."
    yield "- The intervals above cover chance among test patients, not a change of cohort."
    yield "- Maps show what moved the output, not where the tumour is; their scores stand above."
    yield "- Left and right cannot be verified from the images; the headers are believed."
    yield from ("", "## Licence", "")
    yield "- Code: Apache-2.0."
    unknown = "The terms of the images decide what these weights may be used for; this run does not know them."
    yield f"- {next((words for name, words in _LICENCES.items() if cohort.startswith(name)), unknown)}"
    if weights.get("source") not in (None, "none"):
        yield f"- Starting weights ({weights['source']}) have terms of their own."


def _cohort(run: ReportedRun) -> Iterator[str]:
    yield from ("| part | patients | studies | mutant |", "| --- | --- | --- | --- |")
    for split in SPLITS if run.partitions else ():
        studies, patients, mutant = run.partitions.get(split, (0, 0, 0))
        yield f"| {split} | {patients} | {studies} | {mutant} |"
    yield ""
    ages = pd.to_numeric(run.cohort.get("age_years", pd.Series(dtype=float)), errors="coerce").dropna()
    if len(ages):
        yield f"Age {ages.mean():.0f} years on average, {ages.min():.0f} to {ages.max():.0f}."
    yield f"{counted(len(run.exclusions), 'study was', 'studies were')} left out (exclusions.csv)."


def _explanations(run: ReportedRun) -> Iterator[str]:
    if "method" not in run.explanations:
        yield "Not scored in this run."
        return
    for method, scores in run.explanations.groupby("method"):
        if str(method).startswith(BASELINE):
            continue
        for key, metric in LOCALISATION.items():
            values = pd.to_numeric(scores.get(key, pd.Series(dtype=float)), errors="coerce").dropna()
            if len(values):
                yield f"- {method}, {metric.name}: mean {number(values.mean())} over {len(values)} test studies."


def _value(config: object, *path: str) -> object:
    for key in path:
        config = config.get(key, "unknown") if hasattr(config, "get") else "unknown"
    return config
