"""DICOM folders: which series could be which sequence, by their tags, and series turned into NIfTI files."""

from __future__ import annotations

import locale
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from idh_lightning.cli.tables import FittingTable
from idh_lightning.cohort import SEQUENCES, NewStudy, study_of_files
from idh_lightning.cohort.files import walk
from idh_lightning.cohort.identity import names_a_file
from idh_lightning.errors import CohortError
from idh_lightning.files import atomic_write

FEWEST_SLICES = 8

_TAGS = {
    "study_uid": "0020|000d",
    "number": "0020|0011",
    "description": "0008|103e",
    "echo_ms": "0018|0081",
    "repetition_ms": "0018|0080",
    "inversion_ms": "0018|0082",
    "contrast": "0018|0010",
    "modality": "0008|0060",
}
_OTHER = re.compile(
    r"\b(?:dwi|dti|adc|trace|swi|swan|t2\s*\*|t2star|gre|hemo|perf|dsc|dce|asl|bold|fmri|mra|tof|spectro|loc|localizer|"
    r"scout|survey|mip|sub|subtraction|phase|b\s?1000|stir)\b|^adc|_adc",
    re.IGNORECASE,
)
_FLAIR = re.compile(r"flair|dark.?fluid|tirm", re.IGNORECASE)
_T1 = re.compile(r"t1|mprage|mp2rage|spgr|bravo|tfe|flash|vibe", re.IGNORECASE)
_T2 = re.compile(r"t2", re.IGNORECASE)
_WITH_CONTRAST = re.compile(
    r"post|gad|\bgd\b|_gd|contrast|\bce\b|_ce\b|t1ce|t1c\b|\+\s*c\b|\bkm\b|\+gd|\bc\+", re.IGNORECASE
)
_WITHOUT_CONTRAST = re.compile(r"\bpre\b|pre[_-]|non.?contrast|without|native|nativ", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One DICOM series.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        number: SeriesNumber.
        description: SeriesDescription.
        files: In the order of the slices.
        echo_ms: EchoTime, or None.
        repetition_ms: RepetitionTime, or None.
        inversion_ms: InversionTime, or None.
        contrast: Whether a contrast agent is stated.
        guess: A sequence, or "" where the tags fit none.
        why: What the guess rests on.
    """

    uid: str
    study_uid: str
    number: str
    description: str
    files: tuple[str, ...] = field(repr=False)
    echo_ms: float | None
    repetition_ms: float | None
    inversion_ms: float | None
    contrast: bool
    guess: str
    why: str


@contextmanager
def keeping_locale() -> Iterator[None]:
    """Undo what GDCM does to the process: it sets the C locale, in which text is ASCII (SimpleITK 2.5, GDCM 3)."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@keeping_locale()
def dicom_series(folder: Path) -> list[Series]:
    """Return the series of a folder and all below it, by number; empty where there is no DICOM file."""
    found: dict[str, Series] = {}
    for place, _, names in walk(folder):
        if not any(_is_dicom(Path(place) / name) for name in sorted(names)[:20]):
            continue
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(place):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(place, uid)
            series = _read(uid, files)
            found[f"{uid} {place}"] = series
    return sorted(
        found.values(), key=lambda one: (one.study_uid, int(one.number) if one.number.isdigit() else 0, one.uid)
    )


def series_table(series: Sequence[Series]) -> FittingTable:
    """Table of the series found and their guessed sequences, for the screen."""
    headings = ("number", "description", "slices", "TE, ms", "TR, ms", "TI, ms", "contrast", "guess", "why")
    table = FittingTable("DICOM series", headings, ("description", "why"), ("contrast", "guess"))
    for one in series:
        times = ("" if ms is None else f"{ms:g}" for ms in (one.echo_ms, one.repetition_ms, one.inversion_ms))
        cells = (
            one.number,
            one.description,
            str(len(one.files)),
            *times,
            "yes" if one.contrast else "",
            one.guess,
            one.why,
        )
        table.add_row(*cells)
    return table


def new_study_of_series(
    series: Sequence[Series], folder: Path, *, study_id: str, named: Mapping[str, str], sequences: Sequence[str]
) -> NewStudy:
    """Return the study of one DICOM study, its series written as NIfTI files into a folder.

    Args:
        series: Of one DICOM study.
        folder: For the files.
        study_id: What to call it.
        named: Sequence -> SeriesNumber or SeriesInstanceUID, where the user says so; else the guess counts.
        sequences: Which are needed.
    """
    problems, chosen = [], {}
    for sequence in sequences:
        wanted = named.get(sequence)
        fitting = [one for one in series if (wanted in (one.number, one.uid) if wanted else one.guess == sequence)]
        if len(fitting) == 1:
            chosen[sequence] = fitting[0]
        else:
            listed = ", ".join(f"{one.number} ({one.description or 'no description'})" for one in fitting)
            problems.append(f"{len(fitting)} series could be {sequence}{': ' if listed else ''}{listed}")
    if problems:
        remedy = "Name them by number, for example flair=5 t1=3 t1c=8 t2=4."
        return NewStudy(study_id=study_id, study=None, problem=f"{'; '.join(problems)}; expected one each. {remedy}")
    files = {}
    for sequence, one in chosen.items():
        try:
            files[sequence] = _convert(one, folder / f"{study_id}_{sequence}.nii.gz")
        except (RuntimeError, CohortError) as error:
            text = " ".join(str(error).split())[:300]
            return NewStudy(study_id=study_id, study=None, problem=f"series {one.number}, {sequence}: {text}")
    return study_of_files(files, study_id)


def by_study(series: Sequence[Series], folder: Path) -> dict[str, list[Series]]:
    """Return the series of each DICOM study, under a name that can be part of a file name."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        studies[one.study_uid].append(one)
    own = folder.absolute().name
    if len(studies) == 1 and names_a_file(own):
        return {own: list(series)}
    return {f"study_{index + 1:03d}": theirs for index, theirs in enumerate(studies.values())}


def guess_sequence(
    description: str,
    *,
    echo_ms: float | None,
    repetition_ms: float | None,
    inversion_ms: float | None,
    contrast: bool,
    slices: int,
) -> tuple[str, str]:
    """Return the sequence that the tags of a series state, "" for none, and what says so.

    The description comes first, then the times: a long echo is T2 weighting, with a long inversion time FLAIR; a
    short echo with a short repetition or inversion time is T1 weighting.
    """
    if slices < FEWEST_SLICES:
        return "", f"{slices} slices"
    if other := _OTHER.search(description):
        return "", f"description says {other[0]}"
    weighting, why = "", "description"
    if _FLAIR.search(description) and not re.search(r"t1.?flair|flair.?t1", description, re.IGNORECASE):
        weighting = "FLAIR"
    elif _T1.search(description):
        weighting = "T1"
    elif _T2.search(description):
        weighting = "T2"
    elif echo_ms is not None:
        why = "times"
        long_ms, repetition = inversion_ms or 0.0, repetition_ms or 0.0
        if echo_ms >= 60 and long_ms >= 1500:
            weighting = "FLAIR"
        elif echo_ms >= 60 and repetition >= 2000:
            weighting = "T2"
        elif echo_ms <= 30 and (0 < repetition <= 1200 or 300 <= long_ms <= 1300):
            weighting = "T1"
    if weighting == "T1" and not _WITHOUT_CONTRAST.search(description):
        if _WITH_CONTRAST.search(description):
            return "T1c", f"{why}, contrast in the description"
        if contrast:
            return "T1c", f"{why}, contrast agent stated"
    return weighting, why if weighting else "nothing fits"


def _read(uid: str, files: Sequence[str]) -> Series:
    reader = sitk.ImageFileReader()
    reader.SetFileName(files[0])
    reader.ReadImageInformation()
    tags = {name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for name, tag in _TAGS.items()}
    times = {name: _number(tags[name]) for name in ("echo_ms", "repetition_ms", "inversion_ms")}
    slices = max(len(files), reader.GetSize()[2] if len(reader.GetSize()) > 2 else 1)
    contrast = bool(tags["contrast"]) and tags["contrast"].lower() not in ("no", "none")
    guess, why = guess_sequence(tags["description"], **times, contrast=contrast, slices=slices)
    if tags["modality"] not in ("", "MR"):
        guess, why = "", f"modality {tags['modality']}"
    return Series(
        uid=uid,
        study_uid=tags["study_uid"],
        number=tags["number"],
        description=tags["description"],
        files=tuple(files),
        contrast=contrast,
        guess=guess,
        why=why,
        **times,
    )


@keeping_locale()
def _convert(series: Series, path: Path) -> Path:
    """Write a series as NIfTI.

    Raises:
        CohortError: If slices are missing between others.
        RuntimeError: If SimpleITK cannot read it.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(series.files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if len(series.files) > 2:
        _check_gaps(reader, series)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise CohortError("colour images; expected one number per voxel")
    with atomic_write(path) as temporary:
        sitk.WriteImage(image, str(temporary))
    return path


def _check_gaps(reader: sitk.ImageSeriesReader, series: Series) -> None:
    places = []
    for index in range(len(series.files)):
        if not reader.HasMetaDataKey(index, "0020|0032"):
            return
        places.append([float(text) for text in reader.GetMetaData(index, "0020|0032").split("\\")])
    steps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    usual = float(np.median(steps))
    if usual <= 0 or np.abs(steps / usual - 1).max() > 0.1:
        raise CohortError(
            f"its slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; expected one distance: a slice is "
            "missing or there twice. Export the series again"
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def sequences_named(settings: Mapping[str, object]) -> dict[str, str]:
    """Return sequence -> what the settings flair, t1, t1c and t2 say, where they say something."""
    return {name: str(settings[name.lower()]) for name in SEQUENCES if settings[name.lower()] is not None}
