"""HTTP handlers for judgements and sampling plans."""

from __future__ import annotations

from starlette.routing import Route


def routes() -> list[Route]:
    """The routes of this module."""
    return []
