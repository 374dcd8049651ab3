"""Fitting annotated boxes into their image."""

from __future__ import annotations

import math

from sgpipe.records import Box, Record
from sgpipe.sources.annotated import ProblemCounts, keep_objects

_TOLERANCE = 0.01  # pixels


def clip_objects(record: Record, problems: ProblemCounts) -> None:
    """Cut the boxes off at the image's borders; drop those without area in it, and the relations they have."""
    boxes: list[Box | None] = []
    for box in record.objects:
        clipped = box if box.is_nothing else _clip(box, record.width, record.height)
        if clipped is None:
            problems["degenerate"] += 1
        elif any(abs(a - b) > _TOLERANCE for a, b in zip(box.bbox, clipped.bbox, strict=True)):
            problems["clipped"] += 1
        boxes.append(clipped)
    keep_objects(record, boxes, problems)


def _clip(box: Box, width: int, height: int) -> Box | None:
    x, y, w, h = box.bbox
    if not all(math.isfinite(value) for value in (x, y, w, h, x + w, y + h)) or w <= 0 or h <= 0:
        return None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if left >= right or top >= bottom:
        return None
    if (left, top, right, bottom) == (x, y, x + w, y + h):
        return box  # not x + w - x, which may round
    return Box(box.category, box.category_id, (left, top, right - left, bottom - top), box.iscrowd)
