"""Average precision of detections sorted by descending confidence."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

# Some are slightly too large, as in the published evaluators: a recall of 3/10 does not reach the fourth point.
ELEVEN_POINTS = np.arange(0, 1.1, 0.1)


def curve(true_positives: Array, targets: int) -> tuple[Array, Array]:
    """Recall and precision `[detections]` after each detection.

    Args:
        true_positives: `[detections]`, whether each is one.
        targets: number of targets, above 0.
    """
    matched = np.cumsum(true_positives)
    return matched / targets, matched / np.arange(1, len(true_positives) + 1)


def monotone(precision: Array) -> Array:
    """The best precision at each recall or a larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def eleven_point(true_positives: Array, targets: int) -> float:
    """Mean of the monotone precision at eleven recalls (PASCAL VOC 2007); 0 without detections."""
    recall, precision = curve(true_positives, targets)
    reached = np.searchsorted(recall, ELEVEN_POINTS, side="left")
    return float(np.append(monotone(precision), 0.0)[reached].sum() / len(ELEVEN_POINTS))


def area(true_positives: Array, targets: int) -> float:
    """Area under the monotone precision-recall curve (PASCAL VOC 2010); 0 without detections."""
    recall, precision = curve(true_positives, targets)
    return float((monotone(precision) * np.diff(recall, prepend=0.0)).sum())
