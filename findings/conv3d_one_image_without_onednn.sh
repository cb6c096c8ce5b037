#!/usr/bin/env bash
# torch 2.14.1 (PyPI) on a CPU, no gradient, one thread or several: whether a 3D convolution of float32 runs in oneDNN
# hangs on how its axes are called. A batch of one image whose channels times first two edges are 20480 at most goes to a
# loop (aten::slow_conv3d_forward) instead, whatever the third edge: [1, 16, 24, 32, 400] does, the same numbers turned to
# [1, 16, 400, 32, 24] do not, nor does a batch of two images however small. So one image can take three times as long as
# two, and a dozen times as long as the same image turned. (Of two axes the same product counts both edges.)
# Channels-last memory changes nothing. U-Nets that answer for one patient at a time are hit at their finest level.
# Seen with torch 2.14.1 and numpy 2.4.6 on x86-64 with AVX2. Ends with status 0 while this is so. Source:
# ConvParams::use_mkldnn in aten/src/ATen/native/Convolution.cpp, which multiplies the first four sizes of the input.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

print({name: importlib.metadata.version(name) for name in ("torch", "numpy")})
torch.manual_seed(0)
convolution = torch.nn.Conv3d(16, 16, 3, padding=1)
CASES = (
    ((1, 16, 24, 32, 24), "slow_conv3d_forward"),
    ((1, 16, 24, 32, 400), "slow_conv3d_forward"),
    ((1, 16, 400, 32, 24), "mkldnn_convolution"),
    ((1, 16, 40, 33, 24), "mkldnn_convolution"),
    ((2, 16, 24, 32, 24), "mkldnn_convolution"),
    ((2, 16, 4, 4, 4), "mkldnn_convolution"),
)
as_seen = True
with torch.no_grad():
    for size, seen in CASES:
        images = torch.randn(size)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            convolution(images)
        names = {event.key.removeprefix("aten::") for event in profiled.key_averages()}
        (found,) = names & {"slow_conv3d_forward", "mkldnn_convolution"}
        begun = time.perf_counter()
        for _ in range(5):
            convolution(images)
        each_ms = (time.perf_counter() - begun) / 5 * 1e3 / size[0]
        print(f"{size}: expected mkldnn_convolution, found {found}; {each_ms:.2f} ms an image")
        as_seen &= found == seen
sys.exit(0 if as_seen else 1)
PYTHON
