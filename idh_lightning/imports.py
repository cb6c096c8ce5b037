"""Import of python-gdcm, which whatever is called `dl` in the user's folder would break."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def hide_dl_from_gdcm() -> None:
    """Let python-gdcm be imported as if nothing were called `dl`.

    It asks for that module of Python 2 first (3.2.6). A folder of this name where a command is started is found
    instead, and pydicom, which imports python-gdcm, then cannot be imported at all.
    """
    if not any(isinstance(finder, _WithoutDL) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutDL())


class _WithoutDL(MetaPathFinder):
    """Finder of gdcm alone."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Spec of gdcm that is executed without `dl`; None for every other module."""
        spec = PathFinder.find_spec(fullname, path) if fullname == "gdcm" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def without_dl(module: ModuleType) -> None:
            known: Any = sys.modules.get("dl", self)
            sys.modules["dl"] = None  # type: ignore[assignment]
            try:
                execute(module)
            finally:
                del sys.modules["dl"]
                if known is not self:
                    sys.modules["dl"] = known

        spec.loader.exec_module = without_dl  # type: ignore[method-assign]
        return spec
