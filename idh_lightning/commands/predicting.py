"""Answers for new, unlabelled studies, shown and written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from idh_lightning.cli.entry import command_line
from idh_lightning.cli.tables import FittingTable
from idh_lightning.cohort import NewStudy
from idh_lightning.cohort.checks import counted
from idh_lightning.cohort.files import NIFTI, walk
from idh_lightning.cohort.spreadsheet import TABLES
from idh_lightning.config.places import SHIPPED
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.inference import Predictor, StudyPrediction, write_tables
from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.predictor import CHUNK
from idh_lightning.inference.result_files import ResultFolder
from idh_lightning.inference.series import (
    Selection,
    Series,
    by_study,
    files_unread,
    new_study_of_series,
    select,
    sequences_named,
    series_table,
    write_series,
)
from idh_lightning.inference.sidecars import sidecar_series

SOME_WITHOUT_ANSWER = 3
"""Exit status where a study failed or its answer was withheld; the others have theirs."""


def predict(config: DictConfig) -> list[StudyPrediction]:
    """Answer for every study of the input, write what is promised into the output folder, and return the answers.

    Raises:
        ConfigError: If input and files are both given, or neither.
        CheckpointError: If a checkpoint cannot be used.
        CohortError: If there is no study.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    files = sequences_named(settings)
    source = settings["input"]
    if not files and source is None:
        raise ConfigError(
            "input: found none, and no file is named; expected one of the two. For example: "
            + command_line("predict", [*_naming(settings["checkpoint"]), "input=/data/new_patient"])
            + ", or in place of input: flair=A.nii.gz t1=B.nii.gz t1c=C.nii.gz t2=D.nii.gz"
        )
    predictor = Predictor(
        settings["checkpoint"],
        views=settings["views"],
        withhold=settings["withhold"],
        confidence=settings["confidence"],
        device=settings["device"],
    )
    for notice in predictor.ensemble.notices:
        Console().print(f"The network that the package ships. {notice}", soft_wrap=True, highlight=False)
    series, unread = _series_in(Path(source)) if source is not None else ([], {})
    if files and source is not None and not series:
        raise ConfigError(
            f"input: found {source} and the files {files}; expected one of the two. Leave one out; numbers of series "
            "go with a folder of DICOM files, or of NIfTI files with JSON sidecars, only."
        )
    output = Path(settings["output"])
    results = ResultFolder(
        output, bids=settings["output_layout"] == "bids", source=None if source is None else Path(source)
    )
    grouped = by_study(series, Path(source)) if series else {}
    if settings["dicom_output"] and not any(one.frames for one in series):
        raise ConfigError(
            f"dicom_output: found true with {source or 'files of NIfTI'}, which holds no DICOM; expected the DICOM "
            "series that the results are to refer to. Name their folder as input, or leave dicom_output out."
        )
    sequences = predictor.ensemble.sequences
    named = _named(files, grouped)
    selections = {name: select(theirs, named=named[name], sequences=sequences) for name, theirs in grouped.items()}
    results.begin(list(selections))
    if series:
        open_to_doubt = {
            one for study, selection in selections.items() for one in set(selection.taken) - set(named[study])
        }
        guessed = [] if settings["confirm"] else [name for name in sequences if name in open_to_doubt]
        _show_series(selections, unread, output, source=source, guessed=guessed)
        chunks = _converted(selections, output / "dicom")
    else:
        chunks = iter([predictor.found(files or source)])
    if (before := output / "predictions.csv").is_file():
        console = Console()
        console.print(f"{before}: replaced, with all that it says of earlier studies.", soft_wrap=True, highlight=False)
    answers: list[StudyPrediction] = []
    with _tables_of(answers, predictor, output):
        for answer in (answer for studies in chunks for answer in predictor.answers(studies, results)):
            answers.append(answer)
            if settings["dicom_output"] and answer.map_file is not None:
                _write_dicom(answer, [*selections[answer.study_id].taken.values()], results)
    _summarise(answers, output, predictor.ensemble.notices, predictor.ensemble.threshold)
    return answers


@contextmanager
def _tables_of(answers: Sequence[StudyPrediction], predictor: Predictor, output: Path) -> Iterator[None]:
    """Context at whose end the tables of all answers are written, also where it is stopped."""
    try:
        yield
    except BaseException:
        if answers:
            write_tables(answers, predictor.ensemble, predictor.confidence, output)
            told = f"{counted(len(answers), 'study stands', 'studies stand')} in {output / 'predictions.csv'}, no more."
            Console(stderr=True).print(told, soft_wrap=True, highlight=False)
        raise
    write_tables(answers, predictor.ensemble, predictor.confidence, output)


def _naming(checkpoint: Any) -> list[str]:
    return [] if checkpoint == SHIPPED else [f"checkpoint={checkpoint}"]


def _converted(selections: Mapping[str, Selection], folder: Path) -> Iterator[list[NewStudy]]:
    """Studies of series as NIfTI files in a folder, some at a time: the first have answers while others are DICOM."""
    names = list(selections)
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        yield [new_study_of_series(selections[name], folder, study_id=name) for name in chunk]


