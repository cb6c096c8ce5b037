#!/usr/bin/env bash
# A package whose names are loaded when they are first used (lazy_loader's attach_stub, or any module __getattr__) says
# "cannot import name 'Method' from 'rooms'" where the module that holds the name is there, holds it, and fails with an
# AttributeError of its own while it is imported: Python's `from ... import ...` takes that AttributeError for "no such
# name", and keeps it neither as cause nor as context. Of any other error, and of the same module imported by its own
# name, the real message is seen. One would expect the real error, or at least a chain that leads to it.
# Seen with lazy_loader 0.6 (PyPI) and CPython 3.11. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lazy_loader==0.6
mkdir "$folder/rooms"
cd "$folder"
cat > rooms/__init__.py <<'PYTHON'
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
PYTHON
printf 'from .maps import Method\nfrom .scores import Score\n' > rooms/__init__.pyi
printf 'import math\n\nclass Method:\n    turn = math.half_turn\n' > rooms/maps.py
printf 'import math\n\nclass Score:\n    turn = math.sqrt(-1)\n' > rooms/scores.py
"$folder/venv/bin/python" - <<'PYTHON'
import importlib
import importlib.metadata
import platform
import sys

print({"lazy_loader": importlib.metadata.version("lazy_loader"), "Python": platform.python_version()})


def said(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error).split(" (")[0], error.__cause__ or error.__context__


def by_name(name):
    return lambda: exec(f"from rooms import {name}", {})


hidden, seen, alone = said(by_name("Method")), said(by_name("Score")), said(lambda: importlib.import_module("rooms.maps"))
print("from rooms import Method: expected an AttributeError about math.half_turn; seen", hidden)
print("from rooms import Score, which fails with a ValueError:", seen[:2])
print("import rooms.maps:", alone[:2])
as_before = (
    hidden[0] == "ImportError" and "cannot import name" in hidden[1] and hidden[2] is None
    and seen[0] == "ValueError" and alone[0] == "AttributeError" and "half_turn" in alone[1]
)
sys.exit(not as_before)
PYTHON
