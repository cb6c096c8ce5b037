"""From the files of new studies to answers with their doubts."""

from __future__ import annotations

import importlib
import logging
import shlex
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import Fault, NewStudy, Study, Target, new_studies, study_of_files
from idh_lightning.cohort.identity import is_of_public_collection
from idh_lightning.cohort.leakage import MEANS
from idh_lightning.config.instantiation import torch_device
from idh_lightning.config.places import SHIPPED
from idh_lightning.errors import IDHError, Stopped
from idh_lightning.inference.ensemble import Ensemble, checkpoints_in
from idh_lightning.inference.prediction import StudyPrediction
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.models.locator import segmenting_once
from idh_lightning.models.radiomics import sites_of
from idh_lightning.ood import OODWarning, StudyDescriptor, study_descriptor
from idh_lightning.volumes import (
    PrepareReport,
    StoredVolume,
    VolumeStore,
    mask_in_patient_space,
    write_in_patient_space,
    write_map,
)

logger = logging.getLogger(__name__)

CHUNK = 8
"""Studies prepared together: enough to keep two cores busy, few enough to hold memory and disk flat."""

LEAST_TUMOUR_ML = 0.5
"""Sum over the brain of the probability of tumour below which a network that segments has found none to judge."""

MOST_VOXELS = 2**28
"""In all files of a study: 1 GiB as float32."""

WITHHOLDING = ("lost_part", "poor_registration", "repeated_sequence", "small_brain")
"""Checks of the images that are warnings where a cohort is prepared, and leave no answer to be given here."""

QUIET = ("duplicate_image", "left_right_unknown")
"""Checks of the images that say nothing about this answer, or that the training range judges."""

NOTES = ("registered", "skull_not_stripped")
"""Checks of the images that are told among the warnings and flag nothing."""


def name_of_check(check: str) -> str:
    """Name of a check as it stands in predictions.csv, without its unit."""
    return check.removesuffix("_mm").removesuffix("_ml").replace("_", " ")


