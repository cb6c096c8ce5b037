"""Several runs in one report: folds pooled, runs on the same patients compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError, EvaluationError
from idh_lightning.evaluation import (
    Evaluation,
    Fold,
    PostProcessing,
    compare_all,
    patient_predictions,
    relation,
    spread,
)
from idh_lightning.files import write_json, write_text
from idh_lightning.provenance import PROVENANCE, begun_record
from idh_lightning.reports.run_folder import ReportedRun, read_run
from idh_lightning.reports.run_page import write_comparison, write_report
from idh_lightning.runs.rehearsal import check
from idh_lightning.runs.summary import print_summary
from idh_lightning.runs.sweeps import (
    begun_again,
    complete_folds,
    read_runs,
    report_sweep,
    run_places,
    say_how_to_compare,
)

logger = logging.getLogger(__name__)


def report(config: DictConfig) -> dict[str, Any]:
    """Pool or compare runs, as their test patients are disjoint or the same; return the content of metrics.json.

    Raises:
        ConfigError: If no runs are named, or one is no run folder.
        EvaluationError: If a run has no report of its own, or the runs are neither folds nor of one split.
    """
    check(config)
    named = [] if OmegaConf.is_missing(config, "runs") or not config.runs else config.runs
    folders, left_out = run_folders([named] if isinstance(named, str) else list(named))
    return report_runs(folders, instantiate_section(config.evaluation), Path(config.paths.run), left_out=left_out)


def report_runs(
    folders: Mapping[str, Path], evaluation: Evaluation, run_folder: Path, *, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """Pool or compare runs into a run folder, which is made if need be, and return the content of its metrics.json.

    Args:
        folders: Name -> run folder; an EvaluationError is raised as by `report`.
        evaluation: What measures them.
        run_folder: Where the report is written.
        left_out: Names of runs that came to no predictions, to be told.
    """
    runs = {name: read_run(folder) for name, folder in folders.items()}
    for name, read in runs.items():
        if "predicted" not in read.predictions or "operating_point" not in read.metrics:
            raise EvaluationError(
                f"run {name}: {read.folder} has no report; expected predictions.csv with calls, and metrics.json. "
                "Run its stage 'report'."
            )
    targets = {name: read.target for name, read in runs.items()}
    if len(set(targets.values())) > 1:
        told = ", ".join(f"{name} {target.name}" for name, target in targets.items())
        raise EvaluationError(f"runs: they predict different targets ({told}); expected one. Name runs of one target.")
    evaluation = replace(evaluation, target=next(iter(targets.values())))
    patients = {
        name: patient_predictions(
            read.predictions[read.predictions["split"] == "test"], PostProcessing.from_metrics(read.metrics)
        )
        for name, read in runs.items()
    }
    found = relation(patients)
    described: dict[str, Any] = {
        "relation": found,
        "folders": {name: str(folder.absolute()) for name, folder in folders.items()},
        "left_out": list(left_out),
        "settings": _differing_overrides(folders),
        "config": common([read.config for read in runs.values()]),
        "spread": spread(patients),
    }
    run_folder.mkdir(parents=True, exist_ok=True)
    if found == "folds":
        people = sum(map(len, patients.values()))
        logger.info("The %d runs share no test patient: they are folds, and %d patients are pooled.", len(runs), people)
        metrics = _pool(runs, evaluation, run_folder)
    else:
        people = len(next(iter(patients.values())))
        logger.info("The %d runs have the same %d test patients: they are compared.", len(runs), people)
        metrics = _compare(patients, evaluation)
    metrics["runs"] = described | metrics.get("runs", {})
    write_json(run_folder / "metrics.json", metrics)
    begun = begun_record(run_folder, {"runs": described["folders"]})
    write_json(run_folder / PROVENANCE, common([read.provenance for read in runs.values()]) | begun)
    if found == "folds":
        write_report(run_folder)
        print_summary(metrics, run_folder)
    else:
        path = write_comparison(run_folder)
        Console().print(f"{'report.html':>16}  {path}", soft_wrap=True, highlight=False)
    return metrics


def report_multirun(folder: Path, evaluation: Evaluation) -> None:
    """Report a sweep: sweep.csv and pictures in its folder, and in `pooled` the report of its folds."""
    report_sweep(folder)
    runs = read_runs(folder)
    groups = complete_folds(runs)
    if not groups:
        say_how_to_compare(folder, runs)
    for number, group in enumerate(groups):
        folders = {run.folder.name: run.folder for run in group}
        report_runs(folders, evaluation, folder / ("pooled" if len(groups) == 1 else f"pooled_{number}"))


def run_folders(paths: Sequence[str | Path]) -> tuple[dict[str, Path], list[str]]:
    """Return name -> run folder, and the names of those that came to no predictions.

    Paths are run folders, or folders that hold some, as those of a sweep; a ConfigError is raised if one is neither.
    """
    found: list[Path] = []
    left_out: list[str] = []
    for path in map(Path, paths):
        if (path / "predictions.csv").is_file():
            found.append(path)
            continue
        inside = run_places(path)
        again = begun_again(inside)
        finished = [p for p in inside if p not in again and (p / "predictions.csv").is_file()]
        if not finished:
            raise ConfigError(
                f"runs: {path} holds no predictions.csv and no finished run; expected a run folder, or the folder of a "
                "sweep. Correct the path."
            )
        found += finished
        lost = [str(folder) for folder in inside if folder not in finished]
        for folder in inside:
            if folder in again:
                logger.warning("%s was cut off and begun again in another folder; left out.", folder)
            elif folder not in finished:
                logger.warning("%s has no predictions.csv; left out.", folder)
        left_out += lost
    found = list(dict.fromkeys(folder.resolve() for folder in found))
    if not found:
        raise ConfigError("runs: found none; expected run folders. Give runs=[RUN,RUN,...] or the folder of a sweep.")
    parts = next(n for n in range(1, 99) if len({folder.parts[-n:] for folder in found}) == len(found))
    return {"/".join(folder.parts[-parts:]): folder for folder in found}, left_out


def common(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries that several nested mappings have in common."""
    first, *others = nodes
    kept: dict[str, Any] = {}
    for key, value in first.items():
        if not all(key in other for other in others):
            continue
        theirs = [other[key] for other in others]
        if isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in theirs):
            kept[key] = common([value, *theirs])
        elif all(other == value for other in theirs):
            kept[key] = value
    return kept


