"""Average precision from detections in falling order of confidence."""

from __future__ import annotations

import numpy as np

from rlip_model.evaluation.inputs import Array

# rounded up here and there, as in the published evaluators: a recall of 3/10 does not reach the fourth
ELEVEN_POINTS = np.arange(0, 1.1, 0.1)


def curve(hits: Array, truths: int) -> tuple[Array, Array]:
    """Recall and precision `[detections]` after each detection; `truths` above 0."""
    found = np.cumsum(hits)
    return found / truths, found / np.arange(1, len(hits) + 1)


def monotone(precision: Array) -> Array:
    """The best precision at this recall or a larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def eleven_point(hits: Array, truths: int) -> float:
    """Mean of the monotone precision at eleven recalls (PASCAL VOC 2007); 0 without detections."""
    recall, precision = curve(hits, truths)
    reached = np.searchsorted(recall, ELEVEN_POINTS, side="left")
    return float(np.append(monotone(precision), 0.0)[reached].sum() / len(ELEVEN_POINTS))


def area(hits: Array, truths: int) -> float:
    """Area under the monotone precision over recall (PASCAL VOC 2010); 0 without detections."""
    recall, precision = curve(hits, truths)
    return float((monotone(precision) * np.diff(recall, prepend=0.0)).sum())
