"""A study's sequences, tumour outline and map on a page: slices to look through, and a view from all around."""

from __future__ import annotations

import base64
import io
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from idh_lightning.files import atomic_write
from idh_lightning.reports.page import render
from idh_lightning.reports.panels import INK, MAP_COLOURS, MAP_FLOOR, MAP_OPACITY, MASK_COLOUR, PLANES, head_box
from idh_lightning.volumes import Geometry
from idh_lightning.volumes.brain import find_brain
from idh_lightning.volumes.checks import Place
from idh_lightning.volumes.reading import read_header, read_voxels
from idh_lightning.volumes.registration import Registration, transform_of

logger = logging.getLogger(__name__)

VIEWER_SPACING_MM = 2.0
"""Viewers sample this finely: at 1 mm one would weigh eight times as much, and the maps are smoother than this."""

_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GREYS = 64
"""Grey levels of a slice: no eye tells more apart on a screen, and they pack into half of what 256 take."""


@dataclass(frozen=True)
class Scene:
    """Images of a study on one grid whose axes are those of RAS mm, so that no orientation of a file matters.

    Attributes:
        sequences: Name -> [z, y, x] float32, as in the files; z grows to superior, y to anterior, x to the right.
        cam: [z, y, x] float32, 0..1.
        tumour: [z, y, x] bool, or None.
        origin_mm: RAS mm of the first voxel.
        at_mm: Where to begin: RAS mm of the centre of a voxel.
    """

    sequences: Mapping[str, NDArray[np.float32]]
    cam: NDArray[np.float32]
    tumour: NDArray[np.bool_] | None
    origin_mm: NDArray[np.float64]
    at_mm: Sequence[float]


def read_scene(
    files: Mapping[str, Path],
    cam: Path,
    mask: Path | None = None,
    at_mm: Sequence[float] | None = None,
    registrations: Sequence[Registration] = (),
) -> Scene:
    """Images of a study on one grid.

    Args:
        files: Sequence -> NIfTI file; the first one says how far the head reaches.
        cam: NIfTI file, values 0..1.
        mask: NIfTI file, non-zero is tumour.
        at_mm: Becomes the centre of a voxel; by default the hottest voxel of the map does.
        registrations: Of sequences that are shown where they were laid, not where their headers have them.

    Raises:
        FaultyStudyError: If a file is not whole.
    """
    images = {name: _read(path) for name, path in files.items()}
    heat = _read(cam)
    point_mm = _hottest_mm(heat) if at_mm is None else np.asarray(at_mm, dtype=np.float64)
    low, high = _reach(next(iter(images.values())))
    origin_mm = point_mm - VIEWER_SPACING_MM * np.ceil((point_mm - low) / VIEWER_SPACING_MM)
    affine = np.diag([VIEWER_SPACING_MM, VIEWER_SPACING_MM, VIEWER_SPACING_MM, 1.0])
    affine[:3, 3] = origin_mm
    x, y, z = (int(n) for n in np.ceil((high - origin_mm) / VIEWER_SPACING_MM) + 1)
    grid = Geometry.from_affine((x, y, z), _LPS_RAS @ affine)

    moves = {one.sequence: transform_of(one.affine) for one in registrations}

    def on_grid(image: sitk.Image, interpolation: int = sitk.sitkLinear, name: str = "") -> NDArray[np.float32]:
        air = _air(sitk.GetArrayViewFromImage(image))
        return grid.resampled(image, interpolation, moves.get(name), air).astype(np.float32)

    return Scene(
        sequences={name: on_grid(image, name=name) for name, image in images.items()},
        cam=np.clip(on_grid(heat), 0.0, 1.0),
        tumour=None if mask is None else on_grid(_read(mask), sitk.sitkNearestNeighbor) != 0,
        origin_mm=origin_mm,
        at_mm=point_mm.tolist(),
    )