class Predictor:
    """Answers for new studies from one checkpoint or from several as an ensemble.

    >>> answers = Predictor("outputs/my_run").predict("new_patient")  # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: str | Path | Sequence[str | Path] = SHIPPED,
        *,
        views: int = 4,
        withhold: bool = True,
        confidence: float = 0.95,
        device: str = "auto",
    ) -> None:
        """Load the checkpoints.

        Args:
            checkpoint: A run folder, a .ckpt, a folder of runs (a sweep), "pretrained" for the network in the package,
                or several of these.
            views: Mirrored and moved copies of each study that go into the interval; 0 for none.
            withhold: Whether studies far outside the training range, or with doubtful sequences, get no number; else
                they are flagged. Damaged files never get one.
            confidence: Of the interval.
            device: "auto" is a GPU where there is one.

        Raises:
            CheckpointError: If one cannot be used, or they do not go together.
        """
        where = torch_device(device)
        self.ensemble = Ensemble(map(Checkpoint.read, checkpoints_in(checkpoint)), where)
        self.views = views
        self.withhold = withhold
        self.confidence = confidence

    def predict(self, studies: str | Path | Mapping[str, str | Path] | Sequence[NewStudy]) -> list[StudyPrediction]:
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

    def answers(
        self, studies: Sequence[NewStudy], output: Path | ResultFolder | None = None
    ) -> Iterator[StudyPrediction]:
        """Yield an answer for each study, in order; with an output folder its map, picture and page are written there.

        A study that fails does not stop the others.
        """
        if isinstance(output, Path):
            output = ResultFolder(output)
        if output is not None:
            output.begin([new.study_id for new in studies])
        for start in range(0, len(studies), CHUNK):
            with tempfile.TemporaryDirectory(prefix="idh_lightning_") as folder:
                yield from self._chunk(studies[start : start + CHUNK], Path(folder), output)

    def _chunk(
        self, studies: Sequence[NewStudy], folder: Path, output: ResultFolder | None
    ) -> Iterator[StudyPrediction]:
        """Yield the answers of some studies; the page of one is drawn while the network looks at the next."""
        began = time.perf_counter()
        waiting: deque[tuple[str, float, dict[str, Any], Future[tuple[dict[str, Any], float]]]] = deque()
        with ThreadPoolExecutor(1) as artist:
            if output is not None:  # while the studies are prepared, since it takes most of a second
                artist.submit(_pages)
            usable = [new.study for new in studies if new.study is not None and not self._unfit(new.study)]
            store = VolumeStore(folder, self.ensemble.preprocessing, self.ensemble.sequences)
            report = store.prepare(usable)
            share_s = (time.perf_counter() - began) / len(studies)
            try:
                for new in studies:
                    answer, seconds = _tried(new.study_id, partial(self._answer, new, report, store, output))
                    drawing = artist.submit(_tried, new.study_id, answer.pop("draw", dict))
                    waiting.append((new.study_id, share_s + seconds, answer, drawing))
                    if len(waiting) > 1:
                        yield _finished(*waiting.popleft(), self.ensemble.target)
            except Stopped:  # what is written by then has its answer
                yield from (_finished(*one, self.ensemble.target) for one in waiting)
                raise
            while waiting:
                yield _finished(*waiting.popleft(), self.ensemble.target)

    def _answer(
        self, new: NewStudy, report: PrepareReport, store: VolumeStore, output: ResultFolder | None
    ) -> dict[str, Any]:
        """Fields of a study's prediction and, as "draw", the function that writes its page and returns its path."""
        study = new.study
        if study is None:
            return {"status": "failed", "reasons": (new.problem,)}
        if unfit := self._unfit(study):
            return {"status": "failed", "reasons": (unfit,)}
        faults = [fault for fault in report.faults if fault.study_id == new.study_id]
        errors = [fault for fault in faults if fault.severity == "error" and fault.check not in QUIET]
        if errors:
            told = list(map(str, errors))
            if output is not None and (paths := _pages().write_refused(study, report, output)):
                names = ", ".join(str(path.relative_to(output.folder)) for path in paths)
                told.append(f"How its sequences were registered is shown in {names}.")
            return {"status": "failed", "reasons": tuple(told)}
        with segmenting_once(), self.ensemble.at_site_of(study):
            return self._answer_of_stored(new, study, faults, store.open(study), output)

    def _answer_of_stored(
        self, new: NewStudy, study: Study, faults: Sequence[Fault], stored: StoredVolume, output: ResultFolder | None
    ) -> dict[str, Any]:
        tumour = self.ensemble.tumour(stored)
        doubts = [
            *self._doubts_of_files(faults),
            *_doubts_of_tumour(tumour, stored),
            *self._doubts_of_development(study, stored),
            *self._doubts_of_likeness(stored),
            *self._doubts_of_site(study),
        ]
        doubts.sort(key=lambda doubt: not doubt.unlike)  # what makes a study unlike the training ones is told first
        withheld = [doubt.text for doubt in doubts if doubt.withheld]
        damaged = any(doubt.check in WITHHOLDING for doubt in doubts if doubt.withheld)
        notices = (*self.ensemble.notices, *new.notes)
        told = [doubt.text for doubt in doubts if not doubt.withheld]
        cam = self.ensemble.map(stored) if output is not None else None
        files = self._written(cam, tumour, stored, study, output)
        unlike = tuple(dict.fromkeys(name_of_check(doubt.check) for doubt in doubts if doubt.unlike))
        answer: dict[str, Any] = {"status": "withheld", "reasons": tuple(withheld), "warnings": (*notices, *told)}
        if not withheld or (not self.withhold and not damaged):
            flagged = bool(notices) or any(doubt.check not in NOTES for doubt in doubts)
            answer = {
                **self.ensemble.number(stored, views=self.views, confidence=self.confidence),
                "status": "flagged" if flagged else "answered",
                "warnings": (*notices, *withheld, *told),
            }
            if unlike:
                answer["prediction_set"] = None
        answer |= {"unlike": unlike, **files}
        if output is not None and cam is not None:
            full = StudyPrediction(study_id=new.study_id, target=self.ensemble.target, **answer)
            drawn = (full, study, stored, cam, tumour, self.ensemble, output)
            answer["draw"] = lambda: {"page": _pages().write_page(*drawn, confidence=self.confidence)}
        return answer

    def _written(
        self,
        cam: NDArray[np.float32] | None,
        tumour: NDArray[np.float32] | None,
        stored: StoredVolume,
        study: Study,
        output: ResultFolder | None,
    ) -> dict[str, Any]:
        """Fields of a prediction that tell of its map and its tumour, which are written where there is a folder."""
        seen = {name: study.files[name] for name in self.ensemble.sequences if name in study.files}
        fields: dict[str, Any] = {"files": seen}
        if output is not None and cam is not None:
            fields["map_file"] = output.file(study.study_id, "map")
            output.describe(study.study_id, "map", seen, stored.found.sequence)
            write_map(cam * (np.asarray(stored.brain) > 0), stored, fields["map_file"])
        if tumour is not None:
            mask, fields["tumour_ml"] = mask_in_patient_space(tumour, stored)
            if output is not None:
                fields["tumour_file"] = output.file(study.study_id, "tumour")
                output.describe(study.study_id, "tumour", seen, stored.found.sequence)
                write_in_patient_space(mask, stored, fields["tumour_file"])
        return fields

    def _unfit(self, study: Study) -> str:
        """Return why a study cannot be read, in words, or ""."""
        absent = [name for name in self.ensemble.sequences if name not in study.files]
        if absent and self.ensemble.preprocessing.missing == "zero":
            for member in self.ensemble.members:
                if lacking := member.lacking(study.files):
                    return lacking
        if not absent or (self.ensemble.preprocessing.missing == "zero" and len(absent) < len(self.ensemble.sequences)):
            return _too_large(study)
        wanted, file = self.ensemble.sequences, self.ensemble.members[0].file
        named = [f"{name.lower()}={study.files.get(name, f'/data/{name}.nii.gz')}" for name in wanted]
        words = [f"checkpoint={file}", *named]
        return (
            f"{', '.join(absent)} is missing; expected {', '.join(wanted)}, which the network was trained on. "
            f"Name the files: python -m idh_lightning.predict {shlex.join(words)}; or take a network trained with "
            "data.missing=zero, which may lack some."
        )

    def _doubts_of_files(self, faults: Sequence[Fault]) -> list[OODWarning]:
        return [
            OODWarning(
                check=fault.check,
                text=f"{fault.found[:1].upper()}{fault.found[1:]}; expected {fault.expected}. {fault.remedy}",
                withheld=fault.check in WITHHOLDING,
                unlike=fault.check in WITHHOLDING,
            )
            for fault in faults
            if fault.severity == "warning" and fault.check not in QUIET
        ]

    def _doubts_of_development(self, study: Study, stored: StoredVolume) -> Iterator[OODWarning]:
        """Doubt where a member has learnt from these images, or from a patient of a public collection."""
        images = {study.study_id: list(stored.fingerprints.values())}
        public = is_of_public_collection(study.patient_id)
        for member in self.ensemble.members:
            named = public and "phantom" not in str(member.recipe.get("cohort"))  # whose patients bear such names too
            if not member.seen.find([study], images, means=MEANS if named else ("image",)):
                continue
            text = (
                "The network was trained, chosen or calibrated on this patient, so the answer does not show how it "
                "does on a new one. Judge it by others."
            )
            yield OODWarning(check="seen_in_development", text=text, withheld=False, unlike=False)
            return

    def _doubts_of_site(self, study: Study) -> Iterator[OODWarning]:
        """Doubt where members harmonise sites, and that of the study is none of them."""
        for member in self.ensemble.members:
            known = member.recipe["model"].get("sites") or {}
            if known and (site := sites_of(member.network, [study])[0]) not in known:
                text = (
                    f"Site {site or 'not given'}: not harmonised with the training patients, since the network knows "
                    f"{', '.join(known)}. If it is one, give a table with the column {member.network.harmonise}."
                )
                yield OODWarning(check="unknown_site", text=text, withheld=False)
                return

    def _doubts_of_likeness(self, stored: StoredVolume) -> list[OODWarning]:
        """Return the doubts of all members, each kind once."""
        present = [name for name, there in zip(self.ensemble.sequences, stored.presence, strict=True) if there]
        found: dict[str, OODWarning] = {}
        if absent := [name for name in self.ensemble.sequences if name not in present]:
            text = (
                f"{', '.join(absent)} is missing and was filled with zero, so the others could not be compared whole "
                "with the training studies. Add the file."
            )
            found["missing"] = OODWarning(check="missing_sequence", text=text, withheld=False)
        seen: StudyDescriptor | None = None
        for member in self.ensemble.members:
            if member.ood_detector is None:
                text = (
                    "Not compared with the training studies: the checkpoint does not say what they looked like. Train "
                    "again for one that does."
                )
                found["unknown_range"] = OODWarning(check="unknown_range", text=text, withheld=False)
                continue
            seen = study_descriptor(stored, member.network)
            for doubt in member.ood_detector.doubts(seen, present=present):
                if doubt.check not in found or doubt.withheld:
                    found[doubt.check] = doubt
        return list(found.values())


