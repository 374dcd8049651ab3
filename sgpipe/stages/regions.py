"""Which parts of an image are captioned: all of it, its boxes, or the regions around pairs of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgpipe.records import Record, Scope

Window = tuple[int, int, int, int]

# Bounds the memory of an image that is annotated with tens of thousands of boxes.
_MOST_PAIRED = 1000


@dataclass(frozen=True)
class Region:
    """A part of an image: `boxes` index `Record.objects`, `window` is xyxy in pixels (None: all of it)."""

    scope: Scope
    boxes: tuple[int, ...] = ()
    window: Window | None = None


def regions(record: Record, scopes: Sequence[Scope], max_crops: int) -> list[Region]:
    """The regions of each scope in turn, ordered by box index; crowd boxes are left out.

    At most `max_crops` boxes are kept, the largest ones, and at most as many pairs: those that overlap, by the
    size of the overlap, then those nearest to each other, among the 1,000 largest boxes. A pair is unordered and
    has one region, the smallest rectangle around both boxes (the authors' dense captions take the first pairs).
    """
    found: list[Region] = []
    for scope in dict.fromkeys(scopes):
        if scope == "image":
            found.append(Region("image"))
        else:
            groups = _boxes(record, max_crops) if scope == "box" else _pairs(record, max_crops)
            found += [Region(scope, boxes, _window(record, boxes)) for boxes in groups]
    return found


def _boxes(record: Record, max_crops: int) -> list[tuple[int, ...]]:
    return [(index,) for index in _largest(record, max_crops)]


def _pairs(record: Record, max_crops: int) -> list[tuple[int, ...]]:
    single = np.array(_largest(record, _MOST_PAIRED), dtype=int)
    boxes = np.array([record.objects[index].bbox for index in single]).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    first, second = np.triu_indices(len(single), k=1)
    # Per axis: the length of the overlap, or minus the width of the gap.
    shared = np.minimum(high[first], high[second]) - np.maximum(low[first], low[second])
    gap = np.hypot(*np.maximum(-shared, 0).T)
    overlap = np.maximum(shared, 0).prod(axis=1)
    nearest = np.lexsort((second, first, -overlap, gap))[:max_crops]
    return sorted(zip(single[first[nearest]].tolist(), single[second[nearest]].tolist(), strict=True))


def _largest(record: Record, most: int) -> list[int]:
    """In order of index; the first of equally large boxes is kept."""

    def area(index: int) -> float:
        _, _, width, height = record.objects[index].bbox
        return width * height

    single = [index for index, box in enumerate(record.objects) if not box.iscrowd]
    return sorted(sorted(single, key=area, reverse=True)[:most])


def _window(record: Record, boxes: Sequence[int]) -> Window:
    """The whole pixels that the boxes touch, at least one, inside the image."""
    bounds = [record.objects[index].bbox for index in boxes]
    left = min(max(math.floor(min(x for x, _, _, _ in bounds)), 0), record.width - 1)
    top = min(max(math.floor(min(y for _, y, _, _ in bounds)), 0), record.height - 1)
    right = min(math.ceil(max(x + width for x, _, width, _ in bounds)), record.width)
    bottom = min(math.ceil(max(y + height for _, y, _, height in bounds)), record.height)
    return left, top, max(right, left + 1), max(bottom, top + 1)
