"""The HTML pages of the package: one environment of templates, one stylesheet, page.css, and pictures inlined."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from idh_lightning.cli.tables import number
from idh_lightning.cohort.checks import counted
from idh_lightning.files import write_text
from idh_lightning.reports import vocabulary
from idh_lightning.reports.tables import signed

logger = logging.getLogger(__name__)

NOT_CLINICAL = "Not for clinical use"
SYNTHETIC = "Trained on synthetic patients"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=lambda name: name is None or not name.endswith(".md.j2"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals |= {"words": vocabulary, "number": number, "signed": signed, "counted": counted}


@dataclass(frozen=True)
class Picture:
    """An image of a report, inlined as a data URI, with words for those who do not see it."""

    source: str
    words: str
    width: int
    height: int


def picture(path: Path, words: str, *, photograph: bool = False) -> Picture:
    """Image as a data URI; a photograph is stored as WebP, in less than half of the size of PNG."""
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if photograph:
            packed = io.BytesIO()
            image.convert("RGB").save(packed, "WEBP", quality=72, method=2)
            data, kind = packed.getvalue(), "webp"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", words, width, height)


def inlined(folder: Path, drawn: Mapping[str, str]) -> dict[str, Picture]:
    """Figures of a run folder, file name -> words, as pictures by name."""
    return {name.removesuffix(".png"): picture(folder / "figures" / name, words) for name, words in drawn.items()}


def render(template: str, **content: Any) -> Markup:
    """Text of a template in reports/templates; on a page (.html) what comes from a table is escaped."""
    return Markup(_TEMPLATES.get_template(template).render(content))


def save_page(path: Path, template: str, **content: Any) -> Path:
    """Write the page of a template into a file, and return the path. See `render`."""
    write_text(path, render(template, **content))
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
    return path


def badges(*cohorts: object) -> list[str]:
    """Badges of a page that shows what a network says, from the names of the cohorts that it was trained on."""
    synthetic = any(word in str(cohort) for cohort in cohorts for word in ("phantom", "synthetic"))
    return [NOT_CLINICAL, *([SYNTHETIC] if synthetic else [])]
