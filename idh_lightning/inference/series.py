"""Series of a study, DICOM or NIfTI with sidecars: which is taken for which sequence, and what is in doubt about it."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from idh_lightning.cli.tables import FittingTable
from idh_lightning.cohort import SEQUENCES, NewStudy, study_of_files
from idh_lightning.cohort.identity import names_a_file
from idh_lightning.errors import CohortError
from idh_lightning.files import write_text
from idh_lightning.inference.content import doubts_of_content
from idh_lightning.inference.dicom_frames import Frame
from idh_lightning.inference.sequence_guess import UNSTATED, contrast_stated
from idh_lightning.volumes.reading import Geometry

WHOLE_HEAD_MM = 100.0
"""Through the slices; what covers less may lack the tumour."""

THIN_MM = 1.6
"""Slices that thin are taken for a 3D acquisition where the tags do not say."""

T1_WEIGHTED = ("T1", "T1c")

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One volume of a series: all of it, or one of its echoes, time points, orientations or kinds of image.

    Attributes:
        uid: SeriesInstanceUID, or the name of a NIfTI file before `.nii`.
        study_uid: StudyInstanceUID, or the folder of a NIfTI file.
        number: SeriesNumber, with a letter where the series holds several volumes.
        description: SeriesDescription.
        part: What makes it one of several volumes, such as "echo time 90.0"; else "".
        slices: How many there are.
        folder: Where its files lie.
        echo_ms: EchoTime, or None.
        repetition_ms: RepetitionTime, or None.
        inversion_ms: InversionTime, or None.
        contrast: Whether a contrast agent is stated.
        acquired: Date and time of acquisition, as text that sorts; "" where not stated.
        is_3d: Whether it was acquired as a volume; None where not stated.
        derived: Whether it was made of other images.
        geometry: Its grid; None where it has none.
        guess: A sequence, or "" where the tags fit none.
        why: What the guess rests on.
        doubt: What speaks against it, or "".
        problem: Why it cannot be used, or "".
        save: Path of its NIfTI file, which is written under the path given if there is none yet.
        frames: Its planes in the order of their places; none where it is a NIfTI file.
    """

    uid: str
    study_uid: str
    number: str
    description: str
    part: str = ""
    slices: int
    folder: Path
    echo_ms: float | None
    repetition_ms: float | None
    inversion_ms: float | None
    contrast: bool
    acquired: str
    is_3d: bool | None
    derived: bool
    geometry: Geometry | None
    guess: str
    why: str
    doubt: str = ""
    problem: str = ""
    save: Callable[[Path], Path] = field(repr=False)
    frames: tuple[Frame, ...] = field(default=(), repr=False)

    @property
    def order(self) -> tuple[str, int, str, str]:
        """Its place among others: by study, then by number."""
        digits = self.number.rstrip(_LETTERS)
        return self.study_uid, int(digits) if digits.isdigit() else 0, self.uid, self.number

    @property
    def name(self) -> str:
        """Its number and description, for messages."""
        return f"{self.number} ({', '.join(filter(None, (self.description or 'no description', self.part)))})"

    @property
    def names(self) -> tuple[str, str, str]:
        """Names by which a user may call it: its number, its identifier, and this with the letter of its number."""
        letter = self.number[len(self.number.rstrip(_LETTERS)) :]
        return self.number, self.uid, f"{self.uid}{letter}"

    @property
    def extent_mm(self) -> float:
        """Length of the volume through its slices."""
        return self.geometry.spacing_mm[2] * self.geometry.size[2] if self.geometry else 0.0

    @property
    def drawbacks(self) -> dict[str, float]:
        """Reasons why it is less fit than another of the same sequence, the gravest first; 0 is best."""
        spacing = self.geometry.spacing_mm[2] if self.geometry else 0.0
        normal = np.abs(np.reshape(self.geometry.direction, (3, 3))[:, 2]) if self.geometry else np.zeros(3)
        solid = self.is_3d if self.is_3d is not None else spacing <= THIN_MM
        return {
            "in doubt": float(bool(self.doubt)),
            "made of other images": float(self.derived),
            "covers less of the head": float(self.extent_mm < WHOLE_HEAD_MM),
            "not 3D": float(not solid),
            "thicker": round(spacing * 5) / 5,
            "not axial": float(normal.argmax() != 2),
        }


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Series of one study, and those that were taken.

    Attributes:
        series: All, with what was settled between them.
        taken: Sequence -> series.
        problems: Sequences for which several series, or none that can be used, fit.
        notes: Doubts about those taken.
    """

    series: tuple[Series, ...]
    taken: Mapping[str, Series]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def select(series: Sequence[Series], *, named: Mapping[str, str], sequences: Sequence[str]) -> Selection:
    """Series of one study that are taken for the sequences needed.

    Of several that fit, the one is taken that is not in doubt, original, covers the head, 3D, thinner, axial: in this
    order. Where they are alike in all of these none is taken.

    Args:
        series: Of one study.
        named: Sequence -> number or uid of a series, where the user says so, which is then taken for no other sequence;
            else the guess counts.
        sequences: Which are needed.
    """
    settled = {id(one): one for one in settle_contrast(series)}
    taken: dict[str, Series] = {}
    problems, notes = [], []
    for sequence in sequences:
        wanted = named.get(sequence)
        fitting = [one for one in settled.values() if _fits(one, sequence, named)]
        usable = sorted((one for one in fitting if not one.problem), key=lambda one: [*one.drawbacks.values()])
        best = [one for one in usable if wanted or one.drawbacks == usable[0].drawbacks]
        if len(best) == 1:
            taken[sequence] = best[0]
            for other in usable[1:]:
                worse = _first_difference(best[0], other)
                settled[_key(settled, other)] = replace(other, why=f"{other.why}; {best[0].number} is taken: {worse}")
            if best[0].doubt and not wanted:
                notes.append(f"{sequence} is series {best[0].name}: {best[0].doubt}. Look at it, or name another.")
            if wanted and best[0].guess not in ("", sequence):
                notes.append(f"{sequence} is series {best[0].name}, as it was named, and its tags say {best[0].guess}.")
        elif best:
            own = [_own_name(one, series) for one in best]
            listed = ", ".join(
                f"{one.name}{'' if name == one.number else f' {name}'}" for one, name in zip(best, own, strict=True)
            )
            how = "" if own[0] == best[0].number else " by its identifier"
            setting = shlex.quote(f"{sequence.lower()}={own[0]}")
            problems.append(f"{len(best)} series could be {sequence}: {listed}. Name one{how}, for example {setting}")
        elif fitting:
            listed = "; ".join(f"{one.name}: {one.problem}" for one in fitting)
            problems.append(f"no series that could be {sequence} can be used: {listed}, or name another one")
        elif wanted:
            numbers = ", ".join(sorted({one.number for one in series}))
            problems.append(f"no series is called {wanted}, which was named for {sequence}; expected one of {numbers}")
    if not taken and not problems:
        problems.append(f"no series could be {' or '.join(sequences)}")
    return Selection(series=tuple(settled.values()), taken=taken, problems=tuple(problems), notes=tuple(notes))


def _fits(one: Series, sequence: str, named: Mapping[str, str]) -> bool:
    """Whether a series is the one named for a sequence, or is guessed to be it and named for no other one."""
    if wanted := named.get(sequence):
        return wanted in one.names
    return one.guess == sequence and not set(one.names).intersection(named.values())


def _key(settled: Mapping[int, Series], one: Series) -> int:
    return next(key for key, other in settled.items() if other is one)


def _own_name(one: Series, others: Sequence[Series]) -> str:
    """Name of a series by which no other one is meant."""
    alone = (name for name in one.names if name and sum(name in other.names for other in others) == 1)
    return next(alone, one.uid)


def _first_difference(best: Series, other: Series) -> str:
    return next((name for name, value in other.drawbacks.items() if value != best.drawbacks[name]), "alike")


def settle_contrast(series: Sequence[Series]) -> list[Series]:
    """Series of one study, those of T1 weighting told apart by when they were acquired, with the doubts that remain.

    Words of a description decide. Where there are none, what was acquired after a series with contrast has it, and what
    was acquired before has not, whatever its tag says: scanners copy the contrast agent to all series of a study.
    """
    weighted = [one for one in series if one.guess in T1_WEIGHTED]
    said = {id(one): contrast_stated(one.description) for one in weighted}
    stated = [one for one in weighted if said[id(one)]]
    tagged = [one for one in weighted if one.contrast and said[id(one)] is None]
    plain = [one for one in weighted if not one.contrast and not said[id(one)]]
    given = stated or (tagged if plain else [])
    first = min((one for one in given if one.acquired), key=lambda one: one.acquired, default=None)
    copied = not stated and not plain and len(tagged) > 1
    earliest = min((one.acquired for one in tagged), default="")
    settled = []
    for one in series:
        guess, why, doubt = one.guess, one.why, ""
        if one.guess not in T1_WEIGHTED or said[id(one)]:
            pass
        elif first is not None and one.acquired > first.acquired:
            doubt = f"it was acquired after series {first.number}, which states contrast"
            if said[id(one)] is None:
                guess, why, doubt = "T1c", f"T1 weighting, {doubt[3:]}", "only its time says that contrast was given"
                doubt = "" if one.contrast else doubt
        elif said[id(one)] is False:
            pass
        elif first is not None and one.acquired and one.acquired < first.acquired:
            guess, why = "T1", f"T1 weighting, acquired before series {first.number}, which states contrast"
            doubt = "a contrast agent is stated all the same" if one.contrast else ""
        elif copied:
            before = bool(earliest) and one.acquired == earliest and any(o.acquired > earliest for o in tagged)
            guess = "T1" if before else "T1c"
            why = f"T1 weighting, {'the first' if before else 'a later one'} of those that state contrast"
            doubt = "every T1 weighting states contrast, and perhaps the tag was copied"
        elif not one.contrast and not given:
            doubt = UNSTATED
        elif one.contrast and all(other.contrast for other in series) and len(series) > len(tagged):
            doubt = "only its tag says that contrast was given, and all series have it"
        settled.append(replace(one, guess=guess, why=why, doubt=doubt or _doubt_of_extent(one)))
    return settled


def _doubt_of_extent(one: Series) -> str:
    small = one.guess and one.geometry is not None and one.extent_mm < WHOLE_HEAD_MM
    return f"its slices span {one.extent_mm:.0f} mm, less than a head" if small else ""


def new_study_of_series(selection: Selection, folder: Path, *, study_id: str) -> NewStudy:
    """Study of the series that were taken of one DICOM study, written as NIfTI files into a folder.

    A sequence that no series fits is left out; the network says whether it can do without.
    """
    if selection.problems:
        return NewStudy(study_id=study_id, study=None, problem="; ".join(selection.problems))
    files: dict[str, Path] = {}
    for sequence, one in selection.taken.items():
        try:
            files[sequence] = one.save(folder / f"{study_id}_{sequence}.nii.gz")
        except (RuntimeError, CohortError) as error:
            text = " ".join(str(error).split())[:400]
            return NewStudy(study_id=study_id, study=None, problem=f"series {one.number}, {sequence}: {text}")
    return replace(study_of_files(files, study_id), notes=(*selection.notes, *doubts_of_content(files)))


def by_study(series: Sequence[Series], folder: Path) -> dict[str, list[Series]]:
    """Series of each study, under a name that can be part of a file name: where it can be, that of its folder.

    Where a folder holds several studies, that of the folder in it follows.
    """
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        studies[one.study_uid].append(one)
    top = folder.absolute() if folder.is_dir() else folder.absolute().parent
    if len(studies) == 1 and names_a_file(top.name):
        return {top.name: list(series)}
    places = [Path(os.path.commonpath([one.folder.absolute() for one in some])) for some in studies.values()]
    parts = [place.relative_to(top).parts if place.is_relative_to(top) else () for place in places]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        own = ["_".join(each[:depth]) for each in parts]
        if len(set(own)) == len(studies) and all(map(names_a_file, own)):
            return dict(zip(own, studies.values(), strict=True))
    return {f"study_{index + 1:03d}": theirs for index, theirs in enumerate(studies.values())}


def series_table(study_id: str, selection: Selection) -> FittingTable:
    """Table of a study's series, their guessed sequences and which are taken, for the screen."""
    headings = ("number", "description", "slices", "TE, ms", "TR, ms", "TI, ms", "contrast", "guess", "taken", "why")
    table = FittingTable(f"Series of {study_id}", headings, ("description", "why"), ("contrast", "guess", "taken"))
    for row in _rows(study_id, selection):
        why = "; ".join(filter(None, (row["problem"], row["why"], row["doubt"] and f"in doubt: {row['doubt']}")))
        description = ", ".join(filter(None, (row["description"], row["part"])))
        times = (row[name] for name in ("echo_ms", "repetition_ms", "inversion_ms"))
        cells = (row["slices"], *times, row["contrast"], row["guess"], row["taken"], why)
        table.add_row(row["number"], description, *cells)
    return table


