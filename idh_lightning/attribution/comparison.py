"""Comparison of methods of explanation on the same studies: scored, checked, and the best one chosen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from idh_lightning.attribution.faithfulness import PerturbationCurves, deletion_insertion, shapley
from idh_lightning.attribution.maps import Method, logit_difference, methods_named
from idh_lightning.attribution.sanity import between, cascade, sanity_table, shifts
from idh_lightning.attribution.scores import (
    SCORE_COLUMNS,
    choose,
    mean_mask,
    mean_ranks,
    mean_with_interval,
    summarised,
)
from idh_lightning.attribution.studies import (
    POINTING_WHERE_DECISIVE,
    SIGN_CODES,
    explained_at_once,
    explanation_rows,
    sign_masks,
    sign_rows,
    volume_tensor,
)
from idh_lightning.cohort import Study
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.radiomics import at_sites, sites_of
from idh_lightning.volumes import StoredVolume, VolumeStore

logger = logging.getLogger(__name__)

LONG_MIN = 5
"""Minutes of explaining that are announced after the first studies."""

MAP_TABLES = ("explanations.csv", "explanations_by_sign.csv", "sanity.csv", "cascade.csv", "sequences.csv")
"""Tables of a comparison, of which those are made that have rows."""

CallClass = Callable[[NDArray[np.float64]], NDArray[np.integer]]
"""From logits of mutant less those of wildtype, [B], to the class that each study is called, [B]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedMaps:
    """Result of a comparison of methods.

    Attributes:
        tables: Name of a file -> its rows; a table without rows is left out.
        content: Of explanations.json, in primitives.
        method: That is chosen.
        studies: That were explained.
    """

    tables: Mapping[str, pd.DataFrame]
    content: Mapping[str, Any]
    method: Method
    studies: Sequence[Study]


@dataclass(frozen=True, eq=False)
class _Subject:
    """Network that is explained, the studies, and the methods."""

    network: StemTailNetwork
    store: VolumeStore
    studies: Sequence[Study]
    training: Sequence[Study]
    methods: Sequence[Method]
    sequences: Sequence[str]

    def volumes(self, studies: Sequence[Study]) -> Tensor:
        """Volumes [B, C, D, H, W] of some studies."""
        return volume_tensor([self.store.open(study) for study in studies], self.network)


