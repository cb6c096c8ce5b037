"""The package stays easy to live in: short files and functions, every public name once, docstrings without riddles."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import idh_lightning

PACKAGE = Path(idh_lightning.__file__).parent
TREES = {file.relative_to(PACKAGE): ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}
EVERYWHERE = ("main", "command", "logger")
"""What every command, or every module, has of its own."""

RIDDLES = ("What", "Return what", "Give", "Inside")


def public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_no_file_is_longer_than_450_lines() -> None:
    lines = {name: len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in TREES}
    assert {name: number for name, number in lines.items() if number > 450} == {}


def test_no_function_is_longer_than_60_lines_without_its_docstring() -> None:
    lengths = {}
    for name, tree in TREES.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            words = len((ast.get_docstring(node, clean=False) or "").splitlines())
            lengths[f"{name}:{node.name}"] = (node.end_lineno or 0) - node.lineno + 1 - words
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_every_public_name_stands_once() -> None:
    found = Counter(name for tree in TREES.values() for name in public_names(tree) if not name.startswith("_"))
    assert {name for name, times in found.items() if times > 1 and name not in EVERYWHERE} == set()


def test_no_docstring_begins_as_a_riddle() -> None:
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    documented = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module))
    first = (ast.get_docstring(node) or "" for node in documented)
    assert [text for text in first if text.startswith(tuple(f"{riddle} " for riddle in RIDDLES))] == []
