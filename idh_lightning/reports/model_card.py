"""A run folder to model_card.md: what a checkpoint is, what it was trained on, how good it is, what it is not for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.cohort import SPLITS
from idh_lightning.config.places import without_folders
from idh_lightning.files import write_text
from idh_lightning.reports.page import badges, render
from idh_lightning.reports.run_folder import ReportedRun, caveats, read_run
from idh_lightning.reports.tables import Estimate
from idh_lightning.reports.vocabulary import METRICS

_RESULTS = (
    "auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "accuracy", "ece", "brier",
)  # fmt: skip


def write_model_card(run_folder: Path) -> str:
    """Write model_card.md into a run folder, from what else is in it, and return its text.

    Raises:
        EvaluationError: If there is no such folder or a file in it is damaged.
    """
    run = read_run(run_folder)
    results = {key: found for key in _RESULTS if (found := run.estimate("test", key)) and found.value is not None}
    rows = [(METRICS[key].name, estimate) for key, estimate in results.items()]
    age = run.estimate("baselines", "age", "test", "auroc")
    if age is not None and age.value is not None:
        rows.append(("ROC-AUC of age alone, the same patients", age))
    rendered = render(
        "model_card.md.j2",
        run=run,
        setting=partial(run.setting, default="unknown"),
        weights=without_folders(run.provenance.get("weights", {})),
        locator=without_folders(run.setting("model", "locator", default="unknown")),
        metadata=_metadata(run, results),
        cohort=str(run.provenance.get("cohort", "unknown")),
        badges=badges(run.trained_on),
        caveats=caveats(run),
        ages=run.cohort.get("age_years", pd.Series(dtype=float)).dropna(),
        results=rows,
        splits=SPLITS,
        baseline=BASELINE,
    )
    text = str(rendered)  # a checkpoint holds no other kind
    write_text(run_folder / "model_card.md", text)
    return text


def _metadata(run: ReportedRun, results: dict[str, Estimate]) -> ModelCardData:
    """Front matter of the card, as the Hugging Face Hub reads it; the images decide the licence, so it names none."""
    evaluated = [
        EvalResult("image-classification", "mri", run.target.title, key, estimate.value, metric_name=METRICS[key].name)
        for key, estimate in results.items()
    ]
    tags = ["medical", "mri", "glioma", run.target.name, *(["synthetic"] if "phantom" in run.trained_on else [])]
    name = f"{run.target.title}, trained on {run.provenance.get('cohort', 'unknown')}"
    known: dict[str, Any] = {"model_name": name, "eval_results": evaluated} if evaluated else {}
    return ModelCardData(library_name="pytorch", tags=tags, **known)
