"""Overlap of boxes in whole pixels: a box from x to x is one pixel wide, as in the official
evaluators.
"""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array


def pixel_iou(first: Array, second: Array, *, touching: bool) -> Array:
    """Intersection over union of pixel xyxy boxes; width and height are the difference of the
    corners plus one.

    Args:
        first, second: broadcastable to `[..., 4]`; computed in their own precision.
        touching: whether boxes that share only an edge overlap by one pixel (as in PASCAL VOC) or
            not at all (as in HICO-DET's published evaluators).

    Returns:
        `[...]`.
    """
    left_top = np.maximum(first[..., :2], second[..., :2])
    right_bottom = np.minimum(first[..., 2:], second[..., 2:])
    sides = np.maximum(right_bottom - left_top + 1, 0)
    intersection = sides[..., 0] * sides[..., 1]
    if not touching:
        intersection = np.where((left_top < right_bottom).all(-1), intersection, 0)
    return intersection / (pixel_area(first) + pixel_area(second) - intersection)


def pixel_area(boxes: Array) -> Array:
    """Number of pixels `[...]` of xyxy boxes `[..., 4]`."""
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def hull(first: Array, second: Array) -> Array:
    """Return the smallest xyxy boxes `[..., 4]` that enclose `first` and `second`."""
    left_top = np.minimum(first[..., :2], second[..., :2])
    return np.concatenate((left_top, np.maximum(first[..., 2:], second[..., 2:])), -1)