@dataclass(frozen=True, kw_only=True)
class MapComparison:
    """Explains the same studies by several methods, scores and checks them, and chooses the best.

    Attributes:
        methods: Names of files in conf/explain; None for all that fit the network and take seconds per study.
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
        call: CallClass,
        sequences: Sequence[str],
        others: Mapping[str, Sequence[StemTailNetwork]] | None = None,
        cohort: str = "",
        trained_on: str = "",
    ) -> ComparedMaps:
        """Compare the methods on studies.

        Args:
            network: What is explained; left as it was.
            store: Holds all studies.
            studies: To be explained.
            training: From whose masks the mean tumour comes, and who give sequences; may be empty.
            call: Calls studies mutant or wildtype.
            sequences: Names of the channels.
            others: Networks whose maps are compared with those of `network`, by check: "other seed", "permuted labels".
            cohort: Name of the cohort of the studies.
            trained_on: Name of the cohort that the network was trained on.
        """
        chosen = studies if self.studies is None else of_both_labels(studies, self.studies)
        on = _Subject(network, store, chosen, training, methods_named(self.methods, network), sequences)
        scores, by_sign, seconds = self._scored(on, call)
        summary = summarised(scores, resamples=self.bootstrap, confidence=self.confidence)
        faithfulness = self._faithfulness(on)
        sanity, cascades = self._sanity(on, others or {})
        importance = self._sequences(on)
        ranks = mean_ranks(summary, {name: found["faithfulness"]["value"] for name, found in faithfulness.items()})
        choice = choose(ranks, sanity, [method.name for method in on.methods])
        tables = {
            "explanations_by_sign.csv": by_sign,
            "sanity.csv": sanity,
            "cascade.csv": cascades,
            "sequences.csv": importance,
        }
        if not cascades.empty:
            alike = cascades.groupby(["method", "module"], sort=False)[["spearman", "ssim"]].mean().reset_index()
        content = {
            "default": choice._asdict(),
            "studies": len(chosen),
            "cohort": cohort,
            "trained_on": trained_on,
            "confidence": self.confidence,
            "mean_ranks": ranks.dropna().to_dict(),
            "seconds_per_study": seconds,
            "scores": _records(summary),
            "by_sign": _records(self._by_sign(by_sign)),
            "faithfulness": faithfulness,
            "sanity": _records(sanity),
            "cascade": [] if cascades.empty else _records(alike),
            "sequences": self._by_sequence(importance, sequences),
        }
        return ComparedMaps(
            tables={"explanations.csv": scores} | {name: table for name, table in tables.items() if not table.empty},
            content=content,
            method=next(method for method in on.methods if method.name == choice.method),
            studies=chosen,
        )

    def batches(
        self, network: StemTailNetwork, store: VolumeStore, studies: Sequence[Study], progress: str
    ) -> Iterator[tuple[Sequence[Study], list[StoredVolume], Tensor]]:
        """Yield some studies, how they are stored, and their volumes [B, C, D, H, W], with a progress bar of a title.

        Until the next ones the network takes its studies for those of their sites.
        """
        size = explained_at_once(network, self.batch_size)
        for start in track(range(0, len(studies), size), progress):
            chunk = studies[start : start + size]
            stored = [store.open(study) for study in chunk]
            with at_sites(network, sites_of(network, chunk)):
                yield chunk, stored, volume_tensor(stored, network)

    def _scored(self, on: _Subject, call: CallClass) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
        """Rows of explanations.csv, those by sign, and seconds per study of each method."""
        mean_tumour = mean_mask(on.store.open(study).mask for study in on.training)
        rows: list[dict[str, object]] = []
        signs: list[dict[str, object]] = []
        seconds = dict.fromkeys((method.name for method in on.methods), 0.0)
        for chunk, stored, volumes in self.batches(on.network, on.store, on.studies, "Explaining"):
            with torch.no_grad():
                called = call(logit_difference(on.network(volumes)).double().cpu().numpy())
            maps = {}
            for method in on.methods:
                began = time.perf_counter()
                maps[method.name] = method(on.network, volumes).cpu().numpy()
                seconds[method.name] += time.perf_counter() - began
            if not rows:
                _announce_duration(seconds, len(chunk), len(on.studies))
            for index, (study, item) in enumerate(zip(chunk, stored, strict=True)):
                cams = {name: theirs[index] for name, theirs in maps.items()}
                known = {"label": study.label, "right": bool(called[index] == study.label)}
                found = explanation_rows(on.network, on.methods, study, item, cams, mean_tumour)
                rows += [row | known for row in found]
                signs += [row | known for row in sign_rows(on.network, volumes[index], study, item, cams)]
        each = {name: spent / max(len(on.studies), 1) for name, spent in seconds.items()}
        return pd.DataFrame(rows, columns=[*SCORE_COLUMNS, "label", "right"]), pd.DataFrame(signs), each

    def _faithfulness(self, on: _Subject) -> dict[str, Any]:
        """Method -> mean curves, areas, and `faithfulness`: insertion less deletion, with its interval."""
        found: dict[str, list[PerturbationCurves]] = {method.name: [] for method in on.methods}
        studies = of_both_labels(on.studies, self.faithfulness_studies)
        for _, _, volumes in self.batches(on.network, on.store, studies, "Deleting") if studies else ():
            for method in on.methods:
                found[method.name].append(deletion_insertion(on.network, volumes, method(on.network, volumes)))
        content = {}
        for name, batches in found.items() if studies else ():
            curves = PerturbationCurves.joined(batches)
            areas = curves.areas
            content[name] = {
                "fractions": curves.fractions.tolist(),
                "curves": {each: getattr(curves, each).mean(0).tolist() for each in areas},
                "areas": {each: self._estimate(values) for each, values in areas.items()},
                "faithfulness": self._estimate(areas["insertion"] - areas["deletion"]),
            }
        return content

    def _sanity(
        self, on: _Subject, others: Mapping[str, Sequence[StemTailNetwork]]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Sanity checks that methods pass, and likeness of maps while the network is randomised."""
        checked = of_both_labels(on.studies, max(self.sanity_studies, 2)) if self.sanity_studies else []
        if self.sanity_studies and (len(checked) != self.sanity_studies or len(checked) < 2):
            logger.warning(
                "Sanity checks take %s: explanation.sanity_studies is %d, of %d explained; at least 2 are needed, "
                "since random networks get their BatchNorm from them.",
                f"{len(checked)} studies" if len(checked) > 1 else "no study",
                self.sanity_studies,
                len(on.studies),
            )
        if len(checked) < 2:
            return pd.DataFrame(columns=["method", "passed"]), pd.DataFrame()
        network, volumes = on.network, on.volumes(checked)
        cascades = cascade(on.methods, network, volumes)
        results = {}
        for method in track(on.methods, "Moving"):
            random = cascades[cascades["method"] == method.name]
            results[method.name] = {
                "randomised": random,
                "randomised tail": random,
                "shifted": shifts(method, network, volumes),
            }
            for kind, networks in others.items():
                pairs = [between(method, {"this": network, "other": other}, volumes) for other in networks]
                results[method.name][kind] = pd.concat(pairs)
        return sanity_table(results), cascades

    def _sequences(self, on: _Subject) -> pd.DataFrame:
        """Shapley values of the sequences, one row per study; no rows without donors."""
        giving = of_both_labels(on.training or on.studies, self.donors)
        chosen = of_both_labels(on.studies, self.sequence_studies)
        if not chosen or not giving:
            return pd.DataFrame()
        donors = on.volumes(giving)
        rows = []
        for chunk, stored, volumes in self.batches(on.network, on.store, chosen, "Swapping"):
            values = shapley(on.network, volumes, donors).cpu().numpy()
            for study, item, theirs in zip(chunk, stored, values, strict=True):
                row = {"study_id": study.study_id, "label": study.label, "signs": " ".join(sign_masks(study, item))}
                rows.append(row | dict(zip(on.sequences, theirs.tolist(), strict=True)))
        return pd.DataFrame(rows)

    def _by_sign(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Mean of each score against each sign, with its interval."""
        means = []
        for (method, sign), theirs in rows.groupby(["method", "sign"], sort=False) if len(rows) else ():
            decides = theirs[theirs["margin_lost"] > theirs["margin_lost_tumour"].clip(lower=0)]
            for score, values in (
                ("pointing_game", theirs["pointing_game"]),
                (POINTING_WHERE_DECISIVE, decides["pointing_game"]),
                ("energy_inside", theirs["energy_inside"]),
                ("auprc", theirs["auprc"]),
            ):
                estimate = self._estimate(values.to_numpy(dtype=float))
                means.append({"method": method, "sign": sign, "score": score, **estimate})
        return pd.DataFrame(means)

    def _by_sequence(self, importance: pd.DataFrame, sequences: Sequence[str]) -> list[dict[str, Any]]:
        """Mean Shapley value of each sequence in groups of studies, and its mean magnitude."""
        if importance.empty:
            return []
        groups = {"all": importance["label"].notna()}
        groups |= {"mutant": importance["label"] == 1, "wildtype": importance["label"] == 0}
        groups |= {sign: importance["signs"].str.split().map(lambda has, sign=sign: sign in has) for sign in SIGN_CODES}
        return [
            {"group": group, "sequence": sequence, **self._estimate(values), "size": float(np.abs(values).mean())}
            for group, chosen in groups.items()
            for sequence in sequences
            if len(values := importance.loc[chosen, sequence].to_numpy(dtype=float))
        ]

    def _estimate(self, values: np.ndarray) -> dict[str, float | int | None]:
        estimate = mean_with_interval(values, resamples=self.bootstrap, confidence=self.confidence)
        ends = (float(each) if np.isfinite(each) else None for each in estimate)
        return {**dict(zip(("value", "low", "high"), ends, strict=True)), "n": len(values)}


def _announce_duration(seconds: Mapping[str, float], done: int, studies: int) -> None:
    """Log how long the maps of all studies take, where it is long, by the seconds that each method took for some."""
    minutes = sum(seconds.values()) / done * (studies - done) / 60
    if minutes < LONG_MIN:
        return
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:3]
    logger.warning(
        "Explaining %d studies by %d methods takes about %.0f min, before deleting, moving and swapping. Slowest are "
        "%s. For less: explanation.studies=8, or explanation.methods=[...] without them.",
        studies,
        len(seconds),
        minutes,
        ", ".join(f"{name} ({seconds[name] / done:.1f} s a study)" for name in slowest),
    )


def of_both_labels(studies: Sequence[Study], count: int) -> list[Study]:
    """Some studies, half of them mutant as far as there are any."""
    mutant = [study for study in studies if study.label == 1]
    wildtype = [study for study in studies if study.label == 0]
    half = max(count - count // 2, count - len(wildtype))
    mutant = mutant[:half]
    return mutant + wildtype[: count - len(mutant)]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table in primitives, NaN as null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        for row in rows
    ]
