#!/usr/bin/env bash
# A template of Jinja2 with autoescaping gives back `markupsafe.Markup` from a macro, a kind of str that prints, compares,
# joins and is written as JSON as any str is. torch.save takes a checkpoint with such a text without a
# word; torch.load(weights_only=True), the default, refuses the whole file, weights and all, while the same text as plain
# str is read. One would expect torch to refuse when it writes, or to keep the characters.
# Seen with torch 2.14.1, Jinja2 3.1.6 and MarkupSafe 3.0.4 (PyPI). Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 Jinja2==3.1.6 MarkupSafe==3.0.4 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import json
import sys

import torch
from jinja2 import Environment

print({name: importlib.metadata.version(name) for name in ("torch", "Jinja2", "MarkupSafe")})
template = Environment(autoescape=True).from_string("{% macro card(n) %}{{ n }} patients{% endmacro %}")
text = template.module.card(37)
plain = str.__str__(text)[:]
assert isinstance(text, str) and text == "37 patients" and json.dumps(text) == '"37 patients"'
for name, value in (("plain", "".join(plain)), ("rendered", text)):
    torch.save({"weight": torch.ones(2), "card": value}, f"{name}.pt")
    try:
        found = f"read, card {torch.load(f'{name}.pt')['card']!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[-1][:80]}"
    print(f"card as {type(value).__name__}: saved without a message; expected to be read; {found}")
    if (name == "plain") != found.startswith("read"):
        sys.exit(1)
PYTHON
