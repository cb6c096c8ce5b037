"""Arrays to anatomical panels: sequences, tumour outline and explanation, with the sides marked.

Arrays are [D, H, W] in LPS order (D to superior, H to posterior, W to the patient's left). Panels and viewers show
the planes of `PLANES` in that order and in the radiological convention: the patient's right on the image's left in
axial and coronal planes, anterior on the image's left in the sagittal one.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from idh_lightning.cli.signals import end_with
from idh_lightning.errors import ExplanationError
from idh_lightning.files import atomic_write

_FloatArray = NDArray[np.floating[Any]]

MAP_COLOURS = "inferno"
MAP_FLOOR = 0.2
"""Below this value the map is fully transparent: faint activation covers most of a brain and would hide it."""
MAP_OPACITY = 0.65
MASK_COLOUR = "#56B4E9"
BRAIN_COLOUR = "#E69F00"
LEVEL_COLOUR = "#F0E442"
INK, PAPER = "#f2f2f2", "#0b0b0c"
SQUARE_MM = 25.0
"""Edge of the squares that two images take turns in."""
GREYS = colormaps["gray"].with_extremes(bad="black")

_GAP = 0.04
"""Inches between images."""

_TITLE: dict[str, Any] = {"parse_math": False, "y": 1.0}
"""Of the names of images, at a fixed height: to stay above ticks, matplotlib else lays out those that nobody sees."""

PLANES: dict[str, tuple[int, str]] = {"axial": (0, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (2, "APSI")}
"""Plane -> (array axis it is normal to, letters at its left, right, top and bottom edge)."""

CROSS = "cross_mm"
"""Of the text in a panel's PNG file: RAS mm of the point that its planes go through, so that a viewer starts there."""


def cross_mm(planes: Sequence[int], affine_ras: NDArray[np.float64]) -> tuple[float, float, float]:
    """RAS mm of the point where the slices of `tumour_planes` meet.

    Args:
        planes: Index along D, H and W.
        affine_ras: [4, 4], voxel indices (w, h, d) to RAS mm.
    """
    x, y, z = (affine_ras @ [*reversed(planes), 1.0])[:3].tolist()
    return x, y, z


def plane_words(plane: str, point_mm: Sequence[float]) -> str:
    """Name of a plane and where it meets a point of RAS mm: "sagittal, x −32 mm".

    Half a millimetre is rounded up, here and in the viewer, although sums of floats end beside it.

    Signs, not sides: in many files the origin is a corner of the image, and all of the head lies to the left of it.
    """
    axis = 2 - PLANES[plane][0]
    return f"{plane}, {'xyz'[axis]} {math.floor(round(point_mm[axis], 2) + 0.5)} mm".replace("-", "−")


