"""Settings of the files in conf/ with their defaults and the comments beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]

_INTERNAL = re.compile(r"hydra[./](?:job|callbacks|output_subdir).*|.*\._partial_|_target_|.*\._target_")
"""Keys that no user sets."""


class DocumentedSetting(NamedTuple):
    """DocumentedSetting of a file in conf/.

    Attributes:
        key: As it is written on a command line.
        default: As it is written in the file.
        comment: The words beside it.
        is_group: Whether it chooses a file of the folder of that name in conf/.
    """

    key: str
    default: str
    comment: str
    is_group: bool = False


def opening_lines(file: Path) -> list[str]:
    """Lines of the comment that a file begins with, without its marks."""
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            head.append(line.lstrip("#").strip())
    return head


def documented_settings(file: Path) -> list[DocumentedSetting]:
    """Settings of a file in its order: those of a folder in conf/ with the folder's name before them."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    of_run = file.parent.name == "conf" or "# @package _global_" in lines
    return list(_settings(yaml.compose(text), lines, "" if of_run else file.parent.name))


def _settings(
    node: yaml.Node | None, lines: list[str], group: str, path: str | None = None
) -> Iterator[DocumentedSetting]:
    path = group if path is None else path
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{path}.{key.value}" if path else key.value
        said = _comment(key, value, lines)
        if name in ("defaults", f"{group}.defaults"):
            yield from _choices(value, lines)
        elif _INTERNAL.fullmatch(name):
            continue
        elif isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            if said:
                yield DocumentedSetting(name, "", said)
            yield from _settings(value, lines, group, name)
        else:
            yield DocumentedSetting(name, _source(value, lines), said)


def _choices(node: yaml.Node, lines: list[str]) -> Iterator[DocumentedSetting]:
    """Yield the groups that a command is composed of."""
    for item in node.value:
        if not isinstance(item, yaml.MappingNode):
            continue  # _self_, or a file of the same group
        ((key, value),) = item.value
        group = key.value.removeprefix("optional ").removeprefix("override ").lstrip("/")
        if not _INTERNAL.fullmatch(group):
            yield DocumentedSetting(group, value.value, _comment(key, value, lines), is_group=True)


def _source(value: yaml.Node, lines: list[str]) -> str:
    """Default as it is written in the file."""
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return "[" + ", ".join(_source(item, lines) for item in value.value) + "]"
    start, end = value.start_mark, value.end_mark
    text = " ".join(
        line[start.column if number == start.line else 0 : end.column if number == end.line else None]
        for number, line in enumerate(lines[start.line : end.line + 1], start.line)
    )
    return re.sub(r"\s+", " ", text).strip()


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    """Comment behind a value, or behind a key whose values follow, and the comment lines that go on with it."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = key.end_mark if block else value.end_mark
    number = mark.line
    found = re.search(r"(?:^|\s)#\s*(.*)$", lines[number][mark.column :])
    if found is None:
        return ""
    words, column = [found[1]], lines[number].index("#", mark.column)
    for line in lines[number + 1 :]:
        if line[:column].strip() or line[column : column + 1] != "#":
            break
        words.append(line[column:].lstrip("# "))
    return " ".join(words).strip()
