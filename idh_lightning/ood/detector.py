"""Out-of-distribution detector: fitted on the training studies of a run, and what a new study is held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from idh_lightning.cli.tables import number
from idh_lightning.cohort import Study
from idh_lightning.machine import map_in_threads
from idh_lightning.models import StemTailNetwork
from idh_lightning.ood.descriptor import PERCENTILES, FloatArray, StudyDescriptor, study_descriptor, turned, turns
from idh_lightning.records import Record
from idh_lightning.volumes import VolumeStore

FALSE_ALARMS = 0.05
"""Share of patients like the validation ones that may be flagged by the learnt limit."""

FAR = 1.5
"""A study is withheld, not only flagged, where a distance exceeds its limit this many times."""

MOST_STUDIES = 100
"""Training studies that are looked at: a covariance needs no more, and the stem takes time."""

SAME_IMAGE = 0.999
"""Correlation within the brain above which two sequences are one image, whatever their intensities."""

TURNED = 0.05
"""By how much a turned head must fit better to be withheld: of 61 real studies as they are, held against synthetic
training studies, the worst fits 0.050 better when turned."""

CLEARLY_OTHER = 0.97
"""Ratio of distances below which another naming of the sequences counts as clearly better, at most."""

TOLD_ODDS = 20.0
"""How many times likelier another naming must be to be told of, where it is not clearly better: far from all training
studies two namings differ by little and by chance."""

_SLACK = {"least_voxel_edge_mm": 1.5, "greatest_voxel_edge_mm": 1.5}
_OTHER_SLACK = 1.15
_ROUGH = 0.05
"""Added to a difference of roughness, whose logarithm is taken."""

_BRAIN_REMEDY = "Check the spacing in the header, the field of view and the skull-stripping."
_GEOMETRY = {
    "least_voxel_edge_mm": ("The shortest edge of a voxel", "mm", "Check the spacing in the header."),
    "greatest_voxel_edge_mm": (
        "The longest edge of a voxel (slice thickness)", "mm",
        "Take a series with slices like those in training, or train on studies like this one.",
    ),
    "brain_ml": ("The volume of the brain", "mL", _BRAIN_REMEDY),
    "brain_height_mm": ("The height of the brain", "mm", _BRAIN_REMEDY),
    "brain_length_mm": ("The length of the brain, front to back,", "mm", _BRAIN_REMEDY),
    "brain_width_mm": ("The width of the brain", "mm", _BRAIN_REMEDY),
}  # fmt: skip
"""Of `StudyDescriptor.geometry`: its words, its unit, and what to do where a study lies outside the training range."""


@dataclass(frozen=True, kw_only=True)
class OODWarning:
    """One way in which a study is unlike the training ones.

    Attributes:
        check: Short fixed name.
        text: What was measured, its value, what the training studies have, and what to do.
        withheld: Whether no probability may be given; else the answer is flagged.
        unlike: Whether the study is therefore no draw from the patients that the conformal sets were made for.
    """

    check: str
    text: str
    withheld: bool
    unlike: bool = True


class _TensorRecord(Record):
    """Record whose tensors may have become lists, as in a file of JSON."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Record that `to_dict` described."""
        tensors = [name for name, kind in get_type_hints(cls).items() if kind is Tensor and name in state]
        return super().from_dict({**state, **{n: torch.as_tensor(state[n], dtype=torch.float64) for n in tensors}})


@dataclass(frozen=True, kw_only=True)
class MahalanobisModel(_TensorRecord):
    """A cloud of points with its covariance, shrunk as far as few points demand.

    Attributes:
        mean: [F].
        scale: [F], > 0; coordinates are divided by it.
        precision: [F, F], of the scaled coordinates.

    Source: Ledoit & Wolf 2004, J. Multivar. Anal. 88:365, by scikit-learn.
    """

    mean: Tensor
    scale: Tensor
    precision: Tensor

    @classmethod
    def of(cls, points: FloatArray, *, least_scale: float) -> Self:
        """Cloud of points [n, F]; coordinates that hardly vary are divided by `least_scale`."""
        from sklearn.covariance import LedoitWolf  # here, since only training fits one

        mean, scale = points.mean(axis=0), np.maximum(points.std(axis=0), least_scale)
        found = LedoitWolf(assume_centered=True).fit((points - mean) / scale)
        return cls(mean=torch.tensor(mean), scale=torch.tensor(scale), precision=torch.tensor(found.precision_))

    def distance(self, point: FloatArray) -> float:
        """Mahalanobis distance of a point [F]."""
        offset = (torch.from_numpy(np.ascontiguousarray(point)) - self.mean) / self.scale
        return math.sqrt(max(float(offset @ self.precision @ offset), 0.0))


