"""Page that `--help` prints: what a command does, examples, its choices and the settings that matter."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.comments import DocumentedSetting, documented_settings, opening_lines

_FURTHER: dict[str, dict[str, Sequence[str]]] = {
    "train": {
        "cohort/table": ("cohort.table",),
        "data/feature_bank": ("data.batches.batch_size",),
        "trainer/default": ("trainer.max_epochs", "trainer.precision"),
        "optimizer/adamw": ("optimizer.lr",),
    },
    "prepare": {"cohort/table": ("cohort.table", "cohort.on_error")},
    "evaluate": {"cohort/table": ("cohort.table", "cohort.on_error")},
    "explain": {"explanation/default": ("explanation.studies", "explanation.faithfulness_studies")},
}
"""Command -> files in conf/ -> those of their settings that matter beside the command's own."""

_UNSAID = re.compile(r"name|fold|control|(locating|monitor|callbacks|data|explanation)(\..*)?|paths\.(data|bank)")
"""Settings of a command's own file that few need to know."""

_OPTIONS = {
    "--cfg job": "print every setting with its value, and run nothing",
    "-m, --multirun": "a run for each of several values: seed=0,1,2",
    "--resume FOLDER": "go on with a run, or a sweep, that was stopped",
    "--rerun FOLDER": "repeat a run, from its recipe",
}
_REST = "All settings: docs/reference/configuration.md. A misspelt one is answered with the one that is meant."


def help_page(name: str) -> str:
    """Page of a command in the width of the terminal, at most 100 columns, made from the comments in conf/."""
    width = min(100, shutil.get_terminal_size().columns)
    file = CONF_DIR / f"{name}.yaml"
    sentence, *examples = opening_lines(file)
    settings = documented_settings(file)
    groups = [one for one in settings if one.is_group and len(list((CONF_DIR / one.key).glob("*.yaml"))) > 1]
    own = [one for one in settings if not one.is_group and one.comment and not _UNSAID.fullmatch(one.key)]
    options = [
        DocumentedSetting(key, "", words) for key, words in _OPTIONS.items() if name == "train" or key == "--cfg job"
    ]
    blocks = (
        [f"python -m idh_lightning.{name} [KEY=VALUE ...]"],
        textwrap.wrap(sentence, width),
        ["Examples:", *_examples(examples, width)],
        _listed("Choices, GROUP=FILE:", [_with_files(one) for one in groups], width),
        _listed("Settings, KEY=VALUE:", [*own, *_further(name)], width),
        _listed("Options:", options, width),
        textwrap.wrap(_REST, width),
    )
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _examples(commands: Sequence[str], width: int) -> Iterator[str]:
    """Yield each example under the words behind it, for a shell of any width."""
    for command in commands:
        typed, _, words = command.partition(" # ")
        pieces = textwrap.wrap(typed.strip(), width - 8, break_long_words=False, break_on_hyphens=False)
        yield from ([f"  # {words}"] if words else [])
        yield "  " + " \\\n      ".join(pieces)


def _with_files(group: DocumentedSetting) -> DocumentedSetting:
    """Group with the files that it may choose where its comment does not tell them."""
    files = ", ".join(sorted(file.stem for file in (CONF_DIR / group.key).glob("*.yaml")))
    return group._replace(comment=group.comment or files)


def _further(name: str) -> Iterator[DocumentedSetting]:
    for file, keys in _FURTHER.get(name, {}).items():
        yield from (one for one in documented_settings(CONF_DIR / f"{file}.yaml") if one.key in keys)


def _listed(heading: str, settings: Sequence[DocumentedSetting], width: int) -> list[str]:
    """Lines of a list: key and default, then the comment beside it, in the columns that are left."""
    if not settings:
        return []
    names = [f"  {one.key}" + (f"={one.default}" if one.default else "") for one in settings]
    column = min(32, max(map(len, names)) + 2)
    lines = [heading]
    for name, one in zip(names, settings, strict=True):
        said = textwrap.wrap(one.comment, width - column) or [""]
        if len(name) > column - 2:
            lines.append(name)
            name = ""
        lines += [f"{name:{column}}{said[0]}".rstrip(), *(f"{'':{column}}{line}" for line in said[1:])]
    return lines
