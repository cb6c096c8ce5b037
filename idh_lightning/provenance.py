"""Provenance: what made a run, of command, code, packages and machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from idh_lightning.files import write_text

PROVENANCE = "provenance.json"

_PACKAGES = (
    "idh_lightning", "torch", "lightning", "timm", "timm_3d", "torchio", "torchcam", "torchmetrics", "hydra-core",
    "SimpleITK", "scikit-learn", "numpy", "pandas",
)  # fmt: skip


def begun_record(run_folder: Path, known: Mapping[str, object]) -> dict[str, Any]:
    """Record of this process in primitives: what a run folder holds, versions, hardware, and what the caller knows."""
    file = run_folder / PROVENANCE
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = spec.name if spec is not None else Path(sys.argv[0]).stem
    return before | {
        "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "hardware": _hardware(),
        "threads": torch.get_num_threads(),
        **known,
    }


def write_code(run_folder: Path) -> None:
    """Write environment.txt, every package, and changes.patch, how the code differs from its commit, if it does."""
    write_text(run_folder / "environment.txt", _environment())
    if (git_commit() or "").endswith("-dirty"):
        write_text(run_folder / "changes.patch", _git("diff", "HEAD", "--no-relative"))


def git_commit() -> str | None:
    """Commit of the checkout that holds this file, "-dirty" if it was changed; None outside of one."""
    try:
        _git("ls-files", "--error-unmatch", __file__)
        return _git("describe", "--always", "--dirty", "--abbrev=40").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def _environment() -> str:
    """Every installed package as `name==version`, as pip reads it."""
    found = {f"{package.metadata['Name']}=={package.version}" for package in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _hardware() -> dict[str, object]:
    return {
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
