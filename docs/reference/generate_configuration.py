"""Reference of the settings, made from the comments in conf/: `python docs/reference/generate_configuration.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

PAGE = Path(__file__).with_name("configuration.md")
CONF = Path(__file__).resolve().parents[2] / "conf"

COMMANDS = ("train", "predict", "evaluate", "explain", "report", "prepare", "export", "benchmark", "phantom")

INTRODUCTION = """\
# Configuration

Every setting with its default, in the words of the comments in `conf/`. This page is generated from them: after a
change there, `make docs` writes it anew, and a test fails while it is stale.

A command is composed from a file of its own and one file of each folder (a *group*) that it names under `defaults`.
`GROUP=FILE` on the command line chooses another file, `KEY=VALUE` sets one value, `~KEY` takes an entry away, and
`+KEY=VALUE` adds one that the file does not list. Keys are written with dots: `optimizer.lr=1e-4`. A misspelt key or
choice is refused, with the one that is meant. `--cfg job` behind any command prints what it would use.
"""

_CODE = re.compile(
    r"`[^`]*`"  # marked as code already
    r"|python -m idh_lightning\.\w+(?:\s+(?:-m\b|--\w+|\.\.\.|\[[^]]*\]|\+?[\w@.]+=\S+))*"
    r"|'[\w@.]+=[^']*'|[\w@.]+=\"[^\"]*\""
    r"|(?<![\w`])[+~]?[\w@.]+=(?:\S*\.\.\.|\S*[^\s.,;:)])"
)
"""Commands and settings within a comment."""

_INTERNAL = re.compile(r"hydra[./](?:job|callbacks|output_subdir).*|.*\._partial_|_target_|.*\._target_")
"""Keys that no user sets."""


def page() -> str:
    """Reference page for every file in conf/."""
    parts = [INTRODUCTION, "## Commands"]
    parts += [_described(CONF / f"{name}.yaml", f"### `python -m idh_lightning.{name}`") for name in COMMANDS]
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        parts.append(f"## `{group.name}`")
        parts += [_described(file, f"### `{group.name}={file.stem}`") for file in sorted(group.glob("*.yaml"))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _described(file: Path, heading: str) -> str:
    """Section for one file: its heading, its introductory comment and a table of its keys."""
    lines = file.read_text(encoding="utf-8").splitlines()
    group = "" if file.parent == CONF or "# @package _global_" in lines else file.parent.name
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            head.append(line.lstrip("#").strip())
    if "not by Hydra" in " ".join(head):
        return "\n\n".join((heading, "\n".join(("```text", *head, "```"))))
    rows = list(_rows(yaml.compose("\n".join(lines)), lines, group))
    table = ["| key | default | meaning |", "| --- | --- | --- |", *rows] if rows else []
    return "\n\n".join(filter(None, (heading, _in_code(_joined(head)), "\n".join(table))))


def _joined(lines: list[str]) -> str:
    """Lines of a comment as one paragraph; a line that ends without a mark before a capital letter ends a sentence."""
    text = re.sub(r"([^.:,;?(])\n(?=[A-Z])", r"\1. ", "\n".join(lines))
    return re.sub(r"\s+", " ", text)


def _rows(node: yaml.Node | None, lines: list[str], group: str, path: str | None = None) -> Iterator[str]:
    """Rows of a table, one per value that can be set."""
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
                yield _row(name, "", said)
            yield from _rows(value, lines, group, name)
        else:
            yield _row(name, _source(value, lines), said)


def _choices(node: yaml.Node, lines: list[str]) -> Iterator[str]:
    """Rows of the groups that a command is composed of."""
    for item in node.value:
        if not isinstance(item, yaml.MappingNode):
            continue  # _self_, or a file of the same group
        ((key, value),) = item.value
        group = key.value.removeprefix("optional ").removeprefix("override ").lstrip("/")
        if _INTERNAL.fullmatch(group):
            continue
        linked = f"[`{group}`](#{group})" if (CONF / group).is_dir() else f"`{group}`"
        yield f"| {linked} | `{value.value}` | {_in_code(_comment(key, value, lines))} |".replace("|  |", "| |")


def _row(name: str, default: str, said: str) -> str:
    shown = f"`{default}`" if default else ""
    return f"| `{name}` | {shown} | {_in_code(said)} |".replace("|  |", "| |")


def _source(value: yaml.Node, lines: list[str]) -> str:
    """Default as it is written in the file."""
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return "[" + ", ".join(_source(item, lines) for item in value.value) + "]"
    start, end = value.start_mark, value.end_mark
    text = " ".join(
        line[start.column if number == start.line else 0 : end.column if number == end.line else None]
        for number, line in enumerate(lines[start.line : end.line + 1], start.line)
    )
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


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


def _in_code(text: str) -> str:
    """Text with its commands and settings set as code, safe within a table."""
    pieces, last = [], 0
    for match in _CODE.finditer(text):
        pieces += [_escaped(text[last : match.start()]), f"`{match[0].strip('`')}`"]
        last = match.end()
    return "".join([*pieces, _escaped(text[last:])]).replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"[*_<[\]]", r"\\\g<0>", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
