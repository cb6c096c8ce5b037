"""Sweeps: the runs of one command together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.ensemble import RandomForestRegressor

from idh_lightning.cli.tables import FittingTable, number
from idh_lightning.errors import ConfigError, EvaluationError
from idh_lightning.evaluation import relation
from idh_lightning.files import atomic_write, write_text
from idh_lightning.reports.course_figures import curve, importance, parallel_coordinates

logger = logging.getLogger(__name__)

SWEEP_METRICS: tuple[tuple[str, str], ...] = (("validation", "auroc"), ("test", "auroc"), ("test", "accuracy"))
"""Split and metric of the columns of sweep.csv."""

TRAINING_PATIENTS = "split.training_patients"


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        folder: Its run folder.
        settings: The overrides it was started with.
        fold: Its place in a cross-validation and the number of folds in a repeat, or None.
        metrics: Content of metrics.json; empty where the run did not get so far.
    """

    folder: Path
    settings: Mapping[str, str]
    fold: tuple[int, int] | None
    metrics: Mapping[str, Any]


def report_sweep(folder: Path) -> pd.DataFrame:
    """Write and print what the runs in a sweep folder say together, and return the table of runs.

    - sweep.csv: what was varied, and the metrics of each run.
    - A varied number of training patients: learning_curve.png, the ROC-AUC of the test patients.
    - One other number that was varied: curve.png, the ROC-AUC of the validation patients, by whom one may choose.
    - Other settings: parallel_coordinates.png and importance.png.

    Raises:
        EvaluationError: If there are no runs in the folder.
    """
    runs = read_runs(folder)
    for place in begun_again(run_places(folder)):
        logger.info("%s was cut off and begun again in another folder; left out.", place)
    varied = varied_settings(runs)
    table = sweep_table(runs, varied)
    write_text(folder / "sweep.csv", table.to_csv(index=False))
    console = Console()
    if any(run.metrics for run in runs):
        _print(console, table, f"Sweep {folder}")
    drawn = {}
    searched = [name for name in varied if name not in ("fold", "seed", TRAINING_PATIENTS)]
    compared = table["validation_auroc"].notna().sum() >= 2
    if compared and len(searched) == 1 and _numbers(table[searched[0]]).notna().all():
        drawn["curve"] = _curve(table, searched[0], "validation", "auroc")
    elif compared and searched:
        columns = {name: table[name].tolist() for name in searched}
        values = table["validation_auroc"].tolist()
        drawn["parallel_coordinates"] = parallel_coordinates(columns, values)
        drawn["importance"] = importance(importances(columns, values))
    if TRAINING_PATIENTS in varied:
        drawn["learning_curve"] = _curve(table, TRAINING_PATIENTS, "test", "auroc")
    for name, figure in drawn.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120)
    for name in ("sweep.csv", *(f"{name}.png" for name in drawn)):
        if (folder / name).is_file():
            console.print(f"{name:>24}  {folder / name}", soft_wrap=True, highlight=False)
    return table


def _curve(table: pd.DataFrame, setting: str, split: str, metric: str) -> Figure:
    values = [table[f"{split}_{metric}{end}"] for end in ("", "_low", "_high")]
    return curve(_numbers(table[setting]), *values, name=setting, split=split)


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce")


