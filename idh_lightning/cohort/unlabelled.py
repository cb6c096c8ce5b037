"""New studies without a label: found in any folder by the names of their files, or listed in a table."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from idh_lightning.cohort import layouts
from idh_lightning.cohort.files import NIFTI, children, files_named, from_home, one_file, unwrapped, walk
from idh_lightning.cohort.identity import names_a_file
from idh_lightning.cohort.spreadsheet import TABLES, match_columns, read_spreadsheet, unused_images
from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.errors import CohortError

logger = logging.getLogger(__name__)

DEEPEST = 6
"""Folders below the input that are searched: more than any layout has, and an end where a link leads in circles."""

_EXPECTED = (
    "names that end like _FLAIR, _T1, _T1c, _T2, -t2f, -t1n, -t1c, -t2w, _t1ce, _T1GD or _ce-gd_T1w, then .nii "
    "or .nii.gz"
)
_SESSION = r"sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?"


_CONTRAST = "(?:c|ce|gd|gad|post|contrast|km)"
_SPELLINGS = {
    "FLAIR": "(?:t2w?[_-]?)?flair(?:[_-]t2w?)?",
    "T1": "t1w",
    "T1c": rf"t1w?[_+-]?{_CONTRAST}|{_CONTRAST}[_-]?t1w?",
    "T2": "t2w",
}
"""Spellings of no layout. What a name says of contrast comes before the T1 in it, and FLAIR before T2."""
_PACKED = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")

_OTHER_IMAGE = re.compile(
    r"(?:.*[_-])?(?:mask|d?seg|segmentation|labels?|tumou?r|dwi|adc|dti|swi|asl|perfusion|subtraction)",
    re.IGNORECASE | re.DOTALL,
)
"""What stands before a sequence in the name of an image that is something else on its grid."""


def _pattern(sequence: str) -> re.Pattern[str]:
    """Pattern of a name before `.nii`: what the readers of all layouts know, and usual spellings, after any prefix."""
    known = (layouts.UCSF_ENDS, layouts.EGD_NAMES, layouts.UPENN_ENDS, layouts.BRATS_ENDS, _SPELLINGS)
    names = "|".join(sorted({spelling[sequence] for spelling in known}))
    plain = rf"(?:(?P<prefix>.*?)[_-])??(?:{names})(?:{layouts.UCSF_CORRECTED})?"
    session = rf"(?P<session>{_SESSION}){layouts.BIDS_PLAIN}{layouts.BIDS_ENDS[sequence]}"
    return re.compile(rf"{session}|{plain}", re.IGNORECASE | re.DOTALL)


_PATTERNS = {sequence: _pattern(sequence) for sequence in ("FLAIR", "T1c", "T1", "T2")}


@dataclass(frozen=True, kw_only=True)
class NewStudy:
    """A study to be predicted, or the reason why it cannot be.

    Attributes:
        study_id: Unique among the studies of one call; can be part of a file name.
        study: With the label 0, which nothing looks at; None where something is wrong.
        problem: What is wrong, in words that name the candidates; "" where nothing is.
        notes: Doubts about which file is which sequence, which go with the answer.
    """

    study_id: str
    study: Study | None
    problem: str = ""
    notes: tuple[str, ...] = ()


def sequence_of(name: str) -> tuple[str, str] | None:
    """Return the sequence that a file name states and what stands before it, or None if it states none.

    >>> sequence_of("BraTS-GLI-00001-000-t2f.nii.gz")
    ('FLAIR', 'BraTS-GLI-00001-000')
    """
    suffix = next((end for end in sorted(NIFTI, reverse=True) if name.lower().endswith(end)), None)
    if suffix is None:
        return None
    for sequence, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(name[: -len(suffix)]):
            prefix = match["prefix"] or match["session"] or ""
            return None if _OTHER_IMAGE.fullmatch(prefix) else (sequence, prefix)
    return None


def new_studies(place: str | Path) -> list[NewStudy]:
    """Return the studies in a folder, however deep, or in a table, sorted by name.

    The files of one study lie in one folder. A folder holds several studies where their names begin differently and
    each has at least two sequences. Two files that could be the same sequence make the study ambiguous: it comes back
    with a problem that lists both.

    Args:
        place: A folder; or a CSV, TSV, Excel or Parquet table with the column study_id and one per sequence, paths
            relative to it.

    Raises:
        CohortError: If there is no such place, or no study in it.
    """
    path = from_home(place)
    if path.suffix.lower() in TABLES:
        return _named_once(_in_table(path))
    if not os.path.isdir(path):
        raise CohortError(
            f"{str(path)[:300]}: no such folder; expected a folder with the images of one study or of many, or a "
            f"table ({', '.join(TABLES)}). Correct input."
        )
    found = _named_once(_in_folder(path))
    if not found:
        packed = sorted(name for _, _, names in walk(path) for name in names if name.lower().endswith(_PACKED))
        raise CohortError(
            f"{path}: no image whose name states its sequence; expected {_EXPECTED}. "
            + (f"Archives are not read: unpack {', '.join(packed[:3])}. " if packed else "")
            + "Rename the files, or name them: flair=... t1=... t1c=... t2=..."
        )
    return found


def study_of_files(files: Mapping[str, str | Path], study_id: str = "") -> NewStudy:
    """Return the study of files that are named one by one, sequence -> NIfTI file.

    Its study_id is by default what the file names have in common, else the name of their folder.
    """
    paths = {name: from_home(files[name]) for name in SEQUENCES if name in files}
    first = next(iter(paths.values()))
    stated = {(sequence_of(path.name) or ("", ""))[1] for path in paths.values()}
    name = study_id or (stated.pop() if len(stated) == 1 else "") or first.absolute().parent.name
    return _new(name, {sequence: [path] for sequence, path in paths.items()})


def _in_folder(root: Path) -> Iterator[NewStudy]:
    unread: list[str] = []
    unused: list[str] = []
    read = False
    alone: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for folder, subfolders, names in walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        # A folder named like a file holds that file, and so does EGD's 1_T1/NIFTI: they belong to the study above them.
        places = {name: Path(folder) / name / "NIFTI" for name in subfolders}
        inner = {name: children(place) for name, place in places.items() if os.path.isdir(place)}
        inner |= {name: [unwrapped(Path(folder) / name)] for name in subfolders if name.lower().endswith(NIFTI)}
        deeper = [] if depth >= DEEPEST else sorted(set(subfolders) - set(inner))
        subfolders[:] = [name for name in deeper if not name.startswith(".")]
        groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for name in sorted(names):
            if not name.startswith(".") and (stated := sequence_of(name)):
                groups[stated[1]][stated[0]].append(Path(folder) / name)
        for name, paths in sorted(inner.items()):
            for path in paths:
                if stated := sequence_of(path.name) or sequence_of(name):
                    groups[stated[1]][stated[0]].append(path)
        if not groups:
            unread += [str(Path(folder) / name) for name in sorted(names) if name.lower().endswith(NIFTI)][:1]
            continue
        read = True
        unused += [
            str(Path(folder) / name)
            for name in sorted(names)
            if name.lower().endswith(NIFTI)
            and not name.startswith(".")
            and not sequence_of(name)
            and not _OTHER_IMAGE.fullmatch(name.split(".nii")[0])
        ]
        for group in groups.values():
            for sequence, paths in group.items():  # as a cohort is read: the plain image where both are there
                group[sequence] = [
                    one for one in paths if f"{layouts.UCSF_CORRECTED}." not in one.name.lower()
                ] or paths
        own = Path(folder).absolute().name
        if len(groups) > 1 and all(len(group) > 1 for group in groups.values()):
            yield from (_new(prefix or own, group) for prefix, group in groups.items())
        else:
            merged: dict[str, list[Path]] = defaultdict(list)
            for group in groups.values():
                for sequence, paths in group.items():
                    merged[sequence] += paths
            if depth and len(merged) == 1 and own.casefold() in {name.casefold() for name in merged}:
                sequence, paths = next(iter(merged.items()))
                alone[Path(folder).absolute().parent][sequence] += paths  # FLAIR/FLAIR.nii.gz beside T1/T1.nii.gz
                continue
            yield _new(next(iter(groups)) if len(groups) == 1 and next(iter(groups)) else own, merged)
    for parent, merged in alone.items():
        yield _new(parent.name, merged)
    _tell(unread if read else [], unused)


def _tell(unread: Sequence[str], unused: Sequence[str]) -> None:
    """Warn of images whose names state no sequence: of folders that hold no others, and beside others."""
    named = "If one is needed, name it: flair=... t1=... t1c=... t2=..."
    for said, files, remedy in (("used", unused, named), ("read", unread, f"Expected {_EXPECTED}.")):
        if files:
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            logger.warning(
                "Not %s, since the names state no sequence: %s%s. %s", said, ", ".join(files[:3]), more, remedy
            )


def _in_table(path: Path) -> Iterator[NewStudy]:
    table = read_spreadsheet(path)
    wanted = {role: role for role in ("study_id", "patient_id", *SEQUENCES)}
    columns = match_columns(table.columns, wanted, path, settings=False)
    sequences = [sequence for sequence in SEQUENCES if sequence in columns]
    if "study_id" not in columns or not sequences:
        lacking = "study_id" if sequences else "of a sequence"
        raise CohortError(
            f"{path}: no column {lacking} among {', '.join(map(repr, list(table.columns)[:40]))}; expected study_id "
            f"and one of {', '.join(SEQUENCES)} or more. Rename the columns."
        )
    for fault in unused_images(table, {"mask": "", **columns}, path):
        logger.warning("%s: %s; expected %s. If it is one, rename it.", fault.where, fault.found, fault.expected)
    for number, row in table.iterrows():
        candidates = {name: files_named(row[columns[name]], path.parent) for name in sequences if row[columns[name]]}
        carried = {str(name): text for name, text in row.items() if name not in columns.values()}
        yield _new(row[columns["study_id"]], candidates, otherwise=f"row_{number}", carried=carried)


def _new(
    name: str,
    candidates: Mapping[str, Sequence[Path]],
    *,
    otherwise: str = "study",
    carried: Mapping[str, object] | None = None,
) -> NewStudy:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[:100]
    study_id = name if names_a_file(name) else safe or otherwise
    files, problems = {}, []
    for sequence in SEQUENCES:
        if sequence in candidates:
            file, problem = one_file(candidates[sequence], sequence)
            if file is None:
                problems.append(problem)
            else:
                files[sequence] = file
    if not files and not problems:
        problems.append("no file is named")
    if problems:
        remedy = "Correct the names, or name each file: flair=... t1=... t1c=... t2=..."
        return NewStudy(study_id=study_id, study=None, problem=f"{'; '.join(problems)}. {remedy}")
    study = Study(study_id=study_id, patient_id=study_id, label=0, files=files, carried=carried or {})
    return NewStudy(study_id=study_id, study=study)


def _named_once(studies: Iterator[NewStudy]) -> list[NewStudy]:
    """Return the studies sorted, those that share a name numbered."""
    found = sorted(studies, key=lambda new: new.study_id)
    names = {new.study_id for new in found}
    seen: dict[str, int] = defaultdict(int)
    taken: list[NewStudy] = []
    for new in found:
        seen[new.study_id] += 1
        if (times := seen[new.study_id]) > 1:
            numbered = (f"{new.study_id}_{number}" for number in count(times))
            names.add(study_id := next(name for name in numbered if name not in names))
            study = new.study and replace(new.study, study_id=study_id)
            where = f": {next(iter(new.study.files.values())).parent}" if new.study else ""
            logger.warning(
                "%s is the name of several studies; number %d is called %s%s", new.study_id, times, study_id, where
            )
            new = replace(new, study_id=study_id, study=study)
        taken.append(new)
    return taken
