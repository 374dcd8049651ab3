"""Precision, recall and average precision of relations that are right, wanted, both or neither.

Which object of one annotation is which of another, of the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import monotone

Band = Literal["head", "body", "tail"]

BANDS: tuple[Band, ...] = ("head", "body", "tail")
_BAND_ENDS = (0.8, 0.95)  # of all wanted relations: where the head ends, and the body


@dataclass(frozen=True)
class Relations:
    """Relations that were said of images whose truth is known, all `[relations]`.

    right: it is true; found: it is wanted, too; related: something is true of this pair.
    """

    predicate: Array
    confidence: Array
    right: Array
    found: Array
    related: Array

    def __len__(self) -> int:
        return len(self.predicate)

    def __getitem__(self, rows: Array | slice) -> Relations:
        columns = (self.predicate, self.confidence, self.right, self.found, self.related)
        return Relations(*(column[rows] for column in columns))

    def above(self, threshold: float) -> Relations:
        """Those of this confidence or a higher one, compared in float32, as shards have it."""
        return self[self.confidence >= np.float32(threshold)]


@dataclass(frozen=True)
class Quality:
    """Of `said` relations `right` ones are true and `found` ones wanted; `wanted` ones there are. NaN: of nothing."""

    said: int
    right: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        return _share(self.right, self.said)

    @property
    def recall(self) -> float:
        return _share(self.found, self.wanted)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if one of them is."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0 * (precision + recall)


def quality(relations: Relations, wanted: int) -> Quality:
    return Quality(len(relations), int(relations.right.sum()), int(relations.found.sum()), wanted)


def precision_recall(relations: Relations, wanted: int) -> tuple[Array, Array]:
    """Recall and monotone precision at every confidence that occurs, falling; recall 0 if nothing is wanted.

    Relations that are right but not wanted are left out: they are no mistakes, nor can they be found. Equal
    confidences are one step, so the order of relations doesn't matter.
    """
    ranked = relations[relations.found | ~relations.right]
    order = np.argsort(-ranked.confidence, kind="stable")
    confidence, found = ranked.confidence[order], np.cumsum(ranked.found[order])
    steps = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)) if len(order) else order
    return found[steps] / max(wanted, 1), monotone(found[steps] / (steps + 1))


def area(recall: Array, precision: Array, wanted: int) -> float:
    """Average precision: the area under monotone precision over recall (PASCAL VOC 2010); NaN if nothing is wanted."""
    return float((precision * np.diff(recall, prepend=0.0)).sum()) if wanted else float("nan")


def frequency_bands(wanted: Array) -> list[Band | None]:
    """The band of each predicate, `wanted` `[predicates]` times; None if never.

    The head are the most frequent predicates up to 80 % of all wanted relations, the body those up to 95 %, the
    tail the others; a predicate belongs where its first relation falls. Equally frequent ones count in their order.
    """
    order = np.argsort(-wanted, kind="stable")
    before = np.cumsum(wanted[order]) - wanted[order]
    bands: list[Band | None] = [None] * len(wanted)
    for number, start in zip(order.tolist(), before.tolist(), strict=True):
        if wanted[number]:
            bands[number] = BANDS[sum(start >= end * wanted.sum() for end in _BAND_ENDS)]
    return bands


def mean(values: Sequence[float] | Array) -> float:
    """NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


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