def read_runs(folder: Path) -> list[SweepRun]:
    """Return the runs of a sweep in the order of their numbers, each once.

    Raises:
        EvaluationError: If there are none.
    """
    places = run_places(folder)
    again = begun_again(places)
    runs = []
    for place in places:
        if place in again or not (place / ".hydra" / "overrides.yaml").is_file():
            continue
        config = yaml.safe_load((place / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
        file = place / "metrics.json"
        folds = config["split"].get("folds")
        runs.append(
            SweepRun(
                folder=place,
                settings=_settings(place),
                fold=(int(config["fold"]), int(folds)) if folds else None,
                metrics=json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {},
            )
        )
    if not runs:
        raise EvaluationError(f"{folder}: holds no runs; expected those of a sweep. Give another folder.")
    return runs


def run_places(folder: Path) -> list[Path]:
    """Folders of the runs of a sweep in the order of their numbers."""
    places = [place.parent for place in folder.glob("*/.hydra")]
    return sorted(places, key=lambda place: (len(place.name), place.name))


def begun_again(places: Sequence[Path]) -> list[Path]:
    """Run folders without a report whose settings a later one has: trials of a search that were cut off.

    A trial that goes on gets a new folder, so that what is left in its first one would count it twice.
    """
    settings = [_settings(place) for place in places]
    return [
        place
        for number, place in enumerate(places)
        if settings[number] and settings[number] in settings[number + 1 :] and not (place / "report.html").is_file()
    ]


def _settings(place: Path) -> dict[str, str]:
    """Overrides of a run, without the checkpoint that it goes on from."""
    file = place / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
    settings = dict(one.lstrip("+").split("=", 1) for one in overrides if "=" in one)
    settings.pop("checkpoint", None)
    return settings


def varied_settings(runs: Sequence[SweepRun]) -> list[str]:
    """Return the names of the settings that are not the same in all runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    return [name for name in names if len({run.settings.get(name) for run in runs}) > 1]


def sweep_table(runs: Sequence[SweepRun], varied: Sequence[str]) -> pd.DataFrame:
    """Return one row per run: its number, what was varied, and its metrics with their intervals."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.folder.name} | {name: run.settings.get(name) for name in varied}
        for split, metric in SWEEP_METRICS:
            entry = run.metrics.get(split, {}).get(metric) or {}
            row[f"{split}_{metric}"] = entry.get("value")
            row |= {f"{split}_{metric}_{end}": entry.get(end) for end in ("low", "high")}
        rows.append(row)
    table = pd.DataFrame(rows)
    measured = [name for name in map(str, table) if name.startswith(("validation_", "test_"))]
    return table.astype(dict.fromkeys(measured, float))


def importances(settings: Mapping[str, Sequence[Any]], values: Sequence[float]) -> dict[str, float]:
    """Return how much each setting explains of the values: shares that sum to 1, as a random forest sees it.

    Args:
        settings: Name -> one value per run, numbers or words.
        values: One per run; runs without a finite one do not count.

    Source: mean decrease in impurity, Breiman 2001, Machine Learning 45:5, as scikit-learn computes it.
    """
    known = np.isfinite(np.asarray(values, dtype=float))
    features = np.stack([_as_numbers(list(column)) for column in settings.values()], axis=1)
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(features[known], np.asarray(values)[known])
    return dict(zip(settings, map(float, forest.feature_importances_), strict=True))


def _as_numbers(column: Sequence[Any]) -> np.ndarray:
    """Return a column as it is if it holds numbers, else the place of each word in their alphabetical order."""
    try:
        return np.array([float(value) for value in column])
    except (TypeError, ValueError):
        return np.unique([str(value) for value in column], return_inverse=True)[1].astype(float)


def complete_folds(runs: Sequence[SweepRun]) -> list[list[SweepRun]]:
    """Return the runs of each complete cross-validation, which differ in their fold alone."""
    groups: dict[tuple[Any, ...], list[SweepRun]] = {}
    varied = [name for name in varied_settings(runs) if name != "fold"]
    for run in runs:
        if run.fold is not None and run.metrics:
            others = tuple(run.settings.get(name) for name in varied)
            groups.setdefault((*others, run.fold[0] // run.fold[1]), []).append(run)
    complete = []
    for members in groups.values():
        folds = members[0].fold[1] if members[0].fold else 0
        if len(members) == folds:
            complete.append(members)
        else:
            logger.warning("%d of %d folds are there, so they are not pooled.", len(members), folds)
    return complete


def say_how_to_compare(folder: Path, runs: Sequence[SweepRun]) -> None:
    """Print the command that compares the runs of a sweep, or why they cannot be compared."""
    tested = {run.folder.name: pd.read_csv(run.folder / "predictions.csv") for run in runs if run.metrics}
    if len(tested) < 2:
        return
    try:
        found = relation(tested)
    except EvaluationError:
        logger.warning(
            "The runs have different test patients (varied: %s), so they can be neither compared nor pooled. Keep "
            "split.seed and vary seed for runs on the same patients, or use sweep=folds.",
            ", ".join(varied_settings(runs)),
        )
        return
    if found == "same patients":
        logger.info("To compare them on their test patients: python -m idh_lightning.report runs=%s", folder)


def _print(console: Console, table: pd.DataFrame, title: str) -> None:
    plain = [name for name in map(str, table) if not name.endswith(("_low", "_high"))]
    shown = FittingTable(title, plain)
    for row in table.to_dict("records"):
        cells = []
        for name in plain:
            value = row[name]
            cell = number(value) if isinstance(value, float) and np.isfinite(value) else str(value)
            if f"{name}_low" in row and np.isfinite(row[f"{name}_low"]):
                cell += f" ({number(row[f'{name}_low'])} to {number(row[f'{name}_high'])})"
            cells.append("-" if cell in ("nan", "None") else cell)
        shown.add_row(*cells)
    console.print(shown)


def remaining_trials(folder: Path, asked: int) -> int:
    """Return how many trials of an Optuna sweep are still to do, after queueing those that were cut off.

    A ConfigError is raised if nothing is left to do.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder / 'sweep.db'}"
    if not (folder / "sweep.db").is_file():
        return asked
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    finished = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    if finished >= asked:
        raise ConfigError(
            f"{folder}: all {asked} trials are finished; expected some left. Ask for more: hydra.sweeper.n_trials=N."
        )
    return asked - finished
