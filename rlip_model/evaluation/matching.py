"""Which detections meet which true triplets, for many images at once."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

NO_MATCH = -1  # of a detection that fits nothing true


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


def best_matches(detections: Array, truths: Array, quality: Array, count: int) -> Array:
    """Each detection claims the true one that it fits best, the earlier one on equality.

    A claim is never moved to the second best if the best is taken: so do the published evaluators. Of true ones that
    are equal only the first is ever claimed, therefore.

    Args:
        detections, truths: `[candidates]`, which detection fits which true one.
        quality: `[candidates]` of the fit.
        count: of detections.

    Returns:
        `[detections]`, true ones, or `NO_MATCH`.
    """
    best_first = np.lexsort((truths, -quality, detections))
    claiming, best = np.unique(detections[best_first], return_index=True)
    claims = np.full(count, NO_MATCH)
    claims[claiming] = truths[best_first][best]
    return claims


def first_matches(claims: Array) -> Array:
    """`[detections]`, True for the first claim of each true one."""
    made = np.flatnonzero(claims != NO_MATCH)
    _, first = np.unique(claims[made], return_index=True)
    hits = np.zeros(len(claims), dtype=bool)
    hits[made[first]] = True
    return hits
