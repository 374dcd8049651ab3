"""Greedy suppression of detections that overlap better ones of their group, for many groups at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.overlap import pixel_iou
from rlip_model.evaluation.triplets import TripletClasses, TripletTable


@dataclass(frozen=True)
class PairSuppression:
    """Pair NMS: of two pairs the worse goes if IoU(subjects)^subject x IoU(objects)^object exceeds the threshold."""

    threshold: float = 0.7
    subject: float = 1.0
    object: float = 0.5

    def best(self, found: TripletTable, classes: TripletClasses) -> TripletTable:
        """Those that no better triplet of the same class in the same image suppresses."""

        def overlap(better: Array, worse: Array) -> Array:
            subjects = pixel_iou(found.subject_boxes[better], found.subject_boxes[worse], touching=True)
            objects = pixel_iou(found.object_boxes[better], found.object_boxes[worse], touching=True)
            return subjects**self.subject * objects**self.object

        return found.where(unsuppressed(classes.within_images(found), found.scores, overlap, self.threshold))


def unsuppressed(groups: Array, scores: Array, overlap: Callable[[Array, Array], Array], threshold: float) -> Array:
    """Greedy non-maximum suppression within groups; equal scores in the order given.

    Args:
        groups: `[detections]` integers; only equal ones suppress each other.
        scores: `[detections]`.
        overlap: of detections `[candidates]` with worse ones `[candidates]`.
        threshold: up to which overlaps are allowed.

    Returns:
        `[detections]`, True for what is left.
    """
    order = np.lexsort((-scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    worse = np.repeat(np.arange(len(order)), rank)
    better = worse - 1 - (np.arange(len(worse)) - np.repeat(np.cumsum(rank) - rank, rank))
    too_close = overlap(order[better], order[worse]) > threshold
    better, worse = better[too_close], worse[too_close]
    kept = np.ones(len(order), dtype=bool)
    for place in np.unique(rank[better]):  # whether the best k of a group stay is known before the next suppresses
        now = rank[better] == place
        kept[worse[now][kept[better[now]]]] = False
    result = np.empty_like(kept)
    result[order] = kept
    return result
