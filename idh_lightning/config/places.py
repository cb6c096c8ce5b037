"""Files and folders that the settings name and that are not there, told before anything else is looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from idh_lightning.errors import ConfigError

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


def in_source(text: str, source: str) -> str:
    """Message with the settings of one source where they stand in the configuration of a combined cohort."""
    return _OF_A_SOURCE.sub(f"cohort.readers.{source}.", text)


def refuse_absent_places(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError that lists every path of a configuration which is to be read and does not exist."""
    if absent := list(_absent_places(config)):
        raise ConfigError("\n".join(absent))


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