def _doubts_of_tumour(tumour: NDArray[np.float32] | None, stored: StoredVolume) -> Iterator[OODWarning]:
    """Doubt where a network that segments has found hardly any tumour."""
    if tumour is None:
        return
    found_ml = float(tumour.sum() * np.prod(stored.spacing_mm) / 1000)
    if found_ml < LEAST_TUMOUR_ML:
        yield OODWarning(
            check="no_tumour",
            text=f"No tumour found: {found_ml:.2f} mL in all (the sum of each voxel's probability); expected "
            f"{LEAST_TUMOUR_ML} mL at least, since the answer is what the voxels of the tumour vote. Check that the "
            "study was made before surgery and shows a glioma; withhold=false gives a number all the same.",
            withheld=True,
        )


def _pages() -> ModuleType:
    """Module that writes pages, which takes matplotlib along."""
    return importlib.import_module("idh_lightning.inference.study_page")


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
    study_id: str,
    seconds: float,
    answer: dict[str, Any],
    drawing: Future[tuple[dict[str, Any], float]],
    target: Target,
) -> StudyPrediction:
    page, drawing_s = drawing.result()
    answer = page if page.get("status") == "failed" else answer | page
    return StudyPrediction(study_id=study_id, target=target, elapsed_s=seconds + drawing_s, **answer)


def _too_large(study: Study) -> str:
    """Fault of headers that ask for more voxels than can be held, else "": no voxel is read."""
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
