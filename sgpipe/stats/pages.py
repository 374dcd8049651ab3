"""Pages rendered from the templates: one file each, with style and script inline and all values escaped."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sgpipe.errors import UserError
from sgpipe.utils import __version__
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import count, isolated


def render(page: str, values: dict[str, Any]) -> str:
    """Render templates/`page`.html.jinja with its script; every value is escaped."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["count"] = count
    environment.filters["isolated"] = isolated
    environment.globals["svg"] = lambda plot: Markup(plot.inline())  # escapes its own texts
    style, script = (_source(environment, name) for name in ("style.css", f"{page}.js"))
    # The browser runs only this script, whatever a caption contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest), "version": __version__}
    return environment.get_template(f"{page}.html.jinja").render(values | own)


def save_page(file: Path, page: str) -> None:
    """Write a page atomically, and make its folder.

    Raises UserError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, page)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
