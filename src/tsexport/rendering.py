"""Pages and files that are made of templates: HTML, Markdown and the device kit's scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsexport.extras import require
from tsexport.wording import change_text, compact_json, count_text, figure_text, markdown_cell, percent_text, size_text

TEMPLATES = Path(__file__).parent / "templates"
_FILTERS = {
    "size": size_text,
    "percent": percent_text,
    "cell": markdown_cell,
    "compact": compact_json,
    "change": change_text,
    "count": count_text,
    "figure": figure_text,
    "literal": json.dumps,  # a string as it is written in Python
    "shape": repr,
}


def template_text(name: str) -> str:
    """Return a file of `templates/` as it stands there."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def render_html(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of HTML with its values, which are escaped.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    return _render(template, values, autoescape=True)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of Markdown with its values.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    return _render(template, values, autoescape=False)


def _render(template: str, values: Mapping[str, Any], *, autoescape: bool) -> str:
    require("report", "writing a report or a README")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    return environment.get_template(template).render(values)
