"""Compare methods of explanation on some studies: `python -m idh_lightning.explain checkpoint=... output=DIR`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import track
from torch import Tensor

from idh_lightning.attribution import (
    ANY_SIGN,
    BASELINE,
    POINTING_WHERE_DECISIVE,
    REFERENCED,
    SCORES,
    Method,
    margin_lost,
    mean_mask,
    sign_scores,
)
from idh_lightning.attribution.faithfulness import deletion_insertion
from idh_lightning.attribution.library import methods_named
from idh_lightning.attribution.maps import explaining
from idh_lightning.attribution.sanity import between, cascade, shifts
from idh_lightning.attribution.sanity import table as sanity_table
from idh_lightning.attribution.sequence_importance import shapley
from idh_lightning.attribution.summary import choose, mean_ranks, mean_with_interval, summarised
from idh_lightning.callbacks.maps import beside_drawing, drawing, panel_of, reference_maps_of, rows_of
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import entry
from idh_lightning.cli.tables import FittingTable, number
from idh_lightning.cohort import SPLITS, Study
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.evaluation import PostProcessing
from idh_lightning.files import write_json, write_text
from idh_lightning.machine import torch_device
from idh_lightning.models import StemTailNetwork
from idh_lightning.phantom import SignMasks, evidence_file
from idh_lightning.reports.explanations_page import write_explanations_page
from idh_lightning.reports.vocabulary import LOCALISATION, REFERENCE_MAP
from idh_lightning.runs.assembly import prepare
from idh_lightning.runs.rehearsal import check
from idh_lightning.runs.state import started_in
from idh_lightning.volumes import StoredVolume, VolumeStore, codes_on_grid, write_map

logger = logging.getLogger(__name__)

CURVES = ("deletion", "insertion", "random_deletion", "random_insertion")


@dataclass(frozen=True, kw_only=True)
class MapComparison:
    """Explains the same studies by several methods, scores and checks them, and shows the maps of the best.

    Attributes:
        methods: Names of files in conf/explain; None for all that fit the network.
        studies: How many are explained, spread over both labels; None for all.
        batch_size: Studies explained at once.
        faithfulness_studies: Studies whose voxels are deleted and inserted; 0 for none.
        sanity_studies: Studies whose maps are compared with those of randomised networks and of moved volumes, at
            least 2; 0 for none.
        sequence_studies: Studies whose sequences are swapped; 0 for none.
        donors: Other patients who give sequences.
        bootstrap: Resamples of the studies, for intervals.
        confidence: Of the intervals.
    """

    methods: Sequence[str] | None = None
    studies: int | None = None
    batch_size: int = 4
    faithfulness_studies: int = 16
    sanity_studies: int = 4
    sequence_studies: int = 16
    donors: int = 4
    bootstrap: int = 2000
    confidence: float = 0.95

    def __call__(
        self,
        network: StemTailNetwork,
        store: VolumeStore,
        studies: Sequence[Study],
        training: Sequence[Study],
        *,
        learnt: PostProcessing | None,
        sequences: Sequence[str],
        folder: Path,
        others: Mapping[str, Sequence[StemTailNetwork]] | None = None,
        cohort: str = "",
        trained_on: str = "",
    ) -> dict[str, Any]:
        """Write all that is said of the maps into a folder, and return the content of explanations.json.

        Writes explanations.csv, explanations_by_sign.csv (of synthetic studies), explanations.json, sanity.csv,
        cascade.csv, sequences.csv, explanations.html, and of the method that is chosen the maps
        (explanations/<study_id>_cam.nii.gz) and panels (figures/cam/<study_id>.png).

        Args:
            network: What is explained; left as it was.
            store: Holds all studies.
            studies: To be explained.
            training: From whose masks the mean tumour comes, and who give sequences; may be empty.
            learnt: Calls a study mutant or wildtype; None for the larger logit.
            sequences: Names of the channels.
            folder: To write into.
            others: Networks whose maps are compared with those of `network`, by check: "other seed", "permuted labels".
            cohort: Name of the cohort of the studies.
            trained_on: Name of the cohort that the network was trained on.
        """
        methods = methods_named(self.methods, network)
        names = [method.name for method in methods]
        studies = studies if self.studies is None else _some(studies, self.studies)
        scores, by_sign, seconds = self._scored(network, store, studies, training, methods, learnt)
        write_text(folder / "explanations.csv", scores.to_csv(index=False))
        if not by_sign.empty:
            write_text(folder / "explanations_by_sign.csv", by_sign.to_csv(index=False))
        summary = summarised(scores, resamples=self.bootstrap, confidence=self.confidence)

        faithfulness = self._faithfulness(network, store, _some(studies, self.faithfulness_studies), methods)
        checked = _some(studies, max(self.sanity_studies, 2)) if self.sanity_studies else []
        if self.sanity_studies and len(checked) != self.sanity_studies:
            logger.warning(
                "Sanity checks take %s: explanation.sanity_studies is %d, of %d explained; at least 2 are needed, "
                "since random networks get their BatchNorm from them.",
                f"{len(checked)} studies" if len(checked) > 1 else "no study",
                self.sanity_studies,
                len(studies),
            )
        sanity, cascades = self._sanity(network, store, checked, methods, others or {})
        if not sanity.empty:
            write_text(folder / "sanity.csv", sanity.to_csv(index=False))
            write_text(folder / "cascade.csv", cascades.to_csv(index=False))
        importance = self._sequences(network, store, _some(studies, self.sequence_studies), training, sequences)
        if not importance.empty:
            write_text(folder / "sequences.csv", importance.to_csv(index=False))

        faithful = {name: found["faithfulness"]["value"] for name, found in faithfulness.items()}
        ranks = mean_ranks(summary, faithful)
        default = choose(ranks, sanity, names)
        content: dict[str, Any] = {
            "default": {"method": default.method, "why": default.why},
            "studies": len(studies),
            "cohort": cohort,
            "trained_on": trained_on,
            "confidence": self.confidence,
            "mean_ranks": ranks.dropna().to_dict(),
            "seconds_per_study": seconds,
            "scores": _records(summary),
            "by_sign": _records(self._signs(by_sign)),
            "faithfulness": faithfulness,
            "sanity": _records(sanity),
            "cascade": _records(
                cascades.groupby(["method", "module"], sort=False)[["spearman", "ssim"]].mean().reset_index()
            )
            if len(cascades)
            else [],
            "sequences": self._leanings(importance, sequences),
        }
        write_json(folder / "explanations.json", content)
        self._show(network, store, studies, methods[names.index(default.method)], sequences, folder, learnt)
        write_explanations_page(folder)
        return content

    def _scored(
        self,
        network: StemTailNetwork,
        store: VolumeStore,
        studies: Sequence[Study],
        training: Sequence[Study],
        methods: Sequence[Method],
        learnt: PostProcessing | None,
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
        """Return the rows of explanations.csv, those by sign, and seconds per study of each method."""
        mean_tumour = mean_mask(store.open(study).mask for study in training)
        rows: list[dict[str, object]] = []
        signs: list[dict[str, object]] = []
        seconds = dict.fromkeys((method.name for method in methods), 0.0)
        batches = -(-len(studies) // self.batch_size)
        for chunk, stored, volumes in track(self._batches(network, store, studies), "Explaining", total=batches):
            with torch.no_grad():
                logits = network(volumes)
            called = _called(logits, learnt)
            maps = {}
            for method in methods:
                began = time.perf_counter()
                maps[method.name] = method(network, volumes).cpu().numpy()
                seconds[method.name] += time.perf_counter() - began
            for place, (study, item) in enumerate(zip(chunk, stored, strict=True)):
                cams = {name: theirs[place] for name, theirs in maps.items()}
                known = {"label": study.label, "right": bool(called[place] == study.label)}
                theirs = rows_of(study, item, cams, reference_maps_of(network, methods, item), mean_tumour)
                rows += [row | known for row in theirs]
                evidence = _evidence(study, item)
                lost = _margins_lost(network, volumes[place], evidence, item)
                for name, cam in cams.items():
                    for sign, found in sign_scores(cam, evidence, np.asarray(item.brain)).items():
                        signs.append(
                            {"study_id": study.study_id, "method": name, "sign": sign, **found, **lost[sign], **known}
                        )
        columns = ["study_id", "method", *SCORES, *(f"{name}_reference" for name in REFERENCED), "label", "right"]
        each = {name: spent / max(len(studies), 1) for name, spent in seconds.items()}
        return pd.DataFrame(rows, columns=columns), pd.DataFrame(signs), each

    def _faithfulness(
        self, network: StemTailNetwork, store: VolumeStore, studies: Sequence[Study], methods: Sequence[Method]
    ) -> dict[str, Any]:
        """Return method -> mean curves, areas, and `faithfulness`: insertion less deletion, with its interval."""
        if not studies:
            return {}
        curves: dict[str, dict[str, list[np.ndarray]]] = {
            method.name: {name: [] for name in CURVES} for method in methods
        }
        fractions: np.ndarray = np.empty(0)
        batches = -(-len(studies) // self.batch_size)
        for _, _, volumes in track(self._batches(network, store, studies), "Deleting", total=batches):
            for method in methods:
                found = deletion_insertion(network, volumes, method(network, volumes))
                fractions = found.fractions
                for name in CURVES:
                    curves[method.name][name].append(getattr(found, name))
        content = {}
        for method_name, theirs in curves.items():
            joined = {name: np.concatenate(parts) for name, parts in theirs.items()}
            areas = {name: np.trapezoid(values, fractions, axis=1) for name, values in joined.items()}
            content[method_name] = {
                "fractions": fractions.tolist(),
                "curves": {name: values.mean(0).tolist() for name, values in joined.items()},
                "areas": {name: self._statistic(values) for name, values in areas.items()},
                "faithfulness": self._statistic(areas["insertion"] - areas["deletion"]),
            }
        return content

    def _sanity(
        self,
        network: StemTailNetwork,
        store: VolumeStore,
        studies: Sequence[Study],
        methods: Sequence[Method],
        others: Mapping[str, Sequence[StemTailNetwork]],
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return which methods pass which checks, and how alike maps are while the network is randomised."""
        if len(studies) < 2:
            return pd.DataFrame(columns=["method", "passed"]), pd.DataFrame()
        volumes = _volumes([store.open(study) for study in studies], network)
        results = {}
        for method in track(methods, "Randomising"):
            random = cascade(method, network, volumes)
            results[method.name] = {
                "randomised": random,
                "randomised tail": random,
                "shifted": shifts(method, network, volumes),
            }
            for kind, networks in others.items():
                pairs = [between(method, {"this": network, "other": other}, volumes) for other in networks]
                results[method.name][kind] = pd.concat(pairs)
        cascades = pd.concat([found["randomised"].assign(method=name) for name, found in results.items()])
        return sanity_table(results), cascades

    def _sequences(
        self,
        network: StemTailNetwork,
        store: VolumeStore,
        studies: Sequence[Study],
        training: Sequence[Study],
        sequences: Sequence[str],
    ) -> pd.DataFrame:
        """Return what each sequence says for mutant, one row per study; none without donors."""
        giving = _some(training or studies, self.donors)
        if not studies or not giving:
            return pd.DataFrame()
        donors = _volumes([store.open(study) for study in giving], network)
        rows = []
        batches = -(-len(studies) // self.batch_size)
        for chunk, stored, volumes in track(self._batches(network, store, studies), "Swapping", total=batches):
            values = shapley(network, volumes, donors).cpu().numpy()
            for study, item, theirs in zip(chunk, stored, values, strict=True):
                row = {"study_id": study.study_id, "label": study.label, "signs": " ".join(_evidence(study, item))}
                rows.append(row | dict(zip(sequences, theirs.tolist(), strict=True)))
        return pd.DataFrame(rows)

    def _show(
        self,
        network: StemTailNetwork,
        store: VolumeStore,
        studies: Sequence[Study],
        method: Method,
        sequences: Sequence[str],
        folder: Path,
        learnt: PostProcessing | None,
    ) -> None:
        """Write the maps of the chosen method and draw its panels; it explains once more, so that no maps pile up."""
        batches = -(-len(studies) // self.batch_size)
        with drawing() as draw, beside_drawing():
            for chunk, stored, volumes in track(self._batches(network, store, studies), "Drawing", total=batches):
                with torch.no_grad():
                    margins = _margins(network(volumes))
                probabilities = [None] * len(chunk) if learnt is None else learnt.calibrator(margins).tolist()
                maps = method(network, volumes).cpu().numpy()
                for study, item, cam, probability in zip(chunk, stored, maps, probabilities, strict=True):
                    inside = cam * (np.asarray(item.brain) > 0)
                    write_map(inside, item, folder / "explanations" / f"{study.study_id}_cam.nii.gz")
                    path = folder / "figures" / "cam" / f"{study.study_id}.png"
                    draw(path, panel_of(study, item, inside, sequences, probability=probability))

    def _batches(
        self, network: StemTailNetwork, store: VolumeStore, studies: Sequence[Study]
    ) -> Iterator[tuple[Sequence[Study], list[StoredVolume], Tensor]]:
        for start in range(0, len(studies), self.batch_size):
            chunk = studies[start : start + self.batch_size]
            stored = [store.open(study) for study in chunk]
            yield chunk, stored, _volumes(stored, network)

    def _statistic(self, values: np.ndarray) -> dict[str, float | int | None]:
        value, low, high = mean_with_interval(values, resamples=self.bootstrap, confidence=self.confidence)
        return {"value": _number(value), "low": _number(low), "high": _number(high), "n": len(values)}

    def _signs(self, by_sign: pd.DataFrame) -> pd.DataFrame:
        """Return the mean of each score against each sign, with its interval."""
        rows = []
        for (method, sign), theirs in by_sign.groupby(["method", "sign"], sort=False) if len(by_sign) else ():
            decides = theirs[theirs["margin_lost"] > theirs["margin_lost_tumour"].clip(lower=0)]
            for score, values in (
                ("pointing_game", theirs["pointing_game"]),
                (POINTING_WHERE_DECISIVE, decides["pointing_game"]),
                ("energy_inside", theirs["energy_inside"]),
                ("auprc", theirs["auprc"]),
            ):
                found = self._statistic(values.to_numpy(dtype=float))
                rows.append({"method": method, "sign": sign, "score": score, **found})
        return pd.DataFrame(rows)

    def _leanings(self, importance: pd.DataFrame, sequences: Sequence[str]) -> list[dict[str, Any]]:
        """Return, for groups of studies, the mean of what each sequence says for mutant, and its mean magnitude."""
        if importance.empty:
            return []
        groups = {"all": importance["label"].notna()}
        groups |= {"mutant": importance["label"] == 1, "wildtype": importance["label"] == 0}
        groups |= {sign: importance["signs"].str.split().map(lambda has, sign=sign: sign in has) for sign in _SIGNS}
        rows = []
        for group, chosen in groups.items():
            theirs = importance.loc[chosen, list(sequences)]
            for sequence in sequences if len(theirs) else ():
                values = theirs[sequence].to_numpy(dtype=float)
                rows.append(
                    {
                        "group": group,
                        "sequence": sequence,
                        **self._statistic(values),
                        "size": float(np.abs(values).mean()),
                    }
                )
        return rows


_SIGNS = {code.name.lower(): code for code in SignMasks if code is not SignMasks.OEDEMA and code.name}
"""The signs by which synthetic mutants and wildtypes differ and that have voxels; oedema follows enhancement."""


def _evidence(study: Study, stored: StoredVolume) -> dict[str, np.ndarray]:
    """Return sign -> its voxels [D, H, W], of the signs that a synthetic study shows, and all of them as `ANY_SIGN`."""
    file = evidence_file(study)
    if file is None:
        return {}
    codes = codes_on_grid(file, stored)
    found = {sign: voxels for sign, code in _SIGNS.items() if (voxels := (codes & int(code)) > 0).any()}
    return found | {ANY_SIGN: np.logical_or.reduce(list(found.values()))} if found else {}


def _margins_lost(
    network: StemTailNetwork, volume: Tensor, evidence: Mapping[str, np.ndarray], stored: StoredVolume
) -> dict[str, dict[str, float]]:
    """Return sign -> by how much the margin falls where its voxels, and where the tumour's, give way to their mirror.

    Two columns of explanations_by_sign.csv: what the network goes by may be told from what it could go by.
    """
    if not evidence:
        return {}
    tumour = np.zeros(volume.shape[1:], bool) if stored.mask is None else np.asarray(stored.mask) > 0
    regions = torch.from_numpy(np.stack([*evidence.values(), tumour])).to(volume.device)
    with explaining(network), torch.no_grad():
        *each, whole = margin_lost(network, volume)(regions).tolist()
    return {sign: {"margin_lost": one, "margin_lost_tumour": whole} for sign, one in zip(evidence, each, strict=True)}


def _called(logits: Tensor, learnt: PostProcessing | None) -> np.ndarray:
    """Return the class that each study is called, [B], at the operating point where there is one."""
    margins = _margins(logits)
    if learnt is None:
        return np.asarray(margins > 0).astype(int)
    return learnt.apply(margins)["predicted"].to_numpy(dtype=int)


def _margins(logits: Tensor) -> np.ndarray:
    """Logits of mutant less those of wildtype, [B], of logits [B, 2]."""
    return (logits[:, 1] - logits[:, 0]).double().cpu().numpy()


def _some(studies: Sequence[Study], number: int) -> list[Study]:
    """Return some studies, half of them mutant as far as there are any."""
    mutant = [study for study in studies if study.label == 1]
    wildtype = [study for study in studies if study.label == 0]
    half = max(number - number // 2, number - len(wildtype))
    mutant = mutant[:half]
    return mutant + wildtype[: number - len(mutant)]


def _volumes(stored: Sequence[StoredVolume], network: StemTailNetwork) -> Tensor:
    volumes = torch.stack([torch.from_numpy(np.array(item.image, dtype=np.float32)) for item in stored])
    return volumes.to(next(network.parameters()).device)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table in primitives, NaN as null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        for row in rows
    ]


def explain(config: DictConfig) -> dict[str, Any]:
    """Explain what the configuration names by all methods, and return the content of explanations.json.

    Raises:
        CheckpointError: If the checkpoint cannot be used or does not belong to a run whose cohort could be taken.
        ConfigError: If the output is the folder of a run, or maps are to be compared and no studies to do it on.
    """
    if OmegaConf.is_missing(config, "checkpoint") or not config.checkpoint:
        raise ConfigError("checkpoint: found none; expected a run folder or a .ckpt. Give checkpoint=PATH.")
    folder = Path(config.paths.run)
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
    device = torch_device(str(config.device))
    checkpoint = Checkpoint.read(config.checkpoint)
    others = {
        check: [_like(checkpoint.recipe, other).to(device).eval() for other in runs]
        for check, runs in (("other seed", config.other_seeds), ("permuted labels", config.permuted_labels))
        if runs
    }
    if config.part not in SPLITS:
        raise ConfigError(f"part: found '{config.part}'; expected one of {', '.join(SPLITS)}. Correct it.")
    own = config.get("cohort") is None
    _take_over(config, checkpoint.recipe, checkpoint.file if own else None)
    check(config)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    prepared = prepare(config)
    checkpoint.require_sequences(prepared.cohort.sequences)
    parts = prepared.by_split
    content: dict[str, Any] = instantiate_section(config.explanation)(
        checkpoint.network().to(device),
        prepared.store,
        parts[config.part if own else "test"],
        parts["train"],
        learnt=checkpoint.post_processing,
        sequences=prepared.cohort.sequences,
        folder=folder,
        others=others,
        cohort=prepared.cohort.name,
        trained_on=str(checkpoint.recipe.get("cohort", "")),
    )
    print_map_scores(content, folder)
    return content


def _like(recipe: Mapping[str, Any], run: str) -> StemTailNetwork:
    """Return the network of another run.

    Raises:
        CheckpointError: If it is another kind of network or learnt from volumes of another kind.
    """
    other = Checkpoint.read(run)
    differ = [key for key in ("model", "preprocessing", "sequences") if other.recipe[key] != recipe[key]]
    if differ:
        raise CheckpointError(
            f"{run}: has another {' and '.join(differ)} than the run that is explained; expected runs that differ in "
            "seed or labels alone. Give another run."
        )
    return other.network()


def _take_over(config: DictConfig, recipe: Mapping[str, Any], run_of: Path | None) -> None:
    """Put what the checkpoint decides into the configuration, and the cohort and split of its run where it has none."""
    with open_dict(config):
        if run_of is not None:
            written = run_of.parent.parent / ".hydra" / "config.yaml"
            if not written.is_file():
                raise CheckpointError(
                    f"{run_of}: does not lie in the folder of a run ({written} is not there), so that its cohort is "
                    "not known; expected a run folder. Give one, or cohort=..."
                )
            recorded: Any = OmegaConf.load(written)
            start = started_in(run_of.parent.parent)
            for section in (recorded.cohort, recorded.split):
                _make_absolute(section, start)
            for key in ("cohort", "data", "split", "control", "seed", "fold"):
                config[key] = recorded[key]
            given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
            for key in ("data", "store", "bank"):
                if not any(one.startswith(f"paths.{key}=") for one in given):
                    config.paths[key] = str(start / recorded.paths[key])
        config.data.preprocessing = recipe["preprocessing"]
        config.data.missing = recipe["preprocessing"]["missing"]
        if "sequences" in config.cohort:
            config.cohort.sequences = recipe["sequences"]


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
    found = {(row["method"], row["score"]): row for row in content["scores"] if row["group"] == "all"}
    sane: dict[str, bool] = {}
    for row in content["sanity"]:
        sane[row["method"]] = sane.get(row["method"], True) and row["passed"]
    headings = ("method", *(metric.short for metric in LOCALISATION.values()), "faithful", "sane", "s / study")
    table = FittingTable(f"Maps of {content['studies']} studies: means (in brackets: of the {REFERENCE_MAP})", headings)
    for method in dict.fromkeys(name for name, _ in found):
        cells = []
        for score in LOCALISATION:
            row, best = found.get((method, score)), found.get((method, f"{score}_reference"))
            cell = "-" if row is None else number(row["value"])
            cells.append(cell if best is None else f"{cell} ({number(best['value'])})")
        faithful = content["faithfulness"].get(method)
        passed = {True: "yes", False: "no"}.get(sane.get(method), "-")  # type: ignore[arg-type]
        spent = content["seconds_per_study"].get(method)
        table.add_row(
            method,
            *cells,
            "-" if faithful is None else number(faithful["faithfulness"]["value"]),
            passed,
            "-" if spent is None else number(spent),
            style="dim" if method.startswith(BASELINE) else "",
        )
    console = Console()
    console.print(table)
    console.print(content["default"]["why"], highlight=False)
    for name in ("explanations.html", "explanations.csv", "explanations.json", "sanity.csv", "explanations"):
        if (folder / name).exists():
            console.print(f"{name:>20}  {folder / name}", soft_wrap=True, highlight=False)


@entry("explain")
def main(config: DictConfig) -> None:
    """Explain what the command line composes."""
    explain(config)


if __name__ == "__main__":
    main()
