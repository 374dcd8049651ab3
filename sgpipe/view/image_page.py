"""The page of one image."""

from __future__ import annotations

from starlette.routing import Route


def routes() -> list[Route]:
    """The routes of this module."""
    return []
