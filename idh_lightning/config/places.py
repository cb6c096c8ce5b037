"""Files and folders that the settings name and that cannot be used, told before anything else is looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from idh_lightning.errors import ConfigError

LONGEST_NAME = 255
"""Bytes of a file's or folder's name."""

SHIPPED = "pretrained"
"""Stands, in place of a path, for the network in the package, learnt from synthetic patients alone."""

_WRITTEN = "idh_lightning.phantom.PhantomCohort"
"""Reader whose folder is made if it is not there."""

_EXPECTED: Mapping[str, str] = {
    "input": "no such folder; expected a folder with the images of one study or of many, or a table",
    "cohort.table": "no such file; expected the table of the cohort",
    "cohort.folder": "no such folder; expected the studies of the cohort",
    "cohort.aliases": "no such file; expected a table of the names that persons have",
    "split.file": "no such file; expected the cohort.csv of a run, or a table like it",
    "checkpoint": "there is no such file; expected a checkpoint: a run folder or a .ckpt",
    "runs": "there is no such folder; expected a run folder, or a folder that holds some",
}
"""Setting -> what is said of a path in it that does not exist."""

_OF_A_SOURCE = re.compile(
    r"\bcohort\.(?=(target|classes|vocabulary|columns|table|folder|aliases|exclude|sequences|bias_corrected|patients"
    r"|spacing_mm|seed|workers|control|missing_sequence)\b)"
)
"""Before the settings that each source of a combined cohort has of its own."""

_ABSOLUTE = re.compile(r"~?/|~?\\|[A-Za-z]:[/\\]")
"""Begin of an absolute path on any system, or of one in the home folder."""

_QUOTED_PATH = re.compile(rf"(?<=')(?:{_ABSOLUTE.pattern})[^']*(?=')")
"""Such a path in a sentence, as errors of the system have it."""


def in_source(text: str, source: str) -> str:
    """Message with the settings of one source where they stand in the configuration of a combined cohort."""
    return _OF_A_SOURCE.sub(f"cohort.readers.{source}.", text)


def without_folders(value: Any) -> Any:
    """Primitives, such as a recipe, in which of each absolute path its last part alone is left.

    What is shared shows no folder of whoever made it, and there would be nothing elsewhere.
    """
    if isinstance(value, Mapping):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(one) for one in value]
    if not isinstance(value, str):
        return value
    return PureWindowsPath(value).name if _ABSOLUTE.match(value) else _QUOTED_PATH.sub(_last_part, value)


def absolute_paths(value: Any) -> Iterator[str]:
    """Yield those that `without_folders` shortens, where they stand alone."""
    if isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from absolute_paths(one)
    elif isinstance(value, str) and _ABSOLUTE.match(value):
        yield value


def _last_part(path: re.Match[str]) -> str:
    return PureWindowsPath(path[0]).name


def refuse_unfit_places(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError that lists each path to read that does not exist, and each folder to write that is none."""
    if faults := [*_absent_places(config), *_taken_places(config)]:
        raise ConfigError("\n".join(faults))


def _taken_places(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a fault for each folder to write into where a file stands, or would stand above it."""
    named = {"output": config.get("output")}
    named |= {f"paths.{name}": place for name, place in (config.get("paths") or {}).items()}
    if (cohort := config.get("cohort") or {}).get("_target_") == _WRITTEN:
        named["cohort.folder"] = cohort.get("folder")
    for key, value in named.items():
        if not isinstance(value, str):
            continue
        place = Path(value).absolute()
        if longest := next((part for part in place.parts if len(os.fsencode(part)) > LONGEST_NAME), ""):
            yield (
                f"{key}: {longest[:40]}... is a name of {len(os.fsencode(longest))} bytes; expected at most "
                f"{LONGEST_NAME}, as file systems do. Give a shorter one."
            )
            continue
        above = place.parents if "format" in config else (place, *place.parents)  # what is exported may be a file
        there = next(one for one in above if one.exists())
        if not there.is_dir():
            yield f"{key}: {value}: {there} is a file; expected a folder to write into. Give another {key}."


def _absent_places(config: Mapping[str, Any]) -> Iterator[str]:
    for key, kind, value in _named(config):
        for place in value if isinstance(value, list) else [value]:
            named = isinstance(place, str) and place not in (SHIPPED, "last") and not place.startswith("hf://")
            if named and not os.path.exists(os.path.expanduser(place)):
                yield f"{key}: {place[:300]}: {_EXPECTED[kind]}. Correct {key}."


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the settings that name something to read: key, its entry in _EXPECTED, value."""
    for key in ("input", "checkpoint", "runs"):
        yield key, key, config.get(key)
    yield "split.file", "split.file", (config.get("split") or {}).get("file")
    yield from _of_cohort("cohort", config.get("cohort"))


def _of_cohort(path: str, section: Any) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(section, Mapping) or section.get("_target_") == _WRITTEN:
        return
    for key, value in section.items():
        if key in ("table", "folder", "aliases"):
            yield f"{path}.{key}", f"cohort.{key}", value
        else:
            yield from _of_cohort(f"{path}.{key}", value)
