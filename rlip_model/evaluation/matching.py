"""Which detections meet which true triplets, for many images at once."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

NO_CLAIM = -1  # of a detection that fits nothing true


def equal_rows(first: Array, second: Array) -> tuple[Array, Array]:
    """All (i, j) with first[i] == second[j], ordered by i, then by j.

    Args:
        first, second: `[rows]` integers.
    """
    order = np.argsort(second, kind="stable")
    start, end = (np.searchsorted(second[order], first, side) for side in ("left", "right"))
    counts = end - start
    rows = np.repeat(np.arange(len(first)), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[np.repeat(start, counts) + place]


def best_claims(detections: Array, truths: Array, quality: Array, same: Array, count: int) -> Array:
    """Each detection claims the true one that it fits best, the earlier one on equality.

    A claim is never moved to the second best if the best is taken: so do the published evaluators.

    Args:
        detections, truths: `[candidates]`, which detection fits which true one.
        quality: `[candidates]` of the fit.
        same: `[true ones]`; those that can be claimed only once altogether have the same number.
        count: of detections.

    Returns:
        `[detections]`, the number in `same`, or `NO_CLAIM`.
    """
    best_first = np.lexsort((truths, -quality, detections))
    claiming, best = np.unique(detections[best_first], return_index=True)
    claims = np.full(count, NO_CLAIM)
    claims[claiming] = same[truths[best_first][best]]
    return claims


def first_claims(claims: Array) -> Array:
    """`[detections]`, True for the first claim of each true one."""
    made = np.flatnonzero(claims != NO_CLAIM)
    _, first = np.unique(claims[made], return_index=True)
    hits = np.zeros(len(claims), dtype=bool)
    hits[made[first]] = True
    return hits


def first_of_equals(rows: Array) -> Array:
    """For each of `[rows, columns]` the index of the first equal row, `[rows]`."""
    if not len(rows):
        return np.zeros(0, dtype=int)
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[number.reshape(-1)]