def _pool(runs: Mapping[str, ReportedRun], evaluation: Evaluation, run_folder: Path) -> dict[str, Any]:
    """Write the tables of the pooled folds into a run folder, and return their metrics."""
    folds = {
        name: Fold(
            predictions=read.predictions,
            cohort=read.cohort,
            features=None if read.features.empty else read.features,
            learnt=PostProcessing.from_metrics(read.metrics),
        )
        for name, read in runs.items()
    }
    results = evaluation.pooled(folds)
    cohort = pd.concat(
        [read.cohort[read.cohort["split"] == "test"].assign(run=name) for name, read in runs.items()]
    ).sort_values("study_id")
    segmented = [
        read.segmentation[read.segmentation["split"] == "test"].assign(run=name)
        for name, read in runs.items()
        if len(read.segmentation)
    ]
    tables = {
        "predictions": results.predictions,
        "cohort": cohort,
        "exclusions": pd.concat([read.exclusions for read in runs.values()]).drop_duplicates(),
        "explanations": pd.concat([read.explanations for read in runs.values()]),
        "segmentation": pd.concat(segmented) if segmented else pd.DataFrame(),
    }
    for name, table in tables.items():
        if len(table.columns):
            write_text(run_folder / f"{name}.csv", table.to_csv(index=False))
    if segmented:
        results.metrics["segmentation"] = evaluation.segmentation(tables["segmentation"])
    return results.metrics


def _compare(patients: Mapping[str, pd.DataFrame], evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of each run on the same patients, and the difference of every two."""
    measured = {name: evaluation.measured(table) for name, table in patients.items()}
    first = next(iter(patients.values()))
    return {
        "target": evaluation.target.to_dict(),
        "settings": {"confidence": evaluation.confidence, "bootstrap": evaluation.bootstrap, "seed": evaluation.seed},
        "runs": {
            "test": measured,
            "pairs": compare_all(patients, confidence=evaluation.confidence),
            "n": len(first),
            "n_mutant": int(first["label"].sum()),
        },
    }


def _differing_overrides(folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the overrides of each run that not all runs have."""
    given: dict[str, list[str]] = {}
    for name, folder in folders.items():
        file = folder / ".hydra" / "overrides.yaml"
        read = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
        given[name] = [str(item) for item in read or [] if not str(item).startswith(("stages=", "paths.", "hydra."))]
    shared = set.intersection(*(set(items) for items in given.values()))
    return {name: [item for item in items if item not in shared] for name, items in given.items()}
