"""The HTML pages of the package: one environment of templates and one stylesheet, page.css, in every page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

NOT_CLINICAL = "Not for clinical use"
SYNTHETIC = "Trained on synthetic patients"


def environment(package: str) -> Environment:
    """Environment of the templates in a subpackage, which extend page.html.j2; what comes from a table is escaped."""
    root = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader([root / package, root]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(page: str, **content: Any) -> str:
    """Text of a page, "<subpackage>/<template>"."""
    package, _, name = page.partition("/")
    return environment(package).get_template(name).render(content)


def badges(*cohorts: object) -> list[str]:
    """Badges of a page that shows what a network says, from the names of the cohorts that it was trained on."""
    synthetic = any("phantom" in str(cohort) for cohort in cohorts)
    return [NOT_CLINICAL, *([SYNTHETIC] if synthetic else [])]
