"""Is a study like the training ones? What is remembered of them, and what a new one is held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from idh_lightning.inference.likeness import PERCENTILES, Floats, Likeness, turned, turns

FALSE_ALARMS = 0.05
"""Share of patients like the validation ones that may be flagged by the learnt limit."""

FAR = 1.5
"""A study is withheld, not only flagged, where a distance exceeds its limit this many times."""

SAME_IMAGE = 0.999
"""Correlation within the brain above which two sequences are one image, whatever their intensities."""

TURNED = 0.05
"""By how much a turned head must fit better to be withheld: of 61 real studies as they are, held against synthetic
training studies, the worst fits 0.050 better when turned."""

CLEARLY_OTHER = 0.97
"""Ratio of distances below which another naming of the sequences counts as clearly better, at most."""

_SLACK = {"least_voxel_edge_mm": 1.5, "greatest_voxel_edge_mm": 1.5}
_OTHER_SLACK = 1.15


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """One way in which a study is unlike the training ones.

    Attributes:
        check: Short fixed name.
        text: What was found and what the training studies have.
        withheld: Whether no probability may be given; else the answer is flagged.
    """

    check: str
    text: str
    withheld: bool


@dataclass(frozen=True, kw_only=True)
class Cloud:
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
    def of(cls, points: Floats, *, least_scale: float) -> Self:
        """Return the cloud of points [n, F]; coordinates that hardly vary are divided by `least_scale`."""
        mean, scale = points.mean(axis=0), np.maximum(points.std(axis=0), least_scale)
        found = LedoitWolf(assume_centered=True).fit((points - mean) / scale)
        return cls(mean=torch.tensor(mean), scale=torch.tensor(scale), precision=torch.tensor(found.precision_))

    def distance(self, point: Floats) -> float:
        """Return the Mahalanobis distance of a point [F]."""
        offset = (torch.from_numpy(np.ascontiguousarray(point)) - self.mean) / self.scale
        return math.sqrt(max(float(offset @ self.precision @ offset), 0.0))


@dataclass(frozen=True, kw_only=True)
class TrainingRange:
    """What is remembered of the training studies, and limits set on validation patients.

    Three kinds of question are asked of a new study:

    - Is it what it claims to be? The sequences are compared with each other (`Likeness.order`): if another naming of
      them resembles the training studies clearly better than the given one, the answer is withheld. So it is if the
      head fits the mean training study better when turned, or if two sequences are one image.
    - Was it acquired as they were? Voxel size, brain size, and skull are held against the training range with some
      slack; outside it the answer is flagged.
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
        stripped: Share of the training studies without skull.
        profiles: [C, Q], mean percentiles.
        roughness: [C], mean.
        picture: [C + 1, 12, 12, 12], mean.
        order: Of `Likeness.order` as the sequences are named.
        order_limit: Least ratio of distances, best other naming over the given one, that is not withheld.
        features: Of the stem's pooled features.
        centre: Statistic -> median of its logarithm on validation studies.
        spread: Statistic -> its standard deviation there, from the median absolute deviation.
        limit: Of the largest standardised statistic.
        expected_false_alarms: Share of further patients like the validation ones that will exceed it.
    """

    sequences: tuple[str, ...]
    training: int
    validation: int
    geometry: Mapping[str, Sequence[float]]
    stripped: float
    profiles: Tensor
    roughness: Tensor
    picture: Tensor
    order: Cloud
    order_limit: float
    features: Cloud
    centre: Mapping[str, float]
    spread: Mapping[str, float]
    limit: float
    expected_false_alarms: float

    @classmethod
    def learn(
        cls,
        training: Sequence[Likeness],
        validation: Sequence[Likeness],
        *,
        sequences: Sequence[str],
        stripped: float,
        false_alarms: float = FALSE_ALARMS,
    ) -> Self:
        """Return the range of some training studies with limits from validation studies, at least two of each."""
        plain = range(len(sequences))
        found = cls(
            sequences=tuple(sequences),
            training=len(training),
            validation=len(validation),
            geometry={
                name: [min(one.geometry[name] for one in training), max(one.geometry[name] for one in training)]
                for name in training[0].geometry
            },
            stripped=stripped,
            profiles=torch.tensor(np.mean([one.profiles for one in training], axis=0)),
            roughness=torch.tensor(np.mean([one.roughness for one in training], axis=0)),
            picture=torch.tensor(np.mean([one.picture for one in training], axis=0)),
            order=Cloud.of(np.stack([one.order(plain) for one in training]), least_scale=0.1),
            order_limit=0.0,
            features=Cloud.of(np.stack([one.features for one in training]), least_scale=1e-6),
            centre={},
            spread={},
            limit=math.inf,
            expected_false_alarms=0.0,
        )
        logs = [{name: math.log(value) for name, value in found.statistics(one).items()} for one in validation]
        centre = {name: float(np.median([row[name] for row in logs])) for name in logs[0]}
        spread = {
            name: max(1.4826 * float(np.median([abs(row[name] - centre[name]) for row in logs])), 0.05)
            for name in logs[0]
        }
        worst = sorted(max((row[name] - centre[name]) / spread[name] for name in row) for row in logs)
        rank = min(math.ceil(round((len(worst) + 1) * (1 - false_alarms), 9)), len(worst))
        ratios = sorted(found._other_naming(one)[0] for one in validation)
        lowest = ratios[max(math.floor((len(ratios) + 1) * false_alarms) - 1, 0)]
        changed = {
            "centre": centre,
            "spread": spread,
            "limit": float(worst[rank - 1]),
            "expected_false_alarms": 1 - rank / (len(worst) + 1),
            "order_limit": min(CLEARLY_OTHER, lowest),
        }
        return cls(**{item.name: getattr(found, item.name) for item in fields(found)} | changed)

    def statistics(self, study: Likeness) -> dict[str, float]:
        """Return how far a study is from the mean training study, by kind; all > 0."""
        away = np.abs(study.profiles - self.profiles.numpy()).mean(axis=1)
        rough = np.abs(study.roughness - self.roughness.numpy())
        return {
            **{f"intensity of {name}": float(value) + 1e-3 for name, value in zip(self.sequences, away, strict=True)},
            **{f"roughness of {name}": float(value) + 0.05 for name, value in zip(self.sequences, rough, strict=True)},
            "features": self.features.distance(study.features) + 1e-3,
        }

    def doubts(self, study: Likeness, *, stripped: bool, present: Collection[str]) -> list[Doubt]:
        """Return every way in which a study is unlike the training ones; none where it is like them.

        Args:
            study: In numbers.
            stripped: Whether its skull was found to be gone.
            present: Its sequences; a missing one is all zero and is not judged.
        """
        here = [index for index, name in enumerate(self.sequences) if name in present]
        complete = len(here) == len(self.sequences)
        return [
            *self._same_images(study, here),
            *(self._naming(study) if complete else ()),
            *self._turned(study),
            *self._acquisition(study, stripped),
            *(self._looks(study) if complete else ()),
        ]

    def score(self, study: Likeness) -> float:
        """Return the largest standardised statistic of a study; `limit` is what it is held against."""
        return max(
            (math.log(value) - self.centre[name]) / self.spread[name] for name, value in self.statistics(study).items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return primitives and tensors, for a checkpoint that loads with weights_only."""
        return {**asdict(self), "sequences": list(self.sequences), "percentiles": list(PERCENTILES)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the range that `to_dict` described."""
        content = {item.name: state[item.name] for item in fields(cls)}
        clouds = {name: Cloud(**content[name]) for name in ("order", "features")}
        return cls(**content | clouds | {"sequences": tuple(content["sequences"])})

    def _same_images(self, study: Likeness, here: Sequence[int]) -> Iterable[Doubt]:
        for first, second in itertools.combinations(here, 2):
            if study.correlation[first, second] > SAME_IMAGE:
                names = f"{self.sequences[first]} and {self.sequences[second]}"
                yield Doubt(check="same_image", text=f"{names} are the same image; expected two", withheld=True)

    def _other_naming(self, study: Likeness) -> tuple[float, tuple[int, ...]]:
        """Return the best naming of the sequences other than the given, and its distance over that of the given."""
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

    def _naming(self, study: Likeness) -> Iterable[Doubt]:
        ratio, places = self._other_naming(study)
        if ratio >= 1:
            return
        moved = [
            f"the file named {self.sequences[place]} looks like {name}"
            for name, place in zip(self.sequences, places, strict=True)
            if self.sequences[place] != name
        ]
        yield Doubt(
            check="sequence_identity",
            text=f"{' and '.join(moved)} (distance {ratio:.2f} of the given naming)",
            withheld=ratio < self.order_limit,
        )

    def _turned(self, study: Likeness) -> Iterable[Doubt]:
        template = self.picture.numpy()

        def fit(picture: Floats) -> float:
            brain, inside = (
                float(np.corrcoef(picture[part].ravel(), template[part].ravel())[0, 1])
                for part in (slice(-1, None), slice(0, -1))
            )
            return brain + 0.3 * inside

        plain = fit(study.picture)
        best = max(fit(turned(study.picture, axes, flipped)) for axes, flipped in turns(cubic=True))
        if best > plain:
            yield Doubt(
                check="orientation",
                text=f"turned or upside down, the head fits the training studies better ({best:.2f}) than as its "
                f"header states ({plain:.2f})",
                withheld=best > plain + TURNED,
            )

    def _acquisition(self, study: Likeness, stripped: bool) -> Iterable[Doubt]:
        if (self.stripped >= 0.95 and not stripped) or (self.stripped <= 0.05 and stripped):
            there, training = ("removed", "has") if stripped else ("there", "has no")
            yield Doubt(
                check="skull", text=f"the skull is {there}; the training cohort {training} skulls", withheld=False
            )
        for name, (low, high) in self.geometry.items():
            slack, value = _SLACK.get(name, _OTHER_SLACK), study.geometry[name]
            if not low / slack <= value <= high * slack:
                quantity, _, unit = name.rpartition("_")
                yield Doubt(
                    check=name,
                    text=f"{quantity.replace('_', ' ')} is {value:.3g} {unit}; training studies have {low:.3g} to "
                    f"{high:.3g}",
                    withheld=False,
                )

    def _looks(self, study: Likeness) -> Iterable[Doubt]:
        for name, value in self.statistics(study).items():
            limit = math.exp(self.centre[name] + self.limit * self.spread[name])
            if value > limit:
                yield Doubt(
                    check=name.replace(" ", "_"),
                    text=f"{name}: {value / limit:.2f} times the limit that {self.expected_false_alarms:.0%} of "
                    "patients like the validation ones exceed",
                    withheld=value > FAR * limit,
                )
