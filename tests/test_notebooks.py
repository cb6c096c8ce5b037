"""The notebooks in docs/: short, kept with outputs that name nobody, and run from nothing."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def kinds(notebook: nbformat.NotebookNode) -> list[list[object]]:
    """Kinds of output of each cell: not the numbers, which differ a little between machines."""
    return [[sorted(output.get("data", [output.get("name")])) for output in cell.get("outputs", [])]
            for cell in notebook.cells]  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """The script that runs them."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_has_its_outputs_and_names_no_machine_and_no_folder(name: str) -> None:
    notebook, text = read(name), (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(notebook.cells) <= 12
    assert sum(map(bool, kinds(notebook))) >= 4
    assert set(notebook.metadata) == {"kernelspec"}
    assert not any(cell.metadata for cell in notebook.cells)
    told = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert re.search(r"/tmp|/home|/root|/Users|\[\d\d:\d\d|Traceback|Warning", told) is None
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert f"(notebooks/{name}.ipynb)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_links_of_the_notebooks_lead_somewhere_and_their_pictures_are_small(runner: ModuleType) -> None:
    assert sorted(runner.ORDER) == NAMES
    size = 0
    for name in NAMES:
        for cell in read(name).cells:
            size += sum(len(output.get("data", {}).get("image/png", "")) for output in cell.get("outputs", []))
            if cell.cell_type == "markdown":
                for link in re.findall(r"\]\(([^)#]+)", cell.source):
                    assert (FOLDER / link).is_file(), link
    assert size < 60_000


@pytest.mark.slow
def test_the_notebooks_run_one_after_the_other_and_give_what_is_kept_in_them(
    runner: ModuleType, tmp_path: Path
) -> None:
    for name in runner.ORDER:
        done, kept = runner.execute(name, tmp_path.resolve()), read(name)
        assert kinds(done) == kinds(kept)
        assert [cell.source for cell in done.cells] == [cell.source for cell in kept.cells]
