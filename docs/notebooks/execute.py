"""Run the notebooks of this folder and keep their outputs: `python docs/notebooks/execute.py`, after a change to one.

Each is run in a temporary copy of the repository's layout, in order of `ORDER`, so that the second and the third find
the run of the first. What a file keeps names no folder, user, machine or time.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
ORDER = ("train", "judge", "new_patient")


def execute(name: str, root: Path) -> nbformat.NotebookNode:
    """Notebook of this folder with the outputs of a run in `root`, where it finds what others have left there."""
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    folder = root / "docs" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=resources).execute()
    return _impersonal(notebook, root)


def _impersonal(notebook: nbformat.NotebookNode, root: Path) -> nbformat.NotebookNode:
    """Notebook without the folder it ran in, times of the log and what the kernel says of itself."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.metadata = {} if "metadata" in output else output.get("metadata")
            if "text" in output:
                output.text = re.sub(
                    r"^\[\d\d:\d\d:\d\d\] ", "", output.text.replace(f"{root}/", ""), flags=re.MULTILINE
                )
    return notebook


def main() -> None:
    """Run all of them and write them back."""
    os.environ["COLUMNS"] = "110"
    with tempfile.TemporaryDirectory() as root:
        for name in ORDER:
            nbformat.write(execute(name, Path(root).resolve()), HERE / f"{name}.ipynb")
            sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
