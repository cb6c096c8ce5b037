"""The package stays easy to live in: short files and functions, every public name once, docstrings without riddles."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


PROJECT = PACKAGE.parent / "pyproject.toml"


def required(group: str = "") -> dict[str, Requirement]:
    """Name -> requirement, of the package or of one of its extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][group] if group else project["dependencies"]
    return {one.name: one for one in map(Requirement, lines)}


def test_every_required_package_is_imported_or_says_why_it_is_there() -> None:
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    imported = {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    modules = {"scikit-learn": "sklearn", "scikit-image": "skimage", "hydra-core": "hydra"}
    explained = set(re.findall(r'^  "([\w.-]+)[^"]*",  # ', PROJECT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in required() if modules.get(name, name) not in imported} <= explained


@pytest.mark.parametrize(
    ("package", "version"), [("torchio", "2.0.0a2"), ("torchio", "2.0"), ("nilearn", "0.15.0"), ("optuna", "6.0")]
)
def test_a_version_that_drops_what_is_used_here_is_not_taken(package: str, version: str) -> None:
    assert not (required() | required("sweeps"))[package].specifier.contains(version, prereleases=True)


def test_searches_use_no_private_name_of_optuna() -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if "optuna" in path.read_text(encoding="utf-8")]
    assert sources
    for path in sources:
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert not {"_storage", "_study_id", "_trial_id"} & used, path
