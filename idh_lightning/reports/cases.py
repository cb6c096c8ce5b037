"""Test studies of a report: those that deserve a look, with their panels and viewers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from idh_lightning.cli.tables import number
from idh_lightning.cohort import IDH, SEQUENCES, Target
from idh_lightning.evaluation import Folds
from idh_lightning.machine import map_in_threads
from idh_lightning.reports.page import Picture, picture
from idh_lightning.reports.panels import CROSS
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.viewer import (
    drawn_or_reason,
    read_scene,
    save_gif,
    slice_viewer,
    turning_frames,
    turning_view,
)

PANELS_MB = 8.0
"""Room for the panels of all test studies; those that do not fit stay in the run folder and are named."""


@dataclass(frozen=True)
class Call:
    """Prediction for the patient of a test study, over all of the patient's studies.

    Attributes:
        label: 0 or 1, a class of the target; `called` is of these as well.
        probability: Of class 1, for the patient, calibrated.
        certainty: 0 at the threshold, 1 where the probability is 0 or 1.
    """

    study_id: str
    studies: int
    label: int
    probability: float
    called: int
    certainty: float
    target: Target = IDH

    @property
    def right(self) -> bool:
        """Whether the call is the truth."""
        return self.called == self.label

    @property
    def text(self) -> str:
        """The probability as it stands beside the study, and of how many studies it is the patient's."""
        over = "" if self.studies == 1 else f" over the patient’s {self.studies} studies"
        return f"{self.target.chance} {number(self.probability)}{over}"

    @property
    def verdict(self) -> str:
        """Truth and call in words."""
        return f"{self.target.named(self.label)}, called {self.target.classes[self.called]}"


@dataclass(frozen=True)
class TellingCase:
    """Test study that deserves a look, with its panel and its viewer where the run wrote them.

    Attributes:
        why: Reason of the choice.
        viewer: Its slices to look through, or why there are none; None where the run wrote no map.
    """

    why: str
    call: Call
    panel: Picture | None = None
    viewer: Markup | None = None


@dataclass
class Gallery:
    """The panels of test studies that fit into a report, and the names of those that do not."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def calls_of(run: ReportedRun) -> list[Call]:
    """Predictions of the test studies, the most certain first."""
    people, learnt = run.patients("test"), run.learnt
    if people.empty or learnt is None:
        return []
    calls = []
    for row in run.predictions[run.predictions["split"] == "test"].to_dict("records"):
        patient = people.loc[row["patient_id"]]
        own = learnt.of_run[str(row["run"])] if isinstance(learnt, Folds) else learnt
        p, threshold = float(patient["probability"]), own.operating_point.threshold
        reach = 1 - threshold if patient["predicted"] else threshold
        calls.append(
            Call(
                study_id=str(row["study_id"]),
                studies=int(patient["studies"]),
                label=int(patient["label"]),
                probability=p,
                called=int(patient["predicted"]),
                certainty=abs(p - threshold) / max(reach, 1e-9),
                target=run.target,
            )
        )
    return sorted(calls, key=lambda call: (-call.certainty, call.study_id))


def _most_telling(calls: Sequence[Call]) -> dict[str, Call]:
    """Reason -> study: the most confident right, the most confident wrong, the least certain; each study once."""
    wanted = {
        "Most confident and right": [call for call in calls if call.right][:1],
        "Most confident and wrong": [call for call in calls if not call.right][:1],
        "Least certain": list(calls[-1:]),
    }
    chosen: dict[str, Call] = {}
    for why, found in wanted.items():
        if found and found[0] not in chosen.values():
            chosen[why] = found[0]
    return chosen


def telling_cases(run: ReportedRun, gallery: Gallery) -> list[TellingCase]:
    """Most telling studies with their panels, which leave the gallery, and their viewers."""
    return [
        TellingCase(why, call, gallery.pictures.pop(call.study_id, None), _viewer(run, call.study_id))
        for why, call in _most_telling(calls_of(run)).items()
    ]


def gallery_of(run: ReportedRun) -> Gallery:
    """Panels of the test studies, as far as there is room: telling ones first, then wrong ones, then all."""
    gallery, used = Gallery(), 0
    calls = calls_of(run)
    telling = list(_most_telling(calls).values())
    files = {call: _panel_file(run, call.study_id) for call in calls}
    order = sorted(calls, key=lambda call: (call not in telling, call.right))
    shown = [call for call in order if files[call].is_file()]

    def packed(call: Call) -> Picture:
        words = f"Sequences and map of {call.study_id}, {call.target.named(call.label)}, {call.text}"
        return picture(files[call], words, photograph=True)

    for call, panel in zip(shown, map_in_threads(packed, shown), strict=True):
        if used + len(panel.source) > PANELS_MB * 1e6:
            gallery.left_out.append(call.study_id)
        else:
            used += len(panel.source)
            gallery.pictures[call.study_id] = panel
    return gallery


def turning_case(run: ReportedRun) -> tuple[Call, Markup] | None:
    """Test study of the positive class that is called right with most certainty, of those with a mask, and its view.

    The view is also written as figures/brain_3d.gif.
    """
    path = run.folder / "figures" / "brain_3d.gif"
    path.unlink(missing_ok=True)
    for call in (call for call in calls_of(run) if call.label == 1 and call.right):
        files, cam, mask = _images(run, call.study_id)
        if files and cam is not None and mask is not None:
            break
    else:
        return None

    def draw() -> Markup:
        frames = turning_frames(read_scene(files, cam, mask))
        save_gif(frames, path)
        return turning_view(frames, call.study_id)

    return call, drawn_or_reason("View from all around", call.study_id, draw)


def _viewer(run: ReportedRun, study_id: str) -> Markup | None:
    files, cam, mask = _images(run, study_id)
    if not files or cam is None:
        return None
    panel = _panel_file(run, study_id)

    def draw() -> Markup:
        return slice_viewer(read_scene(files, cam, mask, _cross_mm(panel)), study_id)

    return drawn_or_reason("Slices to look through", study_id, draw)


def _panel_file(run: ReportedRun, study_id: str) -> Path:
    return run.folder_of(study_id) / "figures" / "cam" / f"{study_id}.png"


def _images(run: ReportedRun, study_id: str) -> tuple[dict[str, Path], Path | None, Path | None]:
    """Sequences, the map and the mask of a study, as far as they are still where the run left them."""
    rows = run.cohort[run.cohort["study_id"] == study_id] if "study_id" in run.cohort else run.cohort
    names = {name.lower(): name for name in (*SEQUENCES, "mask") if name.lower() in rows}
    listed = {name: Path(str(path)) for column, name in names.items() for path in rows[column].dropna()}
    files = {name: path for name, path in listed.items() if path.is_file()}
    mask, cam = files.pop("mask", None), run.folder_of(study_id) / "explanations" / f"{study_id}_cam.nii.gz"
    return files, cam if cam.is_file() else None, mask


def _cross_mm(panel: Path) -> list[float] | None:
    """Point that the planes of a panel go through, or None where the file does not say."""
    if not panel.is_file():
        return None
    with Image.open(panel) as image:
        text = image.info.get(CROSS)
    return None if text is None else [float(x) for x in text.split()]