def tumour_planes(mask: NDArray[Any] | None, cam: _FloatArray | None, shape: Sequence[int]) -> tuple[int, int, int]:
    """Index of the slice to show along each axis [D, H, W].

    Where there is a tumour these are its largest cross-sections; else where the map weighs most; else the middle.

    Args:
        mask: [D, H, W], non-zero is tumour, or None.
        cam: [D, H, W], or None.
        shape: Length of D, H and W.
    """
    for weight in (None if mask is None else np.asarray(mask) > 0, cam):
        if weight is not None and np.any(weight):
            profiles = (weight.sum(axis=(1, 2)), weight.sum(axis=(0, 2)), weight.sum(axis=(0, 1)))
            d, h, w = (int(np.argmax(profile)) for profile in profiles)
            return d, h, w
    d, h, w = (length // 2 for length in shape)
    return d, h, w


def cam_panel(
    image: _FloatArray,
    sequences: Sequence[str],
    cam: _FloatArray | None,
    mask: NDArray[Any] | None,
    affine_ras: NDArray[np.float64],
    title: str,
) -> Figure:
    """Figure of one study: its sequences on the tumour's largest axial slice, then three planes with the map.

    The first row shows each sequence with the outline of the mask and the line where the map reaches half of its
    maximum, so that the signs stay visible; the second row lays the map itself over the first sequence.

    Args:
        image: [C, D, H, W], one channel per sequence, LPS order.
        sequences: C names.
        cam: [D, H, W] with values 0..1, or None for a panel without a map.
        mask: [D, H, W], non-zero is tumour, or None.
        affine_ras: [4, 4], voxel indices (w, h, d) to RAS mm.
        title: What the study is called and what is said of it; shown as it is.

    Raises:
        ExplanationError: If the arrays do not share one grid.
    """
    _check(image, sequences, cam, mask, affine_ras)
    spacing_mm = np.linalg.norm(affine_ras[:3, :3], axis=0)[::-1].tolist()
    planes = tumour_planes(mask, cam, image.shape[1:])
    box = head_box(image)
    shapes = [_width_over_height(plane, box, spacing_mm) for plane in PLANES]
    width = 2.9 * max(len(sequences), 3)
    # In inches, from the top: headline; names, images; legend; names, images. Laid out by hand, since matplotlib's
    # engines draw everything twice: a panel took 0.63 instead of 0.45 s.
    upper_width = (width - _GAP) / len(sequences) - _GAP
    upper_height, upper_top = upper_width / shapes[0], 0.75
    lower_height = (width - 4 * _GAP - (0.0 if cam is None else 0.75)) / sum(shapes)
    legend_at = upper_top + upper_height + 0.2
    lower_top = legend_at + 0.5
    figure = Figure(figsize=(width, lower_top + lower_height + _GAP), facecolor=PAPER)

    for number, (name, channel) in enumerate(zip(sequences, image, strict=True)):
        axes = _axes(figure, _GAP + number * (upper_width + _GAP), upper_top, upper_width, upper_height)
        _draw_plane(axes, channel, "axial", planes, box, spacing_mm, mask=mask, level=cam)
        axes.set_title(name, color=INK, fontsize=12, **_TITLE)

    left = _GAP
    for plane, shape in zip(PLANES, shapes, strict=True):
        axes = _axes(figure, left, lower_top, shape * lower_height, lower_height)
        _draw_plane(axes, image[0], plane, planes, box, spacing_mm, mask=mask, overlay=cam, cross=True)
        words = plane_words(plane, cross_mm(planes, affine_ras))
        axes.set_title(f"{sequences[0]}, {words}", color=INK, fontsize=11, **_TITLE)
        left += shape * lower_height + _GAP
    if cam is not None:
        _colour_bar(figure, left + 0.1, lower_top + 0.1, lower_height - 0.2)
    _legend(figure, legend_at, outlined=mask is not None and bool(np.any(mask)), mapped=cam is not None)
    middle = 1 - 0.22 / figure.get_figheight()
    figure.suptitle(title, y=middle, va="center", color=INK, fontsize=14, parse_math=False)
    return figure


def brain_panel(
    head: _FloatArray,
    brain: NDArray[np.bool_],
    mask: NDArray[np.bool_] | None,
    affine_ras: NDArray[np.float64],
    title: str,
) -> Figure:
    """Figure of a head in three planes, with the outlines of the brain that was found in it and of the tumour.

    Args:
        head: [D, H, W], LPS order, intensities as in the file.
        brain: [D, H, W].
        mask: [D, H, W], or None.
        affine_ras: [4, 4], voxel indices (w, h, d) to RAS mm.
        title: Shown as it is.
    """
    spacing_mm = np.linalg.norm(affine_ras[:3, :3], axis=0)[::-1].tolist()
    planes = tumour_planes(brain if mask is None else mask, None, head.shape)
    box = (slice(0, head.shape[0]), slice(0, head.shape[1]), slice(0, head.shape[2]))
    shapes = [_width_over_height(plane, box, spacing_mm) for plane in PLANES]
    width, top = 11.6, 0.85
    height = (width - 4 * _GAP) / sum(shapes)
    figure = Figure(figsize=(width, top + height + _GAP), facecolor=PAPER)
    left = _GAP
    for plane, shape in zip(PLANES, shapes, strict=True):
        axes = _axes(figure, left, top, shape * height, height)
        _draw_plane(axes, head, plane, planes, box, spacing_mm, mask=mask, brain=brain)
        left += shape * height + _GAP
    _legend(figure, 0.6, outlined=mask is not None and bool(mask.any()), mapped=False, brain=True)
    middle = 1 - 0.25 / figure.get_figheight()
    figure.suptitle(title, y=middle, va="center", color=INK, fontsize=14, parse_math=False)
    return figure


def registration_panel(
    fixed: _FloatArray, before: _FloatArray, after: _FloatArray, affine_ras: NDArray[np.float64], title: str
) -> Figure:
    """Figure of a registered sequence: three planes of squares, from the fixed and the moving image by turns.

    The left three show it where its header has it, the right three where it was laid: there edges go on from square to
    square.

    Args:
        fixed: [D, H, W], LPS order, intensities as in the file.
        before: Likewise, the moving image where its header has it.
        after: Likewise, where it was laid.
        affine_ras: [4, 4], voxel indices (w, h, d) to RAS mm.
        title: Shown as it is.
    """
    spacing_mm = np.linalg.norm(affine_ras[:3, :3], axis=0)[::-1].tolist()
    planes = tumour_planes(None, None, fixed.shape)
    box = (slice(0, fixed.shape[0]), slice(0, fixed.shape[1]), slice(0, fixed.shape[2]))
    shapes = [_width_over_height(plane, box, spacing_mm) for plane in PLANES]
    width, top = 16.0, 0.8
    height = (width - 8 * _GAP) / (2 * sum(shapes))
    figure = Figure(figsize=(width, top + height + _GAP), facecolor=PAPER)
    steps = np.indices(fixed.shape) // np.reshape([round(SQUARE_MM / mm) for mm in spacing_mm], (3, 1, 1, 1))
    odd = steps.sum(axis=0) % 2 == 1
    left = _GAP
    for words, moving in (("where its header has it", before), ("where it was laid", after)):
        squares = np.where(odd, _grey(moving), _grey(fixed))
        for plane, shape in zip(PLANES, shapes, strict=True):
            axes = _axes(figure, left, top, shape * height, height)
            _draw_plane(axes, squares, plane, planes, box, spacing_mm)
            axes.set_title(f"{plane}, {words}", color=INK, fontsize=9, **_TITLE)
            left += shape * height + _GAP
        left += 2 * _GAP
    figure.suptitle(title, y=1 - 0.22 / figure.get_figheight(), va="center", color=INK, fontsize=13, parse_math=False)
    return figure


def _colour_bar(figure: Figure, left: float, top: float, height: float) -> None:
    """Draw the scale of the map at a place in inches."""
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), MAP_COLOURS), cax=_axes(figure, left, top, 0.13, height))
    bar.set_label("map, share of its largest value", color=INK, fontsize=11)
    bar.ax.tick_params(colors=INK, labelsize=11)
    bar.outline.set_edgecolor(INK)
    bar.ax.axhline(0.5, color=LEVEL_COLOUR, linewidth=1.5)


