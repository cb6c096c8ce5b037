"""One study on one page: the answer with its doubts, the picture, and the map over the FLAIR to look through."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from idh_lightning.cohort import Study, Target
from idh_lightning.files import atomic_write, write_text
from idh_lightning.inference.ensemble import Ensemble
from idh_lightning.inference.prediction import StudyPrediction
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.reports.page import badges, render
from idh_lightning.reports.panels import brain_panel, cam_panel, cross_mm, registration_panel, tumour_planes
from idh_lightning.reports.viewer import drawn_or_reason, read_scene, slice_viewer, turning_frames, turning_view
from idh_lightning.reports.vocabulary import NOT_COMPARED, unlike_in_words
from idh_lightning.volumes import Geometry, PrepareReport, StoredVolume
from idh_lightning.volumes.mapping import head_around, pair_around
from idh_lightning.volumes.registration import Registration

OF_REGISTRATION = ("disagreeing_fields_of_view", "poor_registration")
"""Checks of the images that refuse a study for where its sequences lie."""


def sets_in_words(target: Target) -> dict[str, str]:
    """Prediction set -> what it says."""
    each = {one: f"{one} only: {other} can be excluded" for one, other in (target.classes, target.classes[::-1])}
    return each | {"both": "both: not certain", "none": "neither: unlike the validation patients of either class"}


def alarm_line(unlike: Sequence[str]) -> str:
    """First line of a page: that a study is unlike the training ones and by what, or was not compared with them."""
    found = [unlike_in_words(name) for name in unlike if name != NOT_COMPARED]
    if found:
        return f"This study is unlike the studies that the network was trained on ({'; '.join(found)})."
    return "This study was not compared with the studies that the network was trained on." if unlike else ""


def write_page(
    answer: StudyPrediction,
    study: Study,
    stored: StoredVolume,
    cam: NDArray[np.floating],
    tumour: NDArray[np.floating] | None,
    ensemble: Ensemble,
    output: ResultFolder,
    *,
    confidence: float,
) -> Path:
    """Write the picture and the page of a study, and return the latter's path.

    Args:
        answer: With the map already written.
        study: Its files.
        stored: As the network saw it.
        cam: [D, H, W], on the grid of `stored`.
        tumour: [D, H, W], probability of tumour, outlined where it is half; None for no outline.
        ensemble: That predicts.
        output: Their folder.
        confidence: Of the interval.
    """
    title = answer.study_id
    if answer.probability is not None:
        title += f"   ·   {answer.target.chance} {answer.probability:.2f} ({answer.low:.2f} to {answer.high:.2f})"
    image, inside = np.asarray(stored.image, dtype=np.float32), cam * (np.asarray(stored.brain) > 0)
    found = None if tumour is None else tumour >= 0.5
    figure = cam_panel(image, ensemble.sequences, inside, found, stored.affine_ras, title)
    png = _png(figure)
    with atomic_write(output.file(answer.study_id, "picture")) as temporary:
        temporary.write_bytes(png)
    files = {name: study.files[name] for name in ensemble.sequences if name in study.files}
    pairs = [_registration_picture(study, one, stored) for one in stored.registrations]
    at_mm = cross_mm(tumour_planes(found, inside, inside.shape), stored.affine_ras)

    def views() -> Markup:
        assert answer.map_file is not None
        scene = read_scene(files, answer.map_file, study.mask or answer.tumour_file, at_mm, stored.registrations)
        return slice_viewer(scene, study.study_id) + turning_view(turning_frames(scene), study.study_id)

    viewer = None if answer.map_file is None else drawn_or_reason("Slices to look through", study.study_id, views)
    cohorts = ensemble.cohorts
    page = render(
        "study.html.j2",
        title=f"{answer.study_id}: {answer.target.title} from MRI",
        badges=badges(*cohorts),
        answer=answer,
        alarm=alarm_line(answer.unlike),
        files={name: path.name for name, path in study.files.items()},
        sets=sets_in_words(answer.target),
        threshold=ensemble.threshold,
        threshold_from=ensemble.threshold_from,
        notices=ensemble.notices,
        confidence=confidence,
        coverage=ensemble.coverage,
        checkpoints=[str(member.file) for member in ensemble.members],
        cohorts=cohorts,
        picture=_source(png),
        brain=_brain_picture(study, stored) if stored.found.extracted else None,
        registrations=pairs,
        viewer=viewer,
    )
    path = output.file(answer.study_id, "page")
    write_text(path, page)
    return path


def _brain_picture(study: Study, stored: StoredVolume) -> dict[str, str]:
    """Words about a brain that was extracted, and its outline on the head as the source of an image."""
    figure = brain_panel(*head_around(study.files[stored.found.sequence], stored), "")
    words = f"A brain of {stored.found.volume_ml:.0f} mL was found in the head of {stored.found.sequence}"
    return {"words": words, "picture": _source(_png(figure))}


def _registration_picture(study: Study, registration: Registration, stored: StoredVolume) -> dict[str, str]:
    """Words about a registered sequence, and its picture as the source of an image."""
    figure = registration_panel(*pair_around(study.files, registration, stored.grid), "")
    return {"words": registration.words, "picture": _source(_png(figure))}


def write_refused(study: Study, report: PrepareReport, output: ResultFolder) -> list[Path]:
    """Write pictures of the registrations of a study that is refused for them, and return their paths."""
    picture = output.file(study.study_id, "picture")
    paths: list[Path] = []
    own = [fault for fault in report.faults if fault.study_id == study.study_id and fault.severity == "error"]
    if not any(fault.check in OF_REGISTRATION for fault in own):
        return paths
    for one in report.refused.get(study.study_id, ()):
        grid = Geometry.of(sitk.DICOMOrient(sitk.ReadImage(str(study.files[one.reference])), "LPS"))
        figure = registration_panel(*pair_around(study.files, one, grid), f"{study.study_id}: {one.words}")
        paths.append(picture.with_name(f"{picture.stem}_{one.sequence}_registered.png"))
        with atomic_write(paths[-1]) as temporary:
            temporary.write_bytes(_png(figure))
    return paths


def _png(figure: Figure) -> bytes:
    """PNG file of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


def _source(png: bytes) -> str:
    """PNG file as the source of an image on a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
