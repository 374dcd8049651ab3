"""Greedy non-maximum suppression within groups of detections, for many groups at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.overlap import pixel_iou
from rlip_model.evaluation.triplets import TripletClasses, TripletTable


@dataclass(frozen=True)
class PairSuppression:
    """Pair NMS: drop the worse of two pairs if IoU(subjects)^subject x IoU(objects)^object exceeds
    the threshold.
    """

    threshold: float = 0.7
    subject: float = 1.0
    object: float = 0.5

    def best(self, predicted: TripletTable, classes: TripletClasses) -> TripletTable:
        """Return the triplets that no better triplet of the same class in the same image
        suppresses.
        """

        def overlap(better: Array, worse: Array) -> Array:
            subjects = pixel_iou(
                predicted.subject_boxes[better], predicted.subject_boxes[worse], touching=True
            )
            objects = pixel_iou(
                predicted.object_boxes[better], predicted.object_boxes[worse], touching=True
            )
            return subjects**self.subject * objects**self.object

        groups = classes.within_images(predicted)
        return predicted.where(unsuppressed(groups, predicted.scores, overlap, self.threshold))


def unsuppressed(
    groups: Array, scores: Array, overlap: Callable[[Array, Array], Array], threshold: float
) -> Array:
    """Greedy non-maximum suppression within groups; equal scores stay in the given order.

    Args:
        groups: `[detections]` integers; only detections of the same group suppress each other.
        scores: `[detections]`.
        overlap: overlap of detections `[candidates]` with worse ones `[candidates]`.
        threshold: largest overlap that is kept.

    Returns:
        `[detections]`, True for those that remain.
    """
    order = np.lexsort((-scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    worse = np.repeat(np.arange(len(order)), rank)
    better = worse - 1 - (np.arange(len(worse)) - np.repeat(np.cumsum(rank) - rank, rank))
    too_close = overlap(order[better], order[worse]) > threshold
    better = better[too_close]
    worse = worse[too_close]
    remains = np.ones(len(order), dtype=bool)
    # By rank, so that a detection's fate is settled before it suppresses others.
    for place in np.unique(rank[better]):
        now = rank[better] == place
        remains[worse[now][remains[better[now]]]] = False
    result = np.empty_like(remains)
    result[order] = remains
    return result
