"""Which object of one annotation is which of another, of the same pictures."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

NO_MATCH = -1


def best_pairs(first: Array, second: Array, quality: Array, count: int) -> Array:
    """Of candidate pairs the best, then the best of what is left, and so on; of equally good ones the first.

    Args:
        first, second, quality: `[candidates]`, the two of each pair and how well they fit.
        count: how many there are on the first side.

    Returns:
        `[count]`, the second one of each first one, or `NO_MATCH`.
    """
    order = np.lexsort((second, first, -quality))
    first, second = first[order], second[order]
    matches = np.full(count, NO_MATCH)
    while len(first):
        # a pair that is the best of both its sides is chosen, whatever happens to the others
        best_of_first, best_of_second = (np.unique(side, return_index=True)[1] for side in (first, second))
        chosen = np.intersect1d(best_of_first, best_of_second)
        matches[first[chosen]] = second[chosen]
        free = ~(np.isin(first, first[chosen]) | np.isin(second, second[chosen]))
        first, second = first[free], second[free]
    return matches


def box_iou(first: Array, second: Array) -> Array:
    """Intersection over union `[boxes]` of xyxy boxes, one by one; equal boxes have 1, even without area."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    intersection = np.maximum(sides, 0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0] + areas[1] - intersection
    overlap = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    return np.where((first == second).all(1), 1.0, overlap)
