"""Ensemble of checkpoints: one probability, interval, decision and map from all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idh_lightning.checkpoint import HUB_FILES, Checkpoint
from idh_lightning.cohort import DevelopmentPatients, Study, Target
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.config.places import SHIPPED
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.evaluation import Calibrator, PostProcessing
from idh_lightning.hub import HUB
from idh_lightning.inference.interval import MemberLogits, combined, views_of
from idh_lightning.models import StemTailNetwork, tumour_probability
from idh_lightning.models.radiomics import at_sites, sites_of
from idh_lightning.ood import OutOfDistributionDetector
from idh_lightning.volumes import Preprocessing, StoredVolume


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One checkpoint, ready to answer.

    Attributes:
        file: Where it came from.
        network: In eval mode.
        recipe: How it was made.
        learnt: Calibration, operating point, conformal sets.
        covariance: [2, 2], of the calibration line; zero where the checkpoint does not say.
        ood_detector: Of its training studies, or None where the checkpoint has none.
        explain: Makes its maps.
        notice: Sentence that goes with every answer; may be empty.
        seen: Patients that it was trained, chosen or calibrated on.
        lacking: From the sequences of a study to why the network cannot answer for it, or "".
    """

    file: Path
    network: StemTailNetwork
    recipe: Mapping[str, Any]
    learnt: PostProcessing
    covariance: NDArray[np.float64]
    ood_detector: OutOfDistributionDetector | None
    explain: Callable[[StemTailNetwork, Tensor], Tensor]
    notice: str
    seen: DevelopmentPatients
    lacking: Callable[[Collection[str]], str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Member:
        """Member of an ensemble.

        Raises:
            CheckpointError: If the run of the checkpoint ended before threshold and calibration were chosen.
        """
        post_processing, development = checkpoint.reported()
        covariance = checkpoint.calibration_covariance
        return cls(
            file=checkpoint.file,
            network=checkpoint.network(),
            recipe=checkpoint.recipe,
            learnt=post_processing,
            covariance=np.zeros((2, 2)) if covariance is None else covariance,
            ood_detector=checkpoint.ood_detector,
            explain=checkpoint.explanation(),
            notice=checkpoint.notice,
            seen=development.seen,
            lacking=checkpoint.lacking,
        )

    @property
    def calibrator(self) -> Calibrator:
        """Logits -> probabilities."""
        return self.learnt.calibrator

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequences that the network takes, in the order of its channels."""
        return tuple(self.recipe["sequences"])

    def preprocessing(self) -> Preprocessing:
        """Preprocessing that the network was trained with."""
        made: Preprocessing = instantiate_section(self.recipe["preprocessing"])
        return made


class Ensemble:
    """Checkpoints that were trained on the same sequences, volumes and target."""

    def __init__(self, checkpoints: Iterable[Checkpoint], device: torch.device) -> None:
        """Build the networks, one checkpoint after the other, since each holds all of its weights.

        Raises:
            CheckpointError: If one cannot be used, or they do not go together.
        """
        self.device = device
        self.members = [Member.of(one) for one in checkpoints]
        first = self.members[0]
        for other in self.members[1:]:
            for part in ("sequences", "preprocessing", "target"):
                if other.recipe.get(part) != first.recipe.get(part):
                    raise CheckpointError(
                        f"{other.file}: its {part} differ from those of {first.file}; expected members of one "
                        "ensemble. Give checkpoints that were trained on the same sequences, volumes and target."
                    )
        for member in self.members:
            member.network.to(device).eval()
        self.sequences = first.sequences
        self.preprocessing = first.preprocessing()

    @property
    def target(self) -> Target:
        """Target that the members predict."""
        return self.members[0].learnt.target

    @property
    def threshold(self) -> float:
        """Operating point: the mean of the members'."""
        return float(np.mean([member.learnt.operating_point.threshold for member in self.members]))

    @property
    def coverage(self) -> float:
        """Least coverage of the members' prediction sets."""
        return min(member.learnt.conformal.coverage for member in self.members)

    @property
    def threshold_from(self) -> str:
        """How the threshold was chosen, in words."""
        points = [member.learnt.operating_point for member in self.members]
        chosen = dict.fromkeys(point.split for point in points if point.rule != "fixed")
        return f"chosen on {' and '.join(chosen)} patients" if chosen else "chosen on no patient"

    @property
    def notices(self) -> list[str]:
        """Sentences that go with every answer, each once."""
        return list(dict.fromkeys(member.notice for member in self.members if member.notice))

    @property
    def cohorts(self) -> list[str]:
        """Names of the cohorts that the members were trained on."""
        return sorted({str(member.recipe.get("cohort", "")) for member in self.members})

    @property
    def has_sets(self) -> bool:
        """Whether every member's prediction sets were fitted to patients."""
        return all(member.learnt.conformal.n_wildtype + member.learnt.conformal.n_mutant > 0 for member in self.members)

    @contextmanager
    def at_site_of(self, study: Study) -> Iterator[None]:
        """Context in which the members that harmonise sites take what they see for made at that of a study."""
        with ExitStack() as members:
            for member in self.members:
                members.enter_context(at_sites(member.network, sites_of(member.network, [study])))
            yield

    def number(self, stored: StoredVolume, *, views: int, confidence: float) -> dict[str, Any]:
        """Return probability, interval, decision and set."""
        volume = torch.from_numpy(np.array(stored.image, dtype=np.float32))
        members = []
        for member in self.members:
            plain = self._logits(member, volume[None])[0]
            moved = self._logits(member, views_of(volume, views)) if views else []
            logits = MemberLogits(plain=plain, views=moved, calibrator=member.calibrator, covariance=member.covariance)
            members.append(logits)
        probability, low, high = combined(members, confidence=confidence)
        # A class is left out only where every member leaves it out: the set covers at least as often as any of them.
        kept = [one.learnt.conformal([said.probability])[0] for one, said in zip(self.members, members, strict=True)]
        negative, positive = np.any(kept, axis=0).tolist()
        return {
            "probability": probability,
            "low": low,
            "high": high,
            "decision": self.target.classes[int(probability >= self.threshold)],
            "prediction_set": ("none", *self.target.classes, "both")[negative + 2 * positive]
            if self.has_sets
            else None,
            "members": tuple(logits.probability for logits in members),
        }

    def _logits(self, member: Member, volumes: Tensor) -> list[float]:
        with torch.no_grad():
            logits = member.network(volumes.to(self.device)).double().cpu()
        found: list[float] = (logits[:, 1] - logits[:, 0]).tolist()
        return found

    def map(self, stored: StoredVolume) -> NDArray[np.float32]:
        """Return the mean map [D, H, W] of the members, 0..1."""
        volume = torch.from_numpy(np.array(stored.image, dtype=np.float32))[None].to(self.device)
        maps = [one.explain(one.network, volume)[0].cpu() for one in self.members]
        mean = torch.stack(maps).mean(dim=0).numpy()
        highest = float(mean.max())
        return np.asarray(mean / highest if highest > 0 else mean, dtype=np.float32)

    def tumour(self, stored: StoredVolume) -> NDArray[np.float32] | None:
        """Probability [D, H, W] of tumour within the brain, the mean of the members that segment; None without any."""
        volume = torch.from_numpy(np.array(stored.image, dtype=np.float32))[None].to(self.device)
        found = [tumour_probability(member.network, volume) for member in self.members]
        known = [one[0].cpu() for one in found if one is not None]
        if not known:
            return None
        inside = np.asarray(stored.brain) > 0
        return np.asarray(torch.stack(known).mean(dim=0).numpy() * inside, dtype=np.float32)


def checkpoints_in(checkpoint: str | Path | Sequence[str | Path]) -> list[Path]:
    """Checkpoints that a setting names: a run, a file, a folder of runs, "pretrained", hf://..., or several of these.

    Raises:
        CheckpointError: If there is none.
    """
    if not isinstance(checkpoint, str | Path):
        found = [path for one in checkpoint for path in checkpoints_in(one)]
    elif str(checkpoint) == SHIPPED:
        found = [Path(SHIPPED)]
    elif str(checkpoint).startswith(HUB):
        found = [Checkpoint.locate(checkpoint)]
    else:
        place = Path(checkpoint)
        single = not place.is_dir() or any((place / name).exists() for name in ("checkpoints", "models", *HUB_FILES))
        runs = [place] if single else sorted(place.iterdir())
        found = [run for run in runs if len(runs) == 1 or (run / "checkpoints" / "best.ckpt").is_file()]
    if not found:
        raise CheckpointError(
            f"{checkpoint}: no run in it; expected a run folder, a sweep or a .ckpt. Correct checkpoint."
        )
    return found


def one_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Checkpoint of a run, a file, "pretrained" or hf://owner/name, or of a folder with one run.

    A ConfigError is raised if it names several, a CheckpointError if it names none or one that cannot be used.
    """
    found = checkpoints_in(checkpoint)
    if len(found) > 1:
        raise ConfigError(
            f"checkpoint: {checkpoint} holds {len(found)} runs, which predict answers by together; expected one, since "
            f"an export holds one network. Name it: {to_paste('checkpoint', str(found[0]))}"
        )
    return Checkpoint.read(found[0])
