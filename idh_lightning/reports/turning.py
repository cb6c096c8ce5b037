"""Brain, tumour and map of a study as pictures from all around: an animation, and a view that a slider turns."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from idh_lightning.files import atomic_write
from idh_lightning.reports.page import render
from idh_lightning.reports.panels import INK, MAP_COLOURS, MASK_COLOUR
from idh_lightning.reports.viewer import VIEWER_SPACING_MM, Scene
from idh_lightning.volumes import Geometry
from idh_lightning.volumes.brain import find_brain

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
    """HTML of pictures that a slider turns; it needs no network.

    Args:
        frames: Of one size.
        name: Of the study, for those who do not see it.
    """
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
