"""Growth of seconds and memory with the number of patients, the grid and the batch."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.cli.tables import FittingTable
from idh_lightning.files import atomic_write, write_json
from idh_lightning.runs.rehearsal import check

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pipeline, measured with one setting, the axis, at one value; see `idh_lightning.benchmark.pipelines`."""

    axis: str
    value: float
    pipeline: str
    seconds_per_study: float
    peak_mb: float


def measure_growth(config: DictConfig) -> None:
    """Measure each value of each setting in `benchmark.growth` in processes of their own; draw and write the result."""
    check(config)
    run_folder = Path(config.paths.run)
    overrides = [one for one in HydraConfig.get().overrides.task if not one.startswith("benchmark.measure=")]
    pipelines = [one for one in config.benchmark.pipelines if one in ("on_the_fly", "bank")]
    points = []
    for axis, values in config.benchmark.growth.items():
        for value, pipeline in itertools.product(values, pipelines):
            folder = run_folder / "growth" / f"{axis}={value}" / pipeline
            settings = [*overrides, f"{axis}={value}", f"benchmark.pipelines=[{pipeline}]", "benchmark.tasks=[]"]
            points.append(Point(axis=str(axis), value=value, pipeline=pipeline, **_alone(settings, folder)))
            logger.info("%s", points[-1])
    write_json(run_folder / "growth.json", {"points": [asdict(point) for point in points]})
    with atomic_write(run_folder / "growth.png") as temporary:
        growth_figure(points).savefig(temporary, dpi=150)
    table = FittingTable("Growth", ("setting", "value", "pipeline", "s per study", "peak MB"), left=("pipeline",))
    for point in points:
        cells = f"{point.value:g}", point.pipeline, f"{point.seconds_per_study:.3f}", f"{point.peak_mb:.0f}"
        table.add_row(point.axis, *cells)
    Console().print(table)
    Console().print(f"{run_folder / 'growth.json'}", soft_wrap=True, highlight=False)


def _alone(overrides: Sequence[str], folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "idh_lightning.benchmark", *overrides, f"hydra.run.dir='{folder}'"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    row = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["rows"][0]
    return {key: row[key] for key in ("seconds_per_study", "peak_mb")}


def growth_figure(points: Sequence[Point]) -> Figure:
    """Figure with a column per setting: seconds per study above, peak memory below, one line per pipeline."""
    axes_names = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(3.2 * len(axes_names) + 0.5, 5), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False, sharex="col")
    for column, axis in enumerate(axes_names):
        for row, (key, label) in enumerate((("seconds_per_study", "s per training study"), ("peak_mb", "peak MB"))):
            panel = grid[row][column]
            for pipeline in dict.fromkeys(point.pipeline for point in points):
                own = [point for point in points if (point.axis, point.pipeline) == (axis, pipeline)]
                heights = [getattr(point, key) for point in own]
                panel.plot([point.value for point in own], heights, marker="o", label=pipeline)
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
        grid[1][column].set_xlabel(axis)
    grid[0][0].legend(frameon=False)
    return figure