def write_series(selections: Mapping[str, Selection], unread: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write series.csv: every series with what became of it, and every file that was not read, with the reason."""
    others = [{"file": str(file), "problem": reason} for reason, files in unread.items() for file in files]
    rows = [row for study_id, selection in selections.items() for row in _rows(study_id, selection)]
    write_text(path, pd.DataFrame([*rows, *others]).to_csv(index=False))


def files_unread(unread: Mapping[str, Sequence[Path]]) -> list[str]:
    """Sentences on the files that were not read, one for each reason."""
    return [
        f"{len(files)} file{'s' if len(files) > 1 else ''} not used: {reason}; such as {files[0].name}."
        for reason, files in unread.items()
    ]


def _rows(study_id: str, selection: Selection) -> list[dict[str, str]]:
    rows = []
    taken = {id(one): sequence for sequence, one in selection.taken.items()}
    for one in selection.series:
        times = {name: getattr(one, name) for name in ("echo_ms", "repetition_ms", "inversion_ms")}
        rows.append(
            {"study_id": study_id, "number": one.number, "uid": one.uid, "description": one.description}
            | {"part": one.part, "slices": str(one.slices)}
            | {name: "" if ms is None else f"{ms:g}" for name, ms in times.items()}
            | {"contrast": "yes" if one.contrast else "", "guess": one.guess, "taken": taken.get(id(one), "")}
            | {"why": one.why, "doubt": one.doubt, "problem": one.problem, "file": str(one.folder)}
        )
    return rows


def sequences_named(settings: Mapping[str, object]) -> dict[str, str]:
    """Return sequence -> what the settings flair, t1, t1c and t2 say, where they say something."""
    return {name: str(settings[name.lower()]) for name in SEQUENCES if settings[name.lower()] is not None}
