#!/usr/bin/env bash
# torch 2.14.1 (PyPI) on a CPU with AVX-512 and bfloat16: the gradient by the weights of a 3D convolution in bfloat16 (3 x 3
# x 3, padding 1, one group, 16 channels or more) is wrong, without a message, where the first of the three axes has 2
# cells: off by about its own size or by 1e30 and more, now and then not a number, and another one each time that it is
# computed from the same tensors. With 1, 3 or more cells along that axis it agrees with float32 to bfloat16's rounding,
# and so it does with 2 cells along either other axis, with dilation, with one group a channel and with 1 x 1 x 1.
# U-Nets and the last stages of residual networks come to such grids on small volumes, and `autocast` takes them there.
# Seen with torch 2.14.1 and numpy 2.4.6 on an AMD EPYC (avx512_bf16, no AMX). Ends with status 0 while this is so, and
# with status 2 on a CPU without instructions for bfloat16, where nothing is seen.
set -euo pipefail
grep -qm1 avx512_bf16 /proc/cpuinfo || { echo "no avx512_bf16 here: nothing to see"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from torch.nn.functional import conv3d

print({name: importlib.metadata.version(name) for name in ("torch", "numpy")})


def error(size: tuple[int, int, int]) -> float:
    """Largest error of ten gradients, as a share of the largest entry of that in float32."""
    torch.manual_seed(0)
    images, weights = torch.randn(2, 64, *size).bfloat16(), (0.02 * torch.randn(64, 64, 3, 3, 3)).bfloat16()
    back = torch.randn(2, 64, *size).bfloat16()

    def gradient(kind: torch.dtype) -> torch.Tensor:
        learnt = weights.to(kind, copy=True).requires_grad_()
        conv3d(images.to(kind), learnt, padding=1).backward(back.to(kind))
        return learnt.grad.float()

    exact = gradient(torch.float32)
    errors = torch.stack([(gradient(torch.bfloat16) - exact).abs().max() for _ in range(10)]) / exact.abs().max()
    return float(errors.nan_to_num(float("inf")).max())


as_seen = True
for size, wrong in (((2, 2, 2), True), ((2, 8, 8), True), ((3, 3, 3), False), ((8, 8, 2), False), ((8, 2, 8), False)):
    found = error(size)
    print(f"{size} cells: expected an error of 0.01 at most, found {found:.2g}")
    as_seen &= (found > 0.1) == wrong
sys.exit(0 if as_seen else 1)
PYTHON
