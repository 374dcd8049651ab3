"""Boxes as numpy arrays: corners, overlap, and clipping to an image. The unit (pixels or shares) is the caller's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[Any]


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """`[boxes, 4]` of the same type: left, top, right, bottom."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def iou(first: Boxes, second: Boxes) -> NDArray[Any]:
    """Intersection over union `[boxes]` of xyxy boxes, one to one; identical boxes have 1, even without area."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    intersection = np.maximum(sides, 0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0] + areas[1] - intersection
    overlap = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    return np.where((first == second).all(1), 1.0, overlap)


class ClippedBoxes(NamedTuple):
    """Boxes clipped to their images, one row per input box.

    xywh: `[boxes, 4]`, bit for bit the input where nothing was cut off.
    inside: `[boxes]`, False for boxes that have no area inside the image or are not finite.
    overhang: `[boxes]`, how far a box reached beyond the image at its worst side.
    """

    xywh: Boxes
    inside: NDArray[np.bool_]
    overhang: NDArray[Any]


def clip_xywh(boxes: Boxes, sizes: NDArray[Any]) -> ClippedBoxes:
    """Clip xywh boxes `[boxes, 4]` to images whose widths and heights are `sizes` `[boxes, 2]`, both float64."""
    finite = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    xywh = np.where(finite[:, None], boxes, 0.0)
    low = np.clip(xywh[:, :2], 0.0, sizes)
    high = np.clip(xywh[:, :2] + np.maximum(xywh[:, 2:], 0.0), 0.0, sizes)
    outside = np.maximum(low - xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - high)
    overhang: NDArray[Any] = outside.max(axis=1, initial=0.0)
    # Only boxes that change are recomputed: x + w - x may differ from w.
    clipped = np.where(overhang[:, None] > 0, np.hstack([low, high - low]), xywh)
    inside = finite & (xywh[:, 2:] > 0).all(1) & (high > low).all(1)
    return ClippedBoxes(clipped, inside, overhang)


def clip_box(
    xywh: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float] | None:
    """`clip_xywh` of a single box, faster for a few boxes: the same tuple if nothing is cut off, None if it is outside.

    A box whose right or bottom edge overflows to infinity is outside, too.
    """
    x, y, w, h = xywh
    if not all(math.isfinite(value) for value in (x, y, w, h, x + w, y + h)) or w <= 0 or h <= 0:
        return None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if left >= right or top >= bottom:
        return None
    if (left, top, right, bottom) == (x, y, x + w, y + h):
        return xywh  # not x + w - x, which may round
    return (left, top, right - left, bottom - top)
