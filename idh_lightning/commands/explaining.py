"""Comparison of the methods of explanation on studies of a run or of a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from idh_lightning.attribution import BASELINE
from idh_lightning.attribution.maps import methods_named
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import task_overrides
from idh_lightning.cli.tables import FittingTable, number
from idh_lightning.cohort import SPLITS
from idh_lightning.config.instantiation import instantiate_section, torch_device
from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.models import StemTailNetwork
from idh_lightning.reports.vocabulary import LOCALISATION, REFERENCE_MAP
from idh_lightning.runs.explaining import write_map_comparison
from idh_lightning.runs.preparation import prepare_configured, take_target_over
from idh_lightning.runs.rehearsal import check
from idh_lightning.runs.state import started_in


def explain_checkpoint(config: DictConfig) -> dict[str, Any]:
    """Explain what the configuration names by all methods, and return the content of explanations.json.

    Raises:
        CheckpointError: If the checkpoint cannot be used or does not belong to a run whose cohort could be taken.
        ConfigError: If the output is the folder of a run, or maps are to be compared and no studies to do it on.
    """
    folder = Path(config.paths.run)
    _refuse_unfit_settings(config, folder)
    device = torch_device(str(config.device))
    checkpoint = Checkpoint.read(config.checkpoint)
    others = {
        name: [_like(checkpoint.recipe, other).to(device).eval() for other in runs]
        for name, runs in (("other seed", config.other_seeds), ("permuted labels", config.permuted_labels))
        if runs
    }
    own = config.get("cohort") is None
    _take_over(config, checkpoint.recipe, checkpoint.file if own else None)
    if not own:
        take_target_over(config, checkpoint)
    check(config)
    network = checkpoint.network()
    methods_named(config.explanation.methods, network)  # a method that does not fit is told before volumes are prepared
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    prepared = prepare_configured(config)
    checkpoint.require_cohort(prepared.cohort)
    content = write_map_comparison(
        instantiate_section(config.explanation),
        network.to(device),
        prepared,
        folder,
        split=config.studies_of if own else "test",
        post_processing=checkpoint.post_processing,
        others=others,
        trained_on=str(checkpoint.recipe.get("cohort", "")),
    )
    print_map_scores(content, folder)
    return content


def _refuse_unfit_settings(config: DictConfig, folder: Path) -> None:
    if OmegaConf.is_missing(config, "checkpoint") or not config.checkpoint:
        raise ConfigError("checkpoint: found none; expected a run folder, a .ckpt or pretrained. Give checkpoint=PATH.")
    if (folder / "predictions.csv").exists():
        raise ConfigError(
            f"output: {folder} is the folder of a run; expected one of its own. Give another, or add 'explain' to the "
            "stages of that run."
        )
    if (config.other_seeds or config.permuted_labels) and not config.explanation.sanity_studies:
        raise ConfigError(
            "other_seeds, permuted_labels: found runs to compare maps with, and explanation.sanity_studies=0; expected "
            "at least 1. Set it, or name no runs."
        )
    if config.studies_of not in SPLITS:
        raise ConfigError(f"studies_of: found '{config.studies_of}'; expected one of {', '.join(SPLITS)}. Correct it.")


def _like(recipe: Mapping[str, Any], run: str) -> StemTailNetwork:
    """Network of another run; a CheckpointError if it is another one or learnt from volumes of another kind."""
    other = Checkpoint.read(run)
    differ = [
        key for key in ("model", "preprocessing", "sequences", "target") if other.recipe.get(key) != recipe.get(key)
    ]
    if differ:
        raise CheckpointError(
            f"{run}: has another {' and '.join(differ)} than the run that is explained; expected runs that differ in "
            "seed or labels alone. Give another run."
        )
    return other.network()


def _take_over(config: DictConfig, recipe: Mapping[str, Any], own: Path | None) -> None:
    """Put what the checkpoint decides into the configuration, and the cohort and split of its run where it has none."""
    with open_dict(config):
        if own is not None:
            _take_cohort_over(config, own)
        config.data.preprocessing = recipe["preprocessing"]
        config.data.missing = recipe["preprocessing"]["missing"]
        if "sequences" in config.cohort:
            config.cohort.sequences = recipe["sequences"]


def _take_cohort_over(config: DictConfig, checkpoint: Path) -> None:
    run_folder = checkpoint.parent.parent
    written = run_folder / ".hydra" / "config.yaml"
    if not written.is_file():
        raise CheckpointError(
            f"{checkpoint}: does not lie in the folder of a run ({written} is not there), so that its cohort is "
            "not known; expected a run folder. Give one, or cohort=..."
        )
    recorded: Any = OmegaConf.load(written)
    start = started_in(run_folder)
    for section in (recorded.cohort, recorded.split):
        _make_absolute(section, start)
    for key in ("cohort", "data", "split", "control", "seed", "fold"):
        config[key] = recorded[key]
    for key in ("data", "store", "bank"):
        if not any(typed.startswith(f"paths.{key}=") for typed in task_overrides()):
            config.paths[key] = str(start / recorded.paths[key])


def _make_absolute(section: DictConfig, start: Path) -> None:
    """Have the files and folders that a section of a recipe names count from a folder."""
    for key in section:
        if OmegaConf.is_missing(section, key):
            continue
        value = section._get_node(key)
        if isinstance(value, DictConfig):
            _make_absolute(value, start)
        elif key in ("folder", "table", "file") and not OmegaConf.is_interpolation(section, key):
            section[key] = str(start / str(section[key]))


def print_map_scores(content: Mapping[str, Any], folder: Path) -> None:
    """Print all methods with all scores and seconds per study, and the default method and why."""
    found = {(row["method"], row["score"]): row["value"] for row in content["scores"] if row["group"] == "all"}
    sane: dict[str, bool] = {}
    for row in content["sanity"]:
        sane[row["method"]] = sane.get(row["method"], True) and row["passed"]
    faithful = {method: each["faithfulness"]["value"] for method, each in content["faithfulness"].items()}
    headings = ("method", *(metric.short for metric in LOCALISATION.values()), "faithful", "sane", "s / study")
    table = FittingTable(f"Maps of {content['studies']} studies: means (in brackets: of the {REFERENCE_MAP})", headings)
    for method in dict.fromkeys(name for name, _ in found):
        cells = [_cell(found, (method, score)) for score in LOCALISATION]
        references = [_cell(found, (method, f"{score}_reference")) for score in LOCALISATION]
        table.add_row(
            method,
            *(f"{cell} ({best})" if best != "-" else cell for cell, best in zip(cells, references, strict=True)),
            _cell(faithful, method),
            "-" if method not in sane else "yes" if sane[method] else "no",
            _cell(content["seconds_per_study"], method),
            style="dim" if method.startswith(BASELINE) else "",
        )
    console = Console()
    console.print(table)
    console.print(content["default"]["why"], highlight=False)
    for name in ("explanations.html", "explanations.csv", "explanations.json", "sanity.csv", "explanations"):
        if (folder / name).exists():
            console.print(f"{name:>20}  {folder / name}", soft_wrap=True, highlight=False)


def _cell(values: Mapping[Any, Any], key: Any) -> str:
    return number(values[key]) if key in values else "-"
