"""The HTML pages of the package: one environment of templates and one stylesheet, page.css, in every page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from idh_lightning.files import write_text

logger = logging.getLogger(__name__)

NOT_CLINICAL = "Not for clinical use"
SYNTHETIC = "Trained on synthetic patients"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **content: Any) -> Markup:
    """HTML of a template in reports/templates, whose pages extend page.html.j2; what comes from a table is escaped."""
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
