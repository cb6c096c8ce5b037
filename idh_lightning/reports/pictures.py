"""Pictures of a run folder, inlined into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """An image of a report, inlined.

    Attributes:
        source: data URI.
        words: What it shows, for those who do not see it.
        width: Pixels.
        height: Pixels.
    """

    source: str
    words: str
    width: int
    height: int


def picture(path: Path, words: str, *, photograph: bool = False) -> Picture:
    """Image as a data URI; a photograph is stored as WebP, at a tenth of the size of PNG."""
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if photograph:
            packed = io.BytesIO()
            image.convert("RGB").save(packed, "WEBP", quality=72, method=4)
            data, kind = packed.getvalue(), "webp"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", words, width, height)


def inlined(folder: Path, drawn: Mapping[str, str]) -> dict[str, Picture]:
    """Figures of a run folder, file name -> words, as pictures by name."""
    return {name.removesuffix(".png"): picture(folder / "figures" / name, words) for name, words in drawn.items()}
