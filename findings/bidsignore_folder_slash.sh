#!/usr/bin/env bash
# bids-validator-deno 3.0.2 (PyPI): a line of .bidsignore that ends in a slash, as the line for a folder of a .gitignore
# does and as other BIDS pipelines write it ("figures/"), passes over no folder, neither at the top of the dataset nor
# below a subject: the folder is still an error, NOT_INCLUDED, and so with "sub-*/figures/" and "**/figures/**". The same
# line without the slash, "figures", passes it over. So a dataset of derivatives with pictures in sub-01/figures, whose
# .bidsignore a person has read and found right, is called invalid.
# Seen with bids-validator-deno 3.0.2 and deno 2.9.8. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet bids-validator-deno==3.0.2 deno==2.9.8
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import json
import pathlib
import subprocess
import sys

folder = pathlib.Path(sys.argv[1])
print({name: importlib.metadata.version(name) for name in ("bids-validator-deno", "deno")})
description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}
as_seen = True
for line, place, expected, seen in (
    ("figures/", "figures", False, True),
    ("figures/", "sub-01/figures", False, True),
    ("sub-*/figures/", "sub-01/figures", False, True),
    ("**/figures/**", "sub-01/figures", False, True),
    ("figures", "sub-01/figures", False, False),
):
    dataset = folder / f"dataset_{abs(hash((line, place)))}"
    (dataset / place).mkdir(parents=True)
    (dataset / place / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (dataset / "dataset_description.json").write_text(json.dumps(description))
    (dataset / ".bidsignore").write_text(line + "\n")
    command = [folder / "venv" / "bin" / "bids-validator-deno", dataset, "--json"]
    issues = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)["issues"]["issues"]
    found = any(one["code"] == "NOT_INCLUDED" for one in issues)
    print(f"line {line!r}, folder {place}/: an error expected {expected}, found {found}")
    as_seen &= found == seen
sys.exit(0 if as_seen else 1)
PYTHON
