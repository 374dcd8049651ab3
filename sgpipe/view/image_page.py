"""The page of one image: its boxes, relations, provenance and scene graph, alone or beside those of another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from sgpipe.records import Record


def routes() -> list[Route]:
    """`/image/{split}/{image_id}`, and the same values as JSON at `/api/image/{split}/{image_id}`."""
    return []


def image_values(record: Record, run: Mapping[str, Any], relation: str | None = None) -> dict[str, Any]:
    """Everything that the page shows of an image, as plain JSON-able values.

    Args:
        run: the header of the run's manifest.
        relation: the key of the chosen relation, which the scene graph has even if others are more confident.
    """
    raise NotImplementedError


def compare(record: Record, other: Record) -> dict[str, Any]:
    """The relations of an image in two runs: in both, only in the first, only in the second.

    Objects of the two are the same if they have the same class and an IoU of at least 0.5, best matches first.
    """
    raise NotImplementedError
