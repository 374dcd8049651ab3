"""Pages made of the templates: one file each, with style and script inside and everything else escaped."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sgpipe.errors import UserError
from sgpipe.utils import __version__


def render(page: str, values: dict[str, Any]) -> str:
    """The page of templates/`page`.html.jinja with its script; every value is escaped."""
    loader = jinja2.PackageLoader("sgpipe.stats", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.globals["zip"] = zip
    style, script = (_source(environment, name) for name in ("style.css", f"{page}.js"))
    # The browser runs this script and no other, whatever a caption holds.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest), "version": __version__}
    return environment.get_template(f"{page}.html.jinja").render(values | own)


def save_page(file: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises UserError: the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
