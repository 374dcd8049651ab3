"""Average precision of detections sorted by descending confidence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlip_model.evaluation.inputs import Array

# Some are slightly too large, as in the published evaluators: a recall of 3/10 does not reach the
# fourth point.
ELEVEN_POINTS = np.arange(0, 1.1, 0.1)
COCO_POINTS = np.linspace(0, 1, 101)

# From the true positives, sorted by descending score, and the number of targets.
AveragePrecision = Callable[[Array, int], float]


def curve(true_positives: Array, targets: int) -> tuple[Array, Array]:
    """Recall and precision `[detections]` after each detection.

    Args:
        true_positives: `[detections]`, whether each is one.
        targets: number of targets, above 0.
    """
    matched = np.cumsum(true_positives)
    return matched / targets, matched / np.arange(1, len(true_positives) + 1)


def monotone(precision: Array) -> Array:
    """Return the best precision at each recall or a larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def eleven_point(true_positives: Array, targets: int) -> float:
    """Mean of the monotone precision at eleven recalls (PASCAL VOC 2007); 0 without detections."""
    return _mean_at(ELEVEN_POINTS, true_positives, targets)


def coco_point(true_positives: Array, targets: int) -> float:
    """Mean of the monotone precision at 101 recalls (COCO); 0 without detections."""
    return _mean_at(COCO_POINTS, true_positives, targets)


def _mean_at(points: Array, true_positives: Array, targets: int) -> float:
    recall, precision = curve(true_positives, targets)
    reached = np.searchsorted(recall, points, side="left")
    return float(np.append(monotone(precision), 0.0)[reached].sum() / len(points))


def area(true_positives: Array, targets: int) -> float:
    """Area under the monotone precision-recall curve (PASCAL VOC 2010); 0 without detections."""
    recall, precision = curve(true_positives, targets)
    return float((monotone(precision) * np.diff(recall, prepend=0.0)).sum())


def weighted_averages(
    measure: AveragePrecision, ranks: Array, matched: Array, rows: Array, targets: Array
) -> Array:
    """`[classes]`: the average precision of each class whose detections and targets occur several
    times or never.

    The same as `measure` of the repeated detections: only true positives raise recall, and the
    precision after the last repetition of a true positive is its best.

    Args:
        measure: `eleven_point`, `coco_point` or `area`.
        ranks, matched: `[true positives]`, class by class, each by descending score: how many
            detections, and how many true positives, there are up to and including it.
        rows: `[true positives]`, the class of each, ascending.
        targets: `[classes]`; the average precision without targets is 0.
    """
    recall = matched / np.maximum(targets, 1)[rows]
    above_later_classes = 2.0 * (len(targets) - rows)
    precision = monotone(matched / np.maximum(ranks, 1) + above_later_classes) - above_later_classes
    reached = _REACHED[measure](recall)
    first = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    gained = np.diff(reached, prepend=0.0)
    gained[first] = reached[first]
    return np.bincount(rows, precision * gained * (targets[rows] > 0), minlength=len(targets))


# The share of a curve that lies at this recall `[detections]` or a smaller one.
_REACHED: dict[AveragePrecision, Callable[[Array], Array]] = {
    eleven_point: lambda recall: (
        np.searchsorted(ELEVEN_POINTS, recall, side="right") / len(ELEVEN_POINTS)
    ),
    coco_point: lambda recall: (
        np.searchsorted(COCO_POINTS, recall, side="right") / len(COCO_POINTS)
    ),
    area: lambda recall: recall,
}