def _series_in(place: Path) -> tuple[list[Series], dict[str, list[Path]]]:
    """Series of a DICOM folder, file or DICOMDIR, or of NIfTI files with sidecars, and what is not read; else none.

    Raises:
        CohortError: If there is DICOM without an image, and no NIfTI file, or a file that is neither DICOM nor a table.
    """
    if place.suffix.lower() in (*TABLES, ".gz", ".nii") or not place.exists():
        return [], {}
    series, unread = dicom_series(place)
    if series:
        return series, unread
    if place.is_dir():
        told = {reason: files for reason, files in unread.items() if reason != "not DICOM"}
        if not told or any(name.lower().endswith(NIFTI) for _, _, names in walk(place) for name in names):
            return sidecar_series(place)
        unread = told
    raise CohortError(
        f"{place}: {' '.join(files_unread(unread))} Expected DICOM images of MR, or a table ({', '.join(TABLES)}). "
        "Name a folder with such images as input; unpack an archive first."
    )


def _named(files: Mapping[str, str], grouped: Mapping[str, Sequence[Series]]) -> dict[str, dict[str, str]]:
    """Study -> sequence -> number or uid of a series that was named for it, of which each means one study's series."""
    named: dict[str, dict[str, str]] = {study: {} for study in grouped}
    for sequence, wanted in files.items():
        meant = [study for study, series in grouped.items() if any(wanted in one.names for one in series)]
        if len(grouped) > 1 and len(meant) != 1:
            raise ConfigError(
                f"{sequence.lower()}: a series {wanted} is in {len(meant)} of the {len(grouped)} studies in input "
                f"({', '.join(meant[:5])}); expected one, since each study has numbers of its own. Give its uid, which "
                "is in series.csv of the output, or the folder of one study as input."
            )
        for study in meant or grouped:
            named[study][sequence] = wanted
    return named


def _show_series(
    selections: Mapping[str, Selection],
    unread: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    source: str,
    guessed: Sequence[str],
) -> None:
    """Show which series are taken for which sequence; stop where some are guessed and nobody has confirmed them."""
    console = Console()
    for study_id, selection in selections.items():
        console.print(series_table(study_id, selection))
        for sentence in (*selection.problems, *selection.notes):
            console.print(f"{study_id}: {sentence}", soft_wrap=True, highlight=False)
    for sentence in files_unread(unread):
        console.print(sentence, soft_wrap=True, highlight=False)
    write_series(selections, unread, output / "series.csv")
    if guessed:
        first, *others = selections.values()
        numbers = [f"{name.lower()}={one.number}" for name, one in first.taken.items() if one.number and not others]
        raise ConfigError(
            f"input: {source} holds series, and which is {', '.join(guessed)} was guessed from their tags; expected "
            f"your word for it. Look at the {'tables' if others else 'table'}, then add confirm=true, or name them by "
            f"{'their uid in ' + str(output / 'series.csv') if others else 'number'}"
            f"{': ' * bool(numbers)}{' '.join(numbers)}."
        )


def _write_dicom(answer: StudyPrediction, taken: Sequence[Series], output: ResultFolder) -> None:
    """Write what was found of a study as DICOM; where that cannot be done, say why: the answer stands."""
    from idh_lightning.inference.dicom_output import write_dicom  # here, since few ask for it

    try:
        files = write_dicom(answer, taken, output)
    except CohortError as error:
        Console().print(f"{answer.study_id}: no DICOM is written. {error}", soft_wrap=True, highlight=False)
        return
    for file in files:
        Console().print(f"{'DICOM':>16}  {file}", soft_wrap=True, highlight=False)


def _summarise(answers: Sequence[StudyPrediction], output: Path, said: Sequence[str], threshold: float) -> None:
    """Print a row for each study, without the notices of the network, which were said above the table.

    A call that differs from one at a half is told with its threshold. Why a study has no answer is told below, in lines
    of their own, so that a remedy in it can be copied.
    """
    target = answers[0].target
    headings = ("study", "status", target.chance, "interval", "called", "cannot be excluded", "why, and what to know")
    table, told_below = FittingTable(target.title, headings, ("study", headings[-1]), headings[1:]), []
    for one in answers:
        number = ("-", "-", "-", "-")
        if one.probability is not None and one.low is not None and one.high is not None:
            interval = f"{one.low:.2f} to {one.high:.2f}"
            called = str(one.decision)
            if (one.decision == target.positive) != (one.probability >= 0.5):
                called += f" ({target.positive} from {threshold:.2f})"
            number = (f"{one.probability:.2f}", interval, called, one.prediction_set or "-")
        first, *others = (*(text for text in (*one.reasons, *one.warnings) if text not in said), "")
        words = first + (f" (and {len(others) - 1} more)" if len(others) > 1 else "")
        words = f"unlike the training studies: {words}" if one.unlike else words
        if one.reasons:
            told_below.append(f"{one.study_id}: {words}")
        table.add_row(one.study_id, one.status, *number, "told below" if one.reasons else words)
    console = Console()
    console.print(table)
    for line in told_below:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for name in ("predictions.csv", "predictions.json"):
        console.print(f"{name:>16}  {output / name}", soft_wrap=True, highlight=False)


def predict_or_tell(config: DictConfig) -> None:
    """Answer for what the command line names; the exit status is 3 where a study has no answer."""
    if not all(answer.given for answer in predict(config)):
        sys.exit(SOME_WITHOUT_ANSWER)
