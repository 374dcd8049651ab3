"""Match detections to ground truth, for many images at once."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

NO_MATCH = -1  # a detection that fits no target


def equal_rows(first: Array, second: Array) -> tuple[Array, Array]:
    """Return all (i, j) with first[i] == second[j], ordered by i, then by j.

    Args:
        first, second: `[rows]` integers.
    """
    order = np.argsort(second, kind="stable")
    start = np.searchsorted(second[order], first, "left")
    end = np.searchsorted(second[order], first, "right")
    counts = end - start
    rows = np.repeat(np.arange(len(first)), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[np.repeat(start, counts) + place]


def best_matches(detections: Array, targets: Array, quality: Array, count: int) -> Array:
    """Match each detection to the target that it fits best; of equal fits, the earlier target.

    As in the published evaluators, a detection never falls back to its second-best target when the
    best one is taken. Of identical targets, only the first is therefore ever matched.

    Args:
        detections, targets: `[candidates]`, the pairs that fit.
        quality: `[candidates]`, how well each pair fits.
        count: number of detections.

    Returns:
        `[detections]`, an index into the targets, or `NO_MATCH`.
    """
    best_first = np.lexsort((targets, -quality, detections))
    matched, best = np.unique(detections[best_first], return_index=True)
    matches = np.full(count, NO_MATCH)
    matches[matched] = targets[best_first][best]
    return matches


def first_matches(matches: Array) -> Array:
    """`[detections]`, True for the first detection matched to each target."""
    matched = np.flatnonzero(matches != NO_MATCH)
    _, first = np.unique(matches[matched], return_index=True)
    true_positives = np.zeros(len(matches), dtype=bool)
    true_positives[matched[first]] = True
    return true_positives
