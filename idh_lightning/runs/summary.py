"""Summary of a run on the screen: test metrics, files, disk use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from idh_lightning.cli.tables import FittingTable, number
from idh_lightning.reports.tables import as_estimate
from idh_lightning.reports.vocabulary import METRICS, NO_BETTER_THAN_CHANCE
from idh_lightning.runs.state import SHARED_FOLDERS

SUMMARY_METRICS: tuple[str, ...] = ("auroc", "accuracy", "f1", "ppv", "sensitivity", "specificity")


def print_summary(metrics: Mapping[str, Any], run_folder: Path) -> None:
    """Print the test metrics with their intervals, and where everything is."""
    table = FittingTable("Test patients", ("metric", "value", "95% interval", "n"))
    for metric in SUMMARY_METRICS:
        found = as_estimate(metrics.get("test", {}).get(metric))
        if found is not None:
            value = "-" if found.value is None else number(found.value)
            table.add_row(METRICS[metric].name, value, found.interval or "-", str(found.n))
    console = Console()
    console.print(table)
    area = as_estimate(metrics.get("test", {}).get("auroc"))
    if area is not None and area.holds_chance:
        console.print(NO_BETTER_THAN_CHANCE, soft_wrap=True, highlight=False)
    for name in (
        "report.html",
        "explanations.html",
        "metrics.json",
        "predictions.csv",
        "explanations",
        "figures",
        "checkpoints",
    ):
        if (run_folder / name).exists():
            console.print(f"{name:>16}  {run_folder / name}", soft_wrap=True, highlight=False)


def disk_mb(run_folder: Path, shared: Mapping[str, Path]) -> dict[str, int]:
    """Size in MB of the run folder, of its checkpoints, and of the folders that it shares with other runs."""
    folders = {"run": run_folder, "checkpoints": run_folder / "checkpoints", **shared}
    return {name: round(_bytes(folder) / 1e6) for name, folder in folders.items() if folder.is_dir()}


def print_disk_use(run_folder: Path, shared: Mapping[str, Path]) -> None:
    """Print the size of a run, and of what it shares with others."""
    sizes = disk_mb(run_folder, shared)
    others = [f"{sizes[name]} MB {SHARED_FOLDERS[name]} ({shared[name]})" for name in shared if name in sizes]
    Console(soft_wrap=True).print(
        f"{'on disk':>16}  {sizes['run']} MB this run ({sizes.get('checkpoints', 0)} MB checkpoints); shared by all "
        f"runs and made again if removed: {', '.join(others) or 'nothing'}",
        highlight=False,
    )


def _bytes(folder: Path) -> int:
    """Size of what is in a folder; other runs may write and remove files meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total
