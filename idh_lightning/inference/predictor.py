"""From the files of new studies to answers with their doubts."""

from __future__ import annotations

import logging
import shlex
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from idh_lightning import build
from idh_lightning.cohort import Fault, NewStudy, Study, new_studies, study_of_files
from idh_lightning.errors import CheckpointError, IDHError
from idh_lightning.evaluation import Calibrator, Learnt
from idh_lightning.files import write_json, write_text
from idh_lightning.inference.interval import MemberLogits, combined, views_of
from idh_lightning.inference.likeness import Likeness, likeness
from idh_lightning.inference.page import write_page
from idh_lightning.inference.training_range import Doubt, TrainingRange
from idh_lightning.models import StemTailNetwork
from idh_lightning.volumes import StoredVolume, VolumeStore, write_map

logger = logging.getLogger(__name__)

Status = Literal["answered", "flagged", "withheld", "failed"]

CHUNK = 8
"""Studies prepared together: enough to keep two cores busy, few enough to hold memory and disk flat."""

MOST_VOXELS = 2**28
"""In all files of a study: 1 GiB as float32."""

WITHHOLDING = ("lost_part", "repeated_sequence", "small_brain")
"""Checks of the images that are warnings where a cohort is prepared, and leave no answer to be given here."""

QUIET = ("duplicate_image", "skull_not_stripped", "left_right_unknown")
"""Checks of the images that say nothing about this answer, or that the training range judges."""

COLUMNS = (
    "study_id", "status", "probability", "low", "high", "decision", "prediction_set", "unlike", "reason", "warnings",
    "map", "page", "elapsed_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said of one study.

    Attributes:
        study_id: Its name.
        status: "answered"; "flagged" where a warning says that it is unlike the training studies; "withheld" where
            it is so far from them, or so doubtful, that no number is given; "failed" where its files cannot be used.
        probability: Calibrated P(mutant); None where withheld or failed, as all of the following.
        low: Lower end of the interval; see `combined`.
        high: Upper end.
        decision: "mutant" or "wildtype", at the operating point of the checkpoint.
        prediction_set: "wildtype", "mutant", "both" (not certain) or "none" (unlike either); None where `unlike` is not
            empty, since such a set covers only studies like those that it was calibrated on.
        unlike: The checks by which it is unlike the training studies, or could not be compared with them.
        reasons: Why there is no answer.
        warnings: What to know about the answer.
        members: Probability by each checkpoint.
        map_file: NIfTI on the grid of the study's own FLAIR, or None.
        page: study.html, or None.
        elapsed_s: Wall clock, with its share of the preparation.
    """

    study_id: str
    status: Status
    probability: float | None = None
    low: float | None = None
    high: float | None = None
    decision: str | None = None
    prediction_set: str | None = None
    unlike: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    members: tuple[float, ...] = ()
    map_file: Path | None = None
    page: Path | None = None
    elapsed_s: float = 0.0

    @property
    def given(self) -> bool:
        """Whether there is a number."""
        return self.probability is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One checkpoint, ready to answer.

    Attributes:
        file: Where it came from.
        network: In eval mode.
        recipe: How it was made.
        learnt: Calibration, operating point, conformal sets.
        covariance: [2, 2], of the calibration line; zero where the checkpoint does not say.
        training_range: What its training studies looked like, or None where the checkpoint does not say.
        explain: Makes its maps.
    """

    file: Path
    network: StemTailNetwork
    recipe: Mapping[str, Any]
    learnt: Learnt
    covariance: NDArray[np.float64]
    training_range: TrainingRange | None
    explain: Callable[[StemTailNetwork, Tensor], Tensor]

    @classmethod
    def load(cls, checkpoint: Path) -> Member:
        """Return a member from a run folder or a checkpoint of it.

        Raises:
            CheckpointError: If it cannot be used, or the run ended before threshold and calibration were chosen.
        """
        file, content = build.read_checkpoint(checkpoint)
        model = build.load_classifier(file)
        if "learnt" not in content:
            raise CheckpointError(
                f"{file}: has no operating point and no calibration; expected a best.ckpt of a run with the stages "
                "fit, test and report. Give another one, or finish the run."
            )
        try:
            learnt = Learnt.from_dict(content["learnt"])
            remembered = content.get("training_range")
            found = None if remembered is None else TrainingRange.from_dict(remembered)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file}: what it learnt cannot be read ({type(error).__name__}: {error}); expected a checkpoint of "
                "this version. Train again."
            ) from error
        return cls(
            file=file,
            network=model.network,
            recipe=model.recipe,
            learnt=learnt,
            covariance=np.array(content.get("calibration_covariance", np.zeros((2, 2))), dtype=float),
            training_range=found,
            explain=build.explanation_of(model.recipe, file),
        )

    @property
    def calibrator(self) -> Calibrator:
        """Logits -> probabilities."""
        return self.learnt.calibrator


