"""Start-up: seconds from a command line to the end of its process, which answers it from the first import on."""

from __future__ import annotations

import logging
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from idh_lightning.cli.tables import FittingTable
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError
from idh_lightning.files import write_json

logger = logging.getLogger(__name__)


def measure_startup(config: DictConfig) -> None:
    """Measure commands in processes of their own, in turn, and write the medians into startup.json of the run folder.

    The disk's cache is warm, as each command has run once before. The new patient is the first of the cohort.
    """
    run_folder = Path(config.paths.run)
    study = instantiate_section(config.cohort).read().studies[0]
    files = [f"{name.lower()}={path}" for name, path in study.files.items()]
    commands: Mapping[str, tuple[Sequence[int], Sequence[str]]] = {
        "--help": ((0,), ("train", "--help")),
        "a misspelt key": ((2,), ("train", "lr=1e-4")),
        "a table that is not there": ((2,), ("train", "cohort=table", f"cohort.table={run_folder / 'none.csv'}")),
        "a new patient": ((0, 3), ("predict", *files, f"output={run_folder / 'predictions'}")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repetition in range(int(config.benchmark.repeats) + 1):
        for name, (expected, (verb, *settings)) in commands.items():
            program = [sys.executable, "-m", f"idh_lightning.{verb}", *settings]
            began = time.perf_counter()
            done = subprocess.run(program, capture_output=True, text=True, check=False)
            took = time.perf_counter() - began
            if done.returncode not in expected:
                raise ConfigError(f"{shlex.join(program)}: ended with {done.returncode}: {done.stderr}")
            if repetition:
                seconds[name].append(took)
                logger.info("%s: %.2f s", name, seconds[name][-1])
    write_json(run_folder / "startup.json", {"seconds": seconds})
    table = FittingTable("Start-up", ("command", "median s", "fastest s", "slowest s"), left=("command",))
    for name, each in seconds.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(each), min(each), max(each))))
    Console().print(table)
    Console().print(f"{run_folder / 'startup.json'}", soft_wrap=True, highlight=False)
