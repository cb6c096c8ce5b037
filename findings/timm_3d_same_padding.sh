#!/usr/bin/env bash
# timm_3d 1.0.1 (PyPI): `Conv3dSame`, its convolution with TensorFlow's "SAME" padding, gives each axis the padding of
# another one: the first that of the third, the second that of the first, the third that of the second. "SAME" means
# ceil(size / stride) cells along every axis, so of (4, 5, 4) cells at stride 2 come (2, 3, 2); it gives (2, 2, 2), without
# a message. Where the edges are alike nothing is seen. Every `tf_efficientnet_*` of timm_3d is made of these. Its issue 9,
# mended by its pull request 8, not released.
# Seen with timm_3d 1.0.1, timm 1.0.31 and torch 2.14.1. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm_3d==1.0.1 timm==1.0.31 torch==2.14.1 torchvision==0.29.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import math
import sys

import torch
from timm_3d.layers.conv2d_same import Conv3dSame

print({name: importlib.metadata.version(name) for name in ("timm_3d", "timm", "torch")})
as_seen = True
for size, seen in (((5, 5, 5), (3, 3, 3)), ((4, 5, 4), (2, 2, 2)), ((4, 4, 5), (2, 2, 2))):
    expected = tuple(math.ceil(edge / 2) for edge in size)
    found = tuple(Conv3dSame(1, 1, 3, stride=2)(torch.zeros(1, 1, *size)).shape[2:])
    print(f"{size} cells at stride 2: expected {expected}, found {found}")
    as_seen &= found == seen
sys.exit(0 if as_seen else 1)
PYTHON