@dataclass(frozen=True, kw_only=True)
class OutOfDistributionDetector(_TensorRecord):
    """Out-of-distribution detector fitted on training studies, with limits set on validation patients.

    Three kinds of question are asked of a new study:

    - Is it what it claims to be? The sequences are compared with each other: if another naming of
      them resembles the training studies clearly better than the given one, the answer is withheld. So it is if the
      head fits the mean training study better when turned, or if two sequences are one image.
    - Was it acquired as they were? Voxel size and brain size are held against the training range with some slack;
      outside it the answer is flagged. Whether the skull was there makes no difference: the brain is extracted.
    - Does it look like them? Intensity distributions, roughness and the Mahalanobis distance of the stem's pooled
      features, each divided by its median on validation patients; the largest of their standardised logarithms has one
      limit, chosen so that `FALSE_ALARMS` of further patients like the validation ones exceed it. With n validation
      patients the rate cannot be set below 1 / (n + 1); what it is, is in `expected_false_alarms`. Beyond the limit
      the answer is flagged, and beyond `FAR` times the limit withheld.

    That a study passes says only that nothing of this was found; it does not say that the answer is right.

    Attributes:
        sequences: The channels.
        training: Number of training studies remembered.
        validation: Number of validation studies that set the limits.
        geometry: Name -> least and greatest of the training studies.
        profiles: [C, Q], mean percentiles.
        roughness: [C], mean.
        picture: [C + 1, 12, 12, 12], mean.
        order: Of `StudyDescriptor.order` as the sequences are named.
        features: Of the stem's pooled features.
        order_limit: Least ratio of distances, best other naming over the given one, that is not withheld.
        centre: Statistic -> median of its logarithm on validation studies.
        spread: Statistic -> its standard deviation there, from the median absolute deviation.
        limit: Of the largest standardised statistic.
        expected_false_alarms: Share of further patients like the validation ones that will exceed it.
        measured: Name as in `plain_numbers` -> least and greatest of the training studies; empty in older checkpoints.
    """

    sequences: tuple[str, ...]
    training: int
    validation: int
    geometry: Mapping[str, Sequence[float]]
    profiles: Tensor
    roughness: Tensor
    picture: Tensor
    order: MahalanobisModel
    features: MahalanobisModel
    order_limit: float = 0.0
    centre: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    limit: float = math.inf
    expected_false_alarms: float = 0.0
    measured: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def learn(
        cls,
        training: Sequence[StudyDescriptor],
        validation: Sequence[StudyDescriptor],
        *,
        sequences: Sequence[str],
        false_alarms: float = FALSE_ALARMS,
    ) -> Self:
        """Range of some training studies with limits from validation studies, at least two of each."""
        plain = range(len(sequences))
        found = cls(
            sequences=tuple(sequences),
            training=len(training),
            validation=len(validation),
            geometry=_ranges([one.geometry for one in training]),
            profiles=torch.tensor(np.mean([one.profiles for one in training], axis=0)),
            roughness=torch.tensor(np.mean([one.roughness for one in training], axis=0)),
            picture=torch.tensor(np.mean([one.picture for one in training], axis=0)),
            order=MahalanobisModel.of(np.stack([one.order(plain) for one in training]), least_scale=0.1),
            features=MahalanobisModel.of(np.stack([one.features for one in training]), least_scale=1e-6),
        )
        logs = pd.DataFrame([found.statistics(one) for one in validation]).map(math.log)
        centre = logs.median()
        spread = (1.4826 * (logs - centre).abs().median()).clip(lower=0.05)
        worst = np.sort(((logs - centre) / spread).max(axis=1))
        rank = min(math.ceil(round((len(worst) + 1) * (1 - false_alarms), 9)), len(worst))
        ratios = sorted(found._other_naming(one)[0] for one in validation)
        lowest = ratios[max(math.floor((len(ratios) + 1) * false_alarms) - 1, 0)]
        return replace(
            found,
            order_limit=min(CLEARLY_OTHER, lowest),
            centre={str(name): float(value) for name, value in centre.items()},
            spread={str(name): float(value) for name, value in spread.items()},
            limit=float(worst[rank - 1]),
            expected_false_alarms=1 - rank / (len(worst) + 1),
            measured=_ranges([found.plain_numbers(one) for one in training]),
        )

    def statistics(self, study: StudyDescriptor) -> dict[str, float]:
        """Distances of a study from the mean training study, by kind; all > 0."""
        away = np.abs(study.profiles - self.profiles.numpy()).mean(axis=1)
        rough = np.abs(study.roughness - self.roughness.numpy())
        intensity = {f"intensity of {name}": float(a) + 1e-3 for name, a in zip(self.sequences, away, strict=True)}
        roughness = {f"roughness of {name}": float(r) + _ROUGH for name, r in zip(self.sequences, rough, strict=True)}
        return intensity | roughness | {"features": self.features.distance(study.features) + 1e-3}

    def plain_numbers(self, study: StudyDescriptor) -> dict[str, float]:
        """Statistics of intensities that can be checked by eye: percentiles, steps between voxels, distance."""
        percentiles = {
            f"{name} {percentile:g}": float(value)
            for name, values in zip(self.sequences, study.profiles, strict=True)
            for percentile, value in zip(PERCENTILES, values, strict=True)
        }
        steps = {f"{name} step": math.exp(rough) for name, rough in zip(self.sequences, study.roughness, strict=True)}
        return {**percentiles, **steps, "features": self.features.distance(study.features)}

    def doubts(self, study: StudyDescriptor, *, present: Collection[str]) -> list[OODWarning]:
        """Ways in which a study is unlike the training ones; none where it is like them.

        Args:
            study: In numbers.
            present: Its sequences; a missing one is all zero and is not judged.
        """
        here = [index for index, name in enumerate(self.sequences) if name in present]
        complete = len(here) == len(self.sequences)
        return [
            *self._same_images(study, here),
            *(self._naming(study) if complete else ()),
            *self._turned(study),
            *self._acquisition(study),
            *(self._looks(study) if complete else ()),
        ]

    def score(self, study: StudyDescriptor) -> float:
        """Largest standardised statistic of a study; `limit` is what it is held against."""
        return max(
            (math.log(value) - self.centre[name]) / self.spread[name] for name, value in self.statistics(study).items()
        )

    def _same_images(self, study: StudyDescriptor, here: Sequence[int]) -> Iterable[OODWarning]:
        for first, second in itertools.combinations(here, 2):
            found = study.correlation[first, second]
            if found > SAME_IMAGE:
                yield OODWarning(
                    check="same_image",
                    text=f"{self.sequences[first]} and {self.sequences[second]} are the same image (correlation "
                    f"{found:.4f} within the brain; two sequences stay below {SAME_IMAGE}). Name the right file.",
                    withheld=True,
                )

    def _other_naming(self, study: StudyDescriptor) -> tuple[float, tuple[int, ...]]:
        """Best naming of the sequences other than the given, and its distance over that of the given."""
        plain = tuple(range(len(self.sequences)))
        if len(plain) < 2:
            return math.inf, plain
        distances = {
            places: self.order.distance(study.order(places))
            for places in itertools.permutations(plain)
            if places != plain
        }
        best = min(distances, key=lambda places: distances[places])
        return distances[best] / max(self.order.distance(study.order(plain)), 1e-9), best

    def _naming(self, study: StudyDescriptor) -> Iterable[OODWarning]:
        ratio, places = self._other_naming(study)
        given = self.order.distance(study.order(range(len(self.sequences))))
        likelier = (1 - min(ratio, 1) ** 2) * given**2 / 2  # logarithm of how many times, were the contrasts normal
        if ratio >= self.order_limit and likelier < math.log(TOLD_ODDS):
            return
        moved = [
            f"the file named {self.sequences[place]} looks like {name}"
            for name, place in zip(self.sequences, places, strict=True)
            if self.sequences[place] != name
        ]
        certainty = "Likely" if ratio < self.order_limit else "Perhaps"
        yield OODWarning(
            check="sequence_identity",
            text=f"{certainty} exchanged: {' and '.join(moved)}. So named, the contrasts between sequences lie "
            f"{number(ratio * given, 1)} standard deviations from the mean training study; as given, "
            f"{number(given, 1)}. Check which file is which.",
            withheld=ratio < self.order_limit,
        )

    def _turned(self, study: StudyDescriptor) -> Iterable[OODWarning]:
        template = self.picture.numpy()

        def fit(picture: FloatArray) -> float:
            brain, inside = (
                float(np.corrcoef(picture[part].ravel(), template[part].ravel())[0, 1])
                for part in (slice(-1, None), slice(0, -1))
            )
            return brain + 0.3 * inside

        plain = fit(study.picture)
        best = max(fit(turned(study.picture, axes, flipped)) for axes, flipped in turns(cubic=True))
        if best > plain:
            yield OODWarning(
                check="orientation",
                text=f"Turned or upside down, the head fits the mean training study with {number(best)} of 1.30, as "
                f"its header states with {number(plain)} (correlation of the outlines and 0.3 times that of the "
                "intensities). Look at the picture; if it lies wrongly, convert again from DICOM.",
                withheld=best > plain + TURNED,
            )

    def _acquisition(self, study: StudyDescriptor) -> Iterable[OODWarning]:
        for name, (low, high) in self.geometry.items():
            slack, value = _SLACK.get(name, _OTHER_SLACK), study.geometry[name]
            if not low / slack <= value <= high * slack:
                words, unit, remedy = _GEOMETRY[name]
                end, which = (high, "the greatest") if value > high else (low, "the least")
                here, least, greatest = (f"{one:.0f}" if one >= 100 else f"{one:.3g}" for one in (value, low, high))
                theirs = f"have {least} to {greatest}"
                if least == greatest:
                    theirs, which = f"all have {least}", "that"
                yield OODWarning(
                    check=name,
                    text=f"{words} is {here} {unit}; the {self.training} training studies {theirs} {unit}, so "
                    f"this is {number(value / end)} times {which}. {remedy}",
                    withheld=False,
                )

    def _looks(self, study: StudyDescriptor) -> Iterable[OODWarning]:
        numbers = self.plain_numbers(study)
        for name, value in self.statistics(study).items():
            limit = math.exp(self.centre[name] + self.limit * self.spread[name])
            if value > limit:
                what, remedy = self._look_in_words(name, numbers, value, limit)
                far = f" From {FAR} times as far from their mean as the limit on, an answer is withheld unless "
                far += f"withhold=false; this is {number(value / limit)} times."
                yield OODWarning(
                    check=name.replace(" ", "_"),
                    text=f"{what}, which {1 - self.expected_false_alarms:.0%} of patients like the {self.validation} "
                    "validation ones keep in everything that is measured here."
                    f"{far if value > FAR * limit else ''} {remedy}",
                    withheld=value > FAR * limit,
                )

    def _look_in_words(self, name: str, numbers: Mapping[str, float], value: float, limit: float) -> tuple[str, str]:
        """Statistic in words: value beside the training studies and the limit, and the remedy."""
        kind, _, sequence = name.partition(" of ")
        if kind == "intensity":
            mean = dict(zip(PERCENTILES, self.profiles[self.sequences.index(sequence)].tolist(), strict=True))

            def outside(percentile: float) -> float:
                value = numbers[f"{sequence} {percentile:g}"]
                low, high = self.measured.get(f"{sequence} {percentile:g}", [mean[percentile]] * 2)
                return float(max(low - value, value - high) / (high - low + 0.1))

            worst = max(PERCENTILES, key=outside)
            what = (
                f"Intensities of {sequence}: {worst:g}% of the brain has a z-score below "
                f"{self._beside(f'{sequence} {worst:g}', numbers)}. Averaged over such percentiles, {sequence} differs "
                f"from the mean training study by {number(value)} z-scores; the limit is {number(limit)}"
            )
            remedy = f"Check that the file is {sequence}, that its skull is treated as in training, and its bias field."
        elif kind == "roughness":
            mean_log = float(self.roughness[self.sequences.index(sequence)])
            side = 1 if math.log(numbers[f"{sequence} step"]) > mean_log else -1
            what = (
                f"Noise and sharpness of {sequence}: neighbouring voxels differ by "
                f"{self._beside(f'{sequence} step', numbers)} z-scores; the limit is "
                f"{number(math.exp(mean_log + side * (limit - _ROUGH)))}"
            )
            remedy = "Check for noise, motion, smoothing, and resampling from thick slices."
        else:
            what = (
                "Image features of the network's first layers: the study lies "
                f"{self._beside('features', numbers)} standard deviations from the mean training study (Mahalanobis "
                f"distance, which allows for features that vary together); the limit is {number(limit)}"
            )
            remedy = "No single cause can be named: look at the picture beside those of training studies."
        return what, remedy

    def _beside(self, row: str, numbers: Mapping[str, float]) -> str:
        """One of the `plain_numbers`, and the range of the training studies where it is known."""
        here, theirs = number(numbers[row]), " to ".join(number(end) for end in self.measured.get(row, ()))
        return f"{here} ({self.training} training studies: {theirs})" if theirs else here


def fit_ood_detector(
    network: StemTailNetwork, store: VolumeStore, studies: Mapping[str, Sequence[Study]]
) -> OutOfDistributionDetector | None:
    """Out-of-distribution detector of the training studies, with limits from the validation studies.

    Args:
        network: With its final stem.
        store: Holds the studies.
        studies: Of train and validation.

    Returns:
        None where there are fewer than two training or validation studies.
    """
    chosen = _evenly(studies["train"], MOST_STUDIES)
    validation = _evenly(studies["validation"], MOST_STUDIES)
    if min(len(chosen), len(validation)) < 2:
        return None

    def looks(studies: Sequence[Study]) -> list[StudyDescriptor]:
        return map_in_threads(lambda study: study_descriptor(store.open(study), network), studies)

    return OutOfDistributionDetector.learn(looks(chosen), looks(validation), sequences=store.sequences)


def _evenly(studies: Sequence[Study], most: int) -> list[Study]:
    return list(studies[:: max(1, math.ceil(len(studies) / most))])


def _ranges(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Name -> least and greatest of some studies."""
    return {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in rows[0]}