def _legend(figure: Figure, top: float, *, outlined: bool, mapped: bool, brain: bool = False) -> None:
    handles = [Line2D([], [], color=MASK_COLOUR, label="tumour outline")] if outlined else []
    if brain:
        handles.append(Line2D([], [], color=BRAIN_COLOUR, label="brain outline"))
    if mapped:
        handles.append(Line2D([], [], color=LEVEL_COLOUR, linestyle="--", label="map at 0.5"))
    if handles:
        place = (0.5, 1 - top / figure.get_figheight())
        look: dict[str, Any] = {"ncols": 2, "frameon": False, "labelcolor": INK, "fontsize": 11}
        figure.legend(handles=handles, loc="center", bbox_to_anchor=place, **look)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, from the left and the top edge of the figure."""
    across, down = figure.get_figwidth(), figure.get_figheight()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def save_cam_panel(path: Path, **panel: Any) -> None:
    """Draw a `cam_panel` into a PNG file with its `CROSS`, replacing it in one step."""
    figure = cam_panel(**panel)
    planes = tumour_planes(panel["mask"], panel["cam"], panel["image"].shape[1:])
    text = " ".join(f"{x:.3f}" for x in cross_mm(planes, panel["affine_ras"]))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={CROSS: text}, pil_kwargs={"compress_level": 3})


def begin_drawing(parent: int) -> None:
    """Make this a process that draws panels in cores that nobody else wants, for as long as its parent lives."""
    end_with(parent)
    gc.freeze()  # what is imported stays; looking through it takes a tenth of the time of drawing
    if hasattr(os, "nice"):
        os.nice(19)


def _draw_plane(
    axes: Axes,
    volume: _FloatArray,
    plane: str,
    planes: tuple[int, int, int],
    box: tuple[slice, slice, slice],
    spacing_mm: Sequence[float],
    *,
    mask: NDArray[Any] | None = None,
    brain: NDArray[Any] | None = None,
    overlay: _FloatArray | None = None,
    level: _FloatArray | None = None,
    cross: bool = False,
) -> None:
    """Draw one plane of a volume, cropped to `box`, with its letters."""
    axis, letters = PLANES[plane]
    # Rows of an axial slice run to posterior, so the first row is on top; rows of the others run to superior.
    origin: Any = "upper" if plane == "axial" else "lower"
    rows, columns = (other for other in range(3) if other != axis)

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        plane_slice: NDArray[Any] = np.take(array, planes[axis], axis=axis)
        return plane_slice[box[rows], box[columns]]

    shown: dict[str, Any] = {
        "origin": origin,
        "aspect": spacing_mm[rows] / spacing_mm[columns],
        "interpolation": "antialiased",
    }
    low, high = _window(volume)
    # Normalised volumes have 0 outside the head, which is a middle grey there; shown it is black, as on a viewer.
    axes.imshow(np.ma.masked_equal(cut(volume), 0), cmap=GREYS, vmin=low, vmax=high, **shown)
    if overlay is not None:
        values = np.clip(cut(overlay), 0, 1)
        opacity = MAP_OPACITY * np.clip((values - MAP_FLOOR) / (0.5 - MAP_FLOOR), 0, 1)
        axes.imshow(values, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=opacity, **shown)
    tumour = None if mask is None else mask > 0
    for array, colour, style in ((brain, BRAIN_COLOUR, "-"), (tumour, MASK_COLOUR, "-"), (level, LEVEL_COLOUR, "--")):
        if array is not None:
            values = cut(array).astype(float)
            if values.max() > 0.5 > values.min():
                axes.contour(values, levels=[0.5], colors=[colour], linewidths=1.1, linestyles=style)
    if cross:
        lines: dict[str, Any] = {"linewidth": 0.6, "color": INK, "alpha": 0.45}
        axes.axhline(planes[rows] - box[rows].start, **lines)
        axes.axvline(planes[columns] - box[columns].start, **lines)
    corners = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    look: dict[str, Any] = {"transform": axes.transAxes, "color": INK, "fontsize": 12, "fontweight": "bold"}
    look["path_effects"] = [withStroke(linewidth=2.5, foreground="black")]
    for letter, (x, y), (horizontal, vertical) in zip(letters, corners, sides, strict=True):
        axes.text(x, y, letter, ha=horizontal, va=vertical, **look)
    axes.set_axis_off()


def head_box(image: _FloatArray) -> tuple[slice, slice, slice]:
    """Box around everything that differs from the background (0), with a margin for the letters."""
    found = np.any(image != 0, axis=0)
    if not found.any():
        found = np.ones_like(found)
    box = []
    for axis in range(3):
        where = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = max(2, round(0.06 * (where[-1] - where[0])))
        box.append(slice(max(0, int(where[0]) - margin), min(found.shape[axis], int(where[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _window(volume: _FloatArray) -> tuple[float, float]:
    """Grey-level window: from the background, or the darkest percent if it is darker, to the brightest."""
    inside = volume[volume != 0]
    if inside.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(inside, (0.5, 99.7))
    return float(low), float(high) if high > low else float(low) + 1.0


def _grey(volume: _FloatArray) -> _FloatArray:
    """Volume from 0, where it shows nothing, and little above to 1, as its window has it."""
    low, high = _window(volume)
    return np.where(volume == 0, 0, np.clip((volume - low) / (high - low), 1e-3, 1))


def _width_over_height(plane: str, box: tuple[slice, slice, slice], spacing_mm: Sequence[float]) -> float:
    rows, columns = (other for other in range(3) if other != PLANES[plane][0])
    length = [(box[axis].stop - box[axis].start) * spacing_mm[axis] for axis in (columns, rows)]
    return float(length[0] / length[1])


def _check(
    image: _FloatArray,
    sequences: Sequence[str],
    cam: _FloatArray | None,
    mask: NDArray[Any] | None,
    affine_ras: NDArray[np.float64],
) -> None:
    shapes = {"map": cam, "mask": mask}
    wrong = {name: a.shape for name, a in shapes.items() if a is not None and a.shape != image.shape[1:]}
    if image.ndim != 4 or len(sequences) != len(image) or affine_ras.shape != (4, 4) or wrong:
        raise ExplanationError(
            f"Panel: image {image.shape}, {len(sequences)} sequences, affine {affine_ras.shape}, "
            f"{wrong or 'map and mask fit'}; expected [C, D, H, W] with C names, an affine [4, 4] to RAS mm, and "
            "map and mask of shape [D, H, W]. Resample the map and the mask to the grid of the image."
        )
