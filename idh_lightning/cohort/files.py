"""Which files are there: look-ups that answer for any path, however odd, as those of os.path do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from idh_lightning.errors import CohortError

NIFTI: tuple[str, ...] = (".nii", ".nii.gz")


def from_home(path: str | Path) -> Path:
    """Return a path with a leading ~ replaced by the home folder it stands for; one that stands for none is left."""
    return Path(os.path.expanduser(path))


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield folder, subfolders and file names as `os.walk` does, links to folders included, and each folder once."""
    seen: set[str] = set()
    for folder, inside, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            inside.clear()
            continue
        seen.add(place)
        yield folder, inside, names


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the NIfTI files of a folder whose whole name before `.nii` or `.nii.gz` matches a regular expression."""
    expression = re.compile(rf"(?:{pattern})\.nii(?:\.gz)?", re.IGNORECASE)
    return [unwrapped(child) for child in children(folder) if expression.fullmatch(child.name)]


def unwrapped(path: Path) -> Path:
    """Return a file; of a folder that is named like a NIfTI file, as some copies have it, the only image in it."""
    if path.name.lower().endswith(NIFTI) and os.path.isdir(path):
        inside = [child for child in children(path) if child.name.lower().endswith(NIFTI) and child.name[0] != "."]
        return inside[0] if len(inside) == 1 else path
    return path


def images_in(folder: Path, *, most: int = 8) -> str:
    """Return in words which images lie in a folder and in the folders below it."""
    names = sorted(
        {os.path.relpath(f"{at}/{n}", folder) for at, _, ns in walk(folder) for n in ns if n.lower().endswith(NIFTI)}
    )
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{folder} holds {', '.join(names[:most])}{more}" if names else f"{folder} holds no image"


def subfolders(folder: str | Path) -> list[Path]:
    """Folders in a folder and one level down, sorted; a CohortError if it is none or cannot be listed."""
    folder = from_home(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):
        raise CohortError(
            f"{str(folder)[:300]}: no such folder, or not readable; expected the studies of the cohort. Correct "
            "cohort.folder."
        )
    first = [child for child in children(folder) if os.path.isdir(child)]
    return sorted([*first, *(child for parent in first for child in children(parent) if os.path.isdir(child))])


def children(folder: Path) -> list[Path]:
    """Contents of a folder, sorted; nothing where it does not exist or cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def files_named(text: str, root: Path) -> list[Path]:
    """Return the files that a table entry stands for: none if it is blank, several if a pattern fits several.

    The entry is a path, absolute or relative to `root`, possibly with `*`, `?` or `[...]`.
    """
    if not text:
        return []
    if not os.path.isfile(root / from_home(text)):
        text = text.replace("\\", "/")  # as Windows writes it
    path = unwrapped(root / from_home(text))
    if os.path.isfile(path) or not re.search(r"[*?[]", text) or "**" in text or "\0" in text:
        return [path]
    try:
        base = Path(path.anchor) if path.anchor else Path()
        return sorted(map(unwrapped, base.glob(str(path.relative_to(base))))) or [path]
    except (OSError, ValueError, NotImplementedError, re.error):  # not a pattern either: reported as a missing file
        return [path]


def one_file(candidates: Sequence[Path], what: str) -> tuple[Path | None, str]:
    """Return the only candidate if it is a NIfTI file, else None and what is wrong."""
    if len(candidates) > 1:
        return None, f"{len(candidates)} files could be {what}: {', '.join(str(p)[-120:] for p in candidates[:4])}"
    if not candidates:
        return None, f"no {what}"
    path = candidates[0]
    if os.path.isdir(path):
        return None, f"{what} is {str(path)[-200:]!r}, which is not there as a file but as a folder"
    if not os.path.isfile(path):
        return None, f"{what} is {str(path)[-200:]!r}, which is not there"
    nifti = path.name.lower().endswith(NIFTI)
    return (path, "") if nifti else (None, f"{what} is {path.name[-200:]!r}, not a NIfTI file")
