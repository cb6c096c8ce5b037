"""A command line run in this process: a new one first imports everything, for seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch


def run_here(main: Callable[[], None], *arguments: str, folder: Path) -> CompletedProcess[str]:
    """Return status and text of a command in a folder, as `subprocess.run` returns them of a process."""
    said, complained, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        patch.object(sys, "argv", ["command", *arguments]),
        patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
        _logging_as_it_was(),
    ):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return CompletedProcess(arguments, status, said.getvalue(), complained.getvalue())


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Take back what a command sets for its process."""
    root, *others = loggers = [logging.getLogger(name) for name in (None, "idh_lightning", "__main__")]
    handlers, levels = list(root.handlers), [logger.level for logger in loggers]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip((root, *others), levels, strict=True):
            logger.setLevel(level)