class Predictor:
    """Answers for new studies from one checkpoint or from several as an ensemble.

    >>> answers = Predictor("outputs/my_run").predict("new_patient")  # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: str | Path | Sequence[str | Path],
        *,
        views: int = 4,
        withhold: bool = True,
        confidence: float = 0.95,
        device: str = "auto",
    ) -> None:
        """Load the checkpoints.

        Args:
            checkpoint: A run folder, a .ckpt, a folder of runs (a sweep), or several of these.
            views: Mirrored and moved copies of each study that go into the interval; 0 for none.
            withhold: Whether studies far outside the training range, or with doubtful sequences, get no number; else
                they are flagged. Damaged files never get one.
            confidence: Of the interval.
            device: "auto" is a GPU where there is one.

        Raises:
            CheckpointError: If one cannot be used, or they do not go together.
        """
        self.device = build.device(device)
        self.members = [Member.load(path) for path in checkpoints_in(checkpoint)]
        first = self.members[0]
        for other in self.members[1:]:
            for part in ("sequences", "preprocessing"):
                if other.recipe[part] != first.recipe[part]:
                    raise CheckpointError(
                        f"{other.file}: its {part} differ from those of {first.file}; expected members of one "
                        "ensemble. Give checkpoints that were trained on the same sequences and volumes."
                    )
        self.views = views
        self.withhold = withhold
        self.confidence = confidence
        for member in self.members:
            member.network.to(self.device).eval()
        self.sequences: tuple[str, ...] = tuple(first.recipe["sequences"])
        self.preprocessing = build.preprocessing_of(first.recipe, first.file)

    @property
    def threshold(self) -> float:
        """The operating point: the mean of the members'."""
        return float(np.mean([member.learnt.operating_point.threshold for member in self.members]))

    def predict(self, studies: str | Path | Mapping[str, str | Path] | Sequence[NewStudy]) -> list[Answer]:
        """Return one answer per study and write nothing.

        Args:
            studies: A folder, a table, a mapping of sequences to files, or studies as `new_studies` returns them.

        Raises:
            CohortError: If there is no study at all.
        """
        return list(self.answers(self.found(studies)))

    def found(self, studies: str | Path | Mapping[str, str | Path] | Sequence[NewStudy]) -> list[NewStudy]:
        """Return the studies behind any kind of input; see `predict`."""
        if isinstance(studies, str | Path):
            return new_studies(studies)
        if isinstance(studies, Mapping):
            return [study_of_files(studies)]
        return list(studies)

    def answers(self, studies: Sequence[NewStudy], output: Path | None = None) -> Iterator[Answer]:
        """Yield an answer for each study, in order; with an output folder its map, picture and page are written there.

        A study that fails does not stop the others.
        """
        for start in range(0, len(studies), CHUNK):
            with tempfile.TemporaryDirectory(prefix="idh_lightning_") as folder:
                yield from self._chunk(studies[start : start + CHUNK], Path(folder), output)

    def _chunk(self, studies: Sequence[NewStudy], folder: Path, output: Path | None) -> Iterator[Answer]:
        """Yield the answers of some studies; the page of one is drawn while the network looks at the next."""
        began = time.perf_counter()
        usable = [new.study for new in studies if new.study is not None and not self._unfit(new.study)]
        store = VolumeStore(folder, self.preprocessing, self.sequences)
        faults = store.prepare(usable).faults if usable else ()
        share_s = (time.perf_counter() - began) / len(studies)
        waiting: deque[tuple[str, float, dict[str, Any], Future[tuple[dict[str, Any], float]]]] = deque()
        with ThreadPoolExecutor(1) as artist:
            for new in studies:
                own = [fault for fault in faults if fault.study_id == new.study_id]
                answer, seconds = _tried(new.study_id, partial(self._answer, new, own, store, output))
                drawing = artist.submit(_tried, new.study_id, answer.pop("draw", dict))
                waiting.append((new.study_id, share_s + seconds, answer, drawing))
                if len(waiting) > 1:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())

    def _answer(
        self, new: NewStudy, faults: Sequence[Fault], store: VolumeStore, output: Path | None
    ) -> dict[str, Any]:
        """Return what is known of a study and, as "draw", what writes its page and returns its place."""
        study = new.study
        if study is None:
            return {"status": "failed", "reasons": (new.problem,)}
        if unfit := self._unfit(study):
            return {"status": "failed", "reasons": (unfit,)}
        errors = [str(fault) for fault in faults if fault.severity == "error" and fault.check not in QUIET]
        if errors:
            return {"status": "failed", "reasons": tuple(errors)}
        stored = store.open(study)
        stripped = not any(fault.check == "skull_not_stripped" for fault in faults)
        doubts = [*self._doubts_of_files(faults), *self._doubts_of_likeness(study, stored, stripped)]
        withheld = [doubt.text for doubt in doubts if doubt.withheld]
        damaged = any(doubt.check in WITHHOLDING for doubt in doubts if doubt.withheld)
        warnings = tuple(doubt.text for doubt in doubts if not doubt.withheld)
        cam = self._map(stored)
        files: dict[str, Any] = {}
        if output is not None:
            files["map_file"] = output / f"{new.study_id}_cam.nii.gz"
            write_map(cam * (np.asarray(stored.brain) > 0), stored, files["map_file"])
        checks = (doubt.check.removesuffix("_mm").removesuffix("_ml") for doubt in doubts if doubt.unlike)
        unlike = tuple(dict.fromkeys(check.replace("_", " ") for check in checks))
        answer: dict[str, Any] = {"status": "withheld", "reasons": tuple(withheld), "warnings": warnings}
        if not withheld or (not self.withhold and not damaged):
            warnings = (*withheld, *warnings)
            answer = {**self._number(stored), "status": "flagged" if warnings else "answered", "warnings": warnings}
            if unlike:
                answer["prediction_set"] = None
        answer["unlike"] = unlike
        if output is not None:
            answer |= files
            full = Answer(study_id=new.study_id, **answer)
            answer["draw"] = lambda: {"page": write_page(full, study, stored, cam, self, output)}
        return answer

    def _unfit(self, study: Study) -> str:
        """Return why a study cannot be read, in words, or ""."""
        absent = [name for name in self.sequences if name not in study.files]
        if not absent or (self.preprocessing.missing == "zero" and len(absent) < len(self.sequences)):
            return _too_large(study)
        files = {name: str(study.files.get(name, f"/data/{name}.nii.gz")) for name in self.sequences}
        words = [f"checkpoint={self.members[0].file}", *(f"{name.lower()}={file}" for name, file in files.items())]
        return (
            f"{', '.join(absent)} is missing; expected {', '.join(self.sequences)}, which the network was trained on. "
            f"Name the files: python -m idh_lightning.predict {shlex.join(words)}; or take a network trained with "
            "data.missing=zero, which may lack some."
        )

    def _number(self, stored: StoredVolume) -> dict[str, Any]:
        """Return probability, interval, decision and set."""
        volume = torch.from_numpy(np.array(stored.image, dtype=np.float32))
        members = []
        for member in self.members:
            plain = self._logits(member, volume[None])[0]
            moved = self._logits(member, views_of(volume, self.views)) if self.views else []
            logits = MemberLogits(plain=plain, views=moved, calibrator=member.calibrator, covariance=member.covariance)
            members.append(logits)
        probability, low, high = combined(members, confidence=self.confidence)
        # A class is left out only where every member leaves it out: the set covers at least as often as any of them.
        kept = [one.learnt.conformal([said.probability])[0] for one, said in zip(self.members, members, strict=True)]
        wildtype, mutant = np.any(kept, axis=0).tolist()
        return {
            "probability": probability,
            "low": low,
            "high": high,
            "decision": "mutant" if probability >= self.threshold else "wildtype",
            "prediction_set": ("none", "wildtype", "mutant", "both")[wildtype + 2 * mutant],
            "members": tuple(logits.probability for logits in members),
        }

    def _logits(self, member: Member, volumes: Tensor) -> list[float]:
        with torch.no_grad():
            logits = member.network(volumes.to(self.device)).double().cpu()
        found: list[float] = (logits[:, 1] - logits[:, 0]).tolist()
        return found

    def _map(self, stored: StoredVolume) -> NDArray[np.float32]:
        """Return the mean map [D, H, W] of the members, 0..1."""
        volume = torch.from_numpy(np.array(stored.image, dtype=np.float32))[None].to(self.device)
        maps = [one.explain(one.network, volume)[0].cpu() for one in self.members]
        mean = torch.stack(maps).mean(dim=0).numpy()
        highest = float(mean.max())
        return np.asarray(mean / highest if highest > 0 else mean, dtype=np.float32)

    def _doubts_of_files(self, faults: Sequence[Fault]) -> list[Doubt]:
        return [
            Doubt(
                check=fault.check,
                text=f"{fault.found[:1].upper()}{fault.found[1:]}; expected {fault.expected}. {fault.remedy}",
                withheld=fault.check in WITHHOLDING,
                unlike=fault.check in WITHHOLDING,
            )
            for fault in faults
            if fault.severity == "warning" and fault.check not in QUIET
        ]

    def _doubts_of_likeness(self, study: Study, stored: StoredVolume, stripped: bool) -> list[Doubt]:
        """Return the doubts of all members, each kind once."""
        present = [name for name, there in zip(self.sequences, stored.presence, strict=True) if there]
        found: dict[str, Doubt] = {}
        if absent := [name for name in self.sequences if name not in present]:
            text = (
                f"{', '.join(absent)} is missing and was filled with zero, so the others could not be compared whole "
                "with the training studies. Add the file."
            )
            found["missing"] = Doubt(check="missing_sequence", text=text, withheld=False)
        seen: Likeness | None = None
        for member in self.members:
            if member.training_range is None:
                text = (
                    "Not compared with the training studies: the checkpoint does not say what they looked like. Train "
                    "again for one that does."
                )
                found["unknown_range"] = Doubt(check="unknown_range", text=text, withheld=False)
                continue
            seen = likeness(stored, member.network)
            for doubt in member.training_range.doubts(seen, stripped=stripped, present=present):
                if doubt.check not in found or doubt.withheld:
                    found[doubt.check] = doubt
        return list(found.values())


