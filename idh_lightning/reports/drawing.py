"""Panels of explained studies, drawn by processes of their own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count  # type: ignore[import-untyped]
from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

from idh_lightning.cohort import IDH, Study, Target
from idh_lightning.reports.panels import begin_drawing, save_cam_panel
from idh_lightning.volumes import StoredVolume, write_map

PANELS_AT_ONCE = 32
"""Studies whose arrays wait in memory to be drawn."""

PanelDrawer = Callable[[Path, dict[str, Any]], None]
"""Draws a `cam_panel_of` a study into a file."""


def cam_panel_of(
    study: Study,
    stored: StoredVolume,
    cam: np.ndarray,
    sequences: Sequence[str],
    *,
    probability: float | None = None,
    note: str = "",
    target: Target = IDH,
) -> dict[str, Any]:
    """Arguments of `cam_panel` for one study and its map [D, H, W]; the note stands after its name.

    The probability is None before calibration, which follows the test.
    """
    return {
        "image": np.asarray(stored.image, dtype=np.float32),
        "sequences": sequences,
        "cam": cam,
        "mask": None if stored.mask is None else np.array(stored.mask),
        "affine_ras": stored.affine_ras,
        "title": panel_title(study, target, probability=probability, note=note),
    }


def panel_title(study: Study, target: Target, *, probability: float | None = None, note: str = "") -> str:
    """Title of the panel of a study: its name, its class and the probability of the positive one, where it is known."""
    said = [] if probability is None else [f"{target.chance} {probability:.2f}"]
    return "   ·   ".join([study.study_id + note, target.named(study.label), *said])


def write_explanation(
    draw: PanelDrawer,
    folder: Path,
    study: Study,
    stored: StoredVolume,
    cam: np.ndarray,
    sequences: Sequence[str],
    *,
    probability: float | None = None,
    target: Target = IDH,
) -> None:
    """Write the map of a study within its brain, and have its panel drawn.

    These are explanations/<study_id>_cam.nii.gz and figures/cam/<study_id>.png. See `cam_panel_of`.
    """
    inside = cam * (np.asarray(stored.brain) > 0)
    write_map(inside, stored, folder / "explanations" / f"{study.study_id}_cam.nii.gz")
    panel = cam_panel_of(study, stored, inside, sequences, probability=probability, target=target)
    draw(folder / "figures" / "cam" / f"{study.study_id}.png", panel)


@contextmanager
def drawing_processes() -> Iterator[PanelDrawer]:
    """Processes that draw panels into files while this one goes on; at the end all are drawn.

    Drawing waits where this process wants all cores; see `cores_left_to_drawing`.
    """
    pool = get_reusable_executor(
        max_workers=_drawers(), initializer=begin_drawing, initargs=(os.getpid(),), reuse=False
    )
    waiting: deque[Future[None]] = deque()

    def draw(path: Path, panel: dict[str, Any]) -> None:
        waiting.append(pool.submit(save_cam_panel, path, **panel))
        if len(waiting) > PANELS_AT_ONCE:
            waiting.popleft().result()

    try:
        yield draw
        for panel in waiting:
            panel.result()
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextmanager
def cores_left_to_drawing() -> Iterator[None]:
    """Half of the cores for `drawing_processes`, which take as long as explaining."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads - _drawers(), 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _drawers() -> int:
    return max(int(cpu_count()) // 2, 1)