def slice_viewer(scene: Scene, name: str) -> Markup:
    """HTML of the three planes of a scene, which follow clicks and keys; it needs no network."""
    colours = (255 * colormaps[MAP_COLOURS](np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)
    z, y, x = scene.cam.shape
    settings = {
        "size": [x, y, z],
        "spacing": VIEWER_SPACING_MM,
        "origin": scene.origin_mm.tolist(),
        "at": scene.at_mm,
        "planes": [[plane, letters] for plane, (_, letters) in PLANES.items()],
        "sequences": {name: _packed(_greys(voxels)) for name, voxels in scene.sequences.items()},
        "map": _packed((255 * scene.cam).round().astype(np.uint8)),
        "tumour": None if scene.tumour is None else _packed(scene.tumour.astype(np.uint8)),
        "colours": _packed(colours),
        "floor": MAP_FLOOR,
        "outline": MASK_COLOUR,
    }
    return render("viewer.html.j2", settings=settings, name=name, opacity=round(100 * MAP_OPACITY))


def drawn_or_reason(what: str, name: str, draw: Callable[[], Markup]) -> Markup:
    """HTML of a view of a study, or of a sentence that says why there is none: no run ends for want of a view."""
    try:
        return draw()
    except Exception as error:
        logger.warning("Study %s: %s not drawn: %s", name, what, error)
        return Markup('<p class="absent">{}: not drawn. {}</p>').format(what, error)


def _read(path: Path) -> sitk.Image:
    place = Place(path.name, path.name)
    image = read_voxels(path, read_header(path, place), place)
    voxels = sitk.GetArrayViewFromImage(image)
    return image if np.isfinite(voxels).all() else Geometry.of(image).image(np.nan_to_num(voxels))


def _hottest_mm(heat: sitk.Image) -> NDArray[np.float64]:
    voxels = sitk.GetArrayViewFromImage(heat)
    hottest = np.unravel_index(int(voxels.argmax()), voxels.shape)
    place: NDArray[np.float64] = Geometry.of(heat).affine_ras @ [*reversed(hottest), 1.0]
    return place[:3]


def _reach(image: sitk.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and the highest RAS mm of what is brighter than the air, with room for letters."""
    voxels = sitk.GetArrayViewFromImage(image)
    ends = [(part.start, part.stop - 1) for part in reversed(head_box((voxels > _air(voxels))[None]))]
    corners = np.array([[*corner, 1] for corner in product(*ends)]) @ Geometry.of(image).affine_ras.T
    return corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)


def _air(voxels: NDArray[Any]) -> float:
    """Value around the head, in the corners: resampling leaves darker ones at sharp edges."""
    return float(np.median([voxels[corner] for corner in product((0, -1), repeat=3)]))


def _greys(voxels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey levels 0..255 in few steps, from the air to the brightest voxel but some."""
    low = _air(voxels)
    inside = voxels[voxels > low]
    high = float(np.percentile(inside, 99.5)) if inside.size else low + 1.0
    levels = np.clip((voxels - low) / max(high - low, 1e-6), 0, 1) * (_GREYS - 1)
    return np.asarray(levels.round() * (255 // (_GREYS - 1)), dtype=np.uint8)


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")


FRAMES = 36
PIXELS = 320
FRAME_MS = 110
_FLOOR = 0.4
"""Below this value the map is transparent, as it covers most of a brain and would hide the tumour."""


def turning_frames(scene: Scene) -> list[Image.Image]:
    """Pictures of a study in steps round the body's axis, from the front and then from the patient's left on.

    The surface of the brain and that of the tumour are glass, which shows their edges; the map glows. Light goes
    through all of them in their order of depth, so what is behind is dimmed by what is before it.
    """
    volume = torch.from_numpy(_emission_and_density(scene))
    height, length, width = volume.shape[1:]
    # Heights turn together, so they are channels, and channels last are ten times as fast.
    layers = volume.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    radius = 0.41 * math.hypot(width, length)
    steps = torch.linspace(-radius, radius, round(2 * radius))
    away, right = torch.meshgrid(steps, steps, indexing="ij")
    frames = []
    for azimuth in np.arange(FRAMES) * 2 * np.pi / FRAMES:
        # From the front the patient's right, where x is high, is on the left.
        x = -math.cos(azimuth) * right + math.sin(azimuth) * away
        y = -math.sin(azimuth) * right - math.cos(azimuth) * away
        places = torch.stack([2 * x / (width - 1), 2 * y / (length - 1)], -1)[None]
        turned = torch.nn.functional.grid_sample(layers, places, align_corners=True).view(
            4, height, len(steps), len(steps)
        )
        density = turned[3]
        reaches = torch.exp(density - density.cumsum(1)) * (1 - torch.exp(-density)) / density.clamp_min(1e-6)
        picture = ((reaches * turned[:3]).sum(2).clamp(0, 1) ** 0.8 * 255).byte().flip(1).permute(1, 2, 0)
        scale = PIXELS / len(steps)
        shown = Image.fromarray(picture.numpy()).resize((PIXELS, round(scale * height)), Image.Resampling.BICUBIC)
        frame = Image.new("RGB", (PIXELS, shown.height + 24))
        frame.paste(shown)
        frames.append(_lettered(frame, azimuth, scale * width / 2, scale * length / 2))
    return frames


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write pictures as an animation that turns for ever."""
    packed = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    with atomic_write(path) as temporary:
        packed[0].save(temporary, "GIF", save_all=True, append_images=packed[1:], duration=FRAME_MS, loop=0)


def turning_view(frames: Sequence[Image.Image], name: str) -> Markup:
    """HTML of pictures that a slider turns; it needs no network."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width, height * len(frames)))
    for place, frame in enumerate(frames):
        strip.paste(frame, (0, height * place))
    data = io.BytesIO()
    strip.save(data, "WEBP", quality=75, method=4)
    source = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return render("turning.html.j2", source=source, frames=len(frames), width=width, height=height, name=name)


def _emission_and_density(scene: Scene) -> NDArray[np.float32]:
    """[4, z, y, x]: red, green and blue that a voxel sends out, and how much of what is behind it takes away."""
    reference = next(iter(scene.sequences.values()))
    grid = Geometry((1, 1, 1), (VIEWER_SPACING_MM,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    # To the orientation that finding a brain expects, and back.
    brain = find_brain(grid.image(np.ascontiguousarray(reference[:, ::-1, ::-1])))[0][:, ::-1, ::-1]
    parts = [(0.06 * _surface(brain), np.array(to_rgb("#d9d9d9"))[:, None, None, None])]
    if scene.tumour is not None and scene.tumour.any():
        parts.append((0.12 * _surface(scene.tumour), np.array(to_rgb(MASK_COLOUR))[:, None, None, None]))
    glow = np.clip((scene.cam - _FLOOR) / (1 - _FLOOR), 0, 1) ** 1.5
    parts.append((0.6 * glow, np.moveaxis(colormaps[MAP_COLOURS](scene.cam)[..., :3], -1, 0)))
    emission = sum(density * colour for density, colour in parts)
    return np.concatenate([emission, [sum(density for density, _ in parts)]]).astype(np.float32)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    slope = ndimage.gaussian_gradient_magnitude(mask.astype(np.float32), 1.0)
    return np.asarray(slope / max(float(slope.max()), 1e-6), dtype=np.float32)


def _lettered(frame: Image.Image, azimuth: float, width: float, length: float) -> Image.Image:
    """Picture with the letters of the sides under it, without that of the side which is behind."""
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(16)
    sides = {"R": (1, 0), "L": (-1, 0), "A": (0, 1), "P": (0, -1)}
    for letter, (x, y) in sides.items():
        right = -math.cos(azimuth) * x * width - math.sin(azimuth) * y * length
        away = math.sin(azimuth) * x - math.cos(azimuth) * y
        if away < 0.5:
            draw.text((PIXELS / 2 + 0.8 * right, frame.height - 12), letter, fill=INK, font=font, anchor="mm")
    return frame