def _tried(study_id: str, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Return part of an answer, or the reason why there is none, and seconds: one study must not stop the others."""
    began = time.perf_counter()
    try:
        found = work()
    except IDHError as error:
        found = {"status": "failed", "reasons": (str(error),)}
    except Exception as error:  # whatever a library makes of its files
        logger.exception("Study %s", study_id)
        found = {"status": "failed", "reasons": (f"{type(error).__name__}: {error}",)}
    return found, time.perf_counter() - began


def _finished(
    study_id: str, seconds: float, answer: dict[str, Any], drawing: Future[tuple[dict[str, Any], float]]
) -> Answer:
    page, drawing_s = drawing.result()
    answer = page if page.get("status") == "failed" else answer | page
    return Answer(study_id=study_id, elapsed_s=seconds + drawing_s, **answer)


def checkpoints_in(checkpoint: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the checkpoints that a setting names: a run, a file, a folder of runs, or several of these.

    Raises:
        CheckpointError: If there is none.
    """
    if not isinstance(checkpoint, str | Path):
        found = [path for one in checkpoint for path in checkpoints_in(one)]
    else:
        place = Path(checkpoint)
        runs = [place] if not place.is_dir() or (place / "checkpoints").is_dir() else sorted(place.iterdir())
        found = [run for run in runs if len(runs) == 1 or (run / "checkpoints" / "best.ckpt").is_file()]
    if not found:
        raise CheckpointError(
            f"{checkpoint}: no run in it; expected a run folder, a sweep or a .ckpt. Correct checkpoint."
        )
    return found


def write_tables(answers: Sequence[Answer], predictor: Predictor, output: Path) -> None:
    """Write predictions.csv, for people, and predictions.json, for machines."""

    def name(path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(output))

    rows = [
        {
            "study_id": one.study_id,
            "status": one.status,
            "probability": one.probability,
            "low": one.low,
            "high": one.high,
            "decision": one.decision,
            "prediction_set": one.prediction_set,
            "unlike": list(one.unlike),
            "reason": list(one.reasons),
            "warnings": list(one.warnings),
            "map": name(one.map_file),
            "page": name(one.page),
            "elapsed_s": round(one.elapsed_s, 3),
        }
        for one in answers
    ]
    table = pd.DataFrame(rows)
    for column in ("unlike", "reason", "warnings"):
        table[column] = table[column].map(" | ".join)
    write_text(output / "predictions.csv", table.reindex(columns=list(COLUMNS)).to_csv(index=False))
    content = {
        "checkpoints": [str(member.file) for member in predictor.members],
        "sequences": list(predictor.sequences),
        "threshold": predictor.threshold,
        "confidence": predictor.confidence,
        "coverage": min(member.learnt.conformal.coverage for member in predictor.members),
        "studies": [{**row, "members": list(one.members)} for row, one in zip(rows, answers, strict=True)],
    }
    write_json(output / "predictions.json", content)


def _too_large(study: Study) -> str:
    """Return what is wrong where the headers ask for more voxels than can be held, else "": no voxel is read."""
    total = 0
    for path in study.files.values():
        try:
            total += int(np.prod(nib.load(path).shape, dtype=object))
        except Exception:
            continue
    if total <= MOST_VOXELS:
        return ""
    return (
        f"the headers of its files ask for {total:.2e} voxels; expected at most {MOST_VOXELS:.2e}. Replace the files."
    )
