"""Reference of the settings, made from the comments in conf/: `python docs/reference/generate_configuration.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.comments import DocumentedSetting, documented_settings, opening_lines

PAGE = Path(__file__).with_name("configuration.md")

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


def page() -> str:
    """Reference page for every file in conf/."""
    parts = [INTRODUCTION, "## Commands"]
    parts += [_described(CONF_DIR / f"{name}.yaml", f"### `python -m idh_lightning.{name}`") for name in COMMANDS]
    for group in sorted(path for path in CONF_DIR.iterdir() if path.is_dir()):
        parts.append(f"## `{group.name}`")
        parts += [_described(file, f"### `{group.name}={file.stem}`") for file in sorted(group.glob("*.yaml"))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _described(file: Path, heading: str) -> str:
    """Section for one file: its heading, its introductory comment and a table of its keys."""
    head = opening_lines(file)
    if "not by Hydra" in " ".join(head):
        return "\n\n".join((heading, "\n".join(("```text", *head, "```"))))
    rows = [_row(setting) for setting in documented_settings(file)]
    table = ["| key | default | meaning |", "| --- | --- | --- |", *rows] if rows else []
    words = [line for line in head if not line.startswith("python -m")]
    examples = ["```bash", *(line for line in head if line.startswith("python -m")), "```"]
    parts = (heading, _in_code(_joined(words)), "\n".join(examples if examples[1:-1] else []), "\n".join(table))
    return "\n\n".join(filter(None, parts))


def _joined(lines: list[str]) -> str:
    """Lines of a comment as one paragraph; a line that ends without a mark before a capital letter ends a sentence."""
    text = re.sub(r"([^.:,;?(])\n(?=[A-Z])", r"\1. ", "\n".join(lines))
    return re.sub(r"\s+", " ", text)


def _row(setting: DocumentedSetting) -> str:
    name = f"`{setting.key}`"
    if setting.is_group and (CONF_DIR / setting.key).is_dir():
        name = f"[{name}](#{setting.key})"
    default = setting.default.replace("|", "\\|")
    shown = f"`{default}`" if default else ""
    return f"| {name} | {shown} | {_in_code(setting.comment)} |".replace("|  |", "| |")


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
