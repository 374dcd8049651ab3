"""Precision, recall and average precision of predicted relations, and one-to-one matching by score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import monotone

FrequencyBand = Literal["head", "body", "tail"]

BANDS: tuple[FrequencyBand, ...] = ("head", "body", "tail")
_BAND_ENDS = (0.8, 0.95)  # shares of all targets at which the head and the body end


@dataclass(frozen=True)
class Relations:
    """Predicted relations of images with ground truth, all arrays `[relations]`.

    true_positive: the ground truth has the relation. matched: it is a target, so recall counts it.
    related: the ground truth has some relation between the same two objects. image: the number of the image in the
    ground truth. annotated: it has no confidence, which counts as 1.
    """

    predicate: Array
    confidence: Array
    true_positive: Array
    matched: Array
    related: Array
    image: Array
    annotated: Array

    def __len__(self) -> int:
        return len(self.predicate)

    def __getitem__(self, rows: Array | slice) -> Relations:
        return Relations(*(column[rows] for column in vars(self).values()))

    def above(self, threshold: float) -> Relations:
        """Return those with at least this confidence, compared in float32, the type of shards."""
        return self[self.confidence >= np.float32(threshold)]


@dataclass(frozen=True)
class Targets:
    """The relations that recall counts, all arrays `[targets]`.

    image: as of `Relations`. reachable: the run has both objects.
    """

    predicate: Array
    image: Array
    reachable: Array

    def __getitem__(self, rows: Array) -> Targets:
        return Targets(self.predicate[rows], self.image[rows], self.reachable[rows])


@dataclass(frozen=True)
class Quality:
    """Counts of relations, and the measures that follow from them; a ratio over nothing is NaN.

    predicted: relations of the run; true_positives: those that the ground truth has.
    targets: relations that recall counts; matched: those of them that were predicted.
    """

    predicted: int
    true_positives: int
    matched: int
    targets: int

    @property
    def precision(self) -> float:
        return _share(self.true_positives, self.predicted)

    @property
    def recall(self) -> float:
        return _share(self.matched, self.targets)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if either is 0."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0 * (precision + recall)


def quality(relations: Relations, targets: int) -> Quality:
    return Quality(len(relations), int(relations.true_positive.sum()), int(relations.matched.sum()), targets)


def precision_recall(relations: Relations, targets: int) -> tuple[Array, Array]:
    """Recall and monotone precision at each distinct confidence, in falling order; recall is 0 without targets.

    True positives that are not targets are left out: they are neither mistakes nor matches. Equal confidences
    are one step, so the order of relations does not matter.
    """
    ranked = relations[relations.matched | ~relations.true_positive]
    order = np.argsort(-ranked.confidence, kind="stable")
    confidence, matched = ranked.confidence[order], np.cumsum(ranked.matched[order])
    steps = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)) if len(order) else order
    return matched[steps] / max(targets, 1), monotone(matched[steps] / (steps + 1))


def area(recall: Array, precision: Array, targets: int) -> float:
    """Average precision: the area under monotone precision over recall (PASCAL VOC 2010); NaN without targets."""
    return float((precision * np.diff(recall, prepend=0.0)).sum()) if targets else float("nan")


def frequency_bands(targets: Array) -> list[FrequencyBand | None]:
    """Return the band of each predicate by its number of targets `[predicates]`; None without any.

    The most frequent predicates with 80% of all targets are the head, those up to 95% the body, the others the
    tail. A predicate belongs to the band in which its first target falls. Ties keep their order.
    """
    order = np.argsort(-targets, kind="stable")
    before = np.cumsum(targets[order]) - targets[order]
    bands: list[FrequencyBand | None] = [None] * len(targets)
    for number, start in zip(order.tolist(), before.tolist(), strict=True):
        if targets[number]:
            bands[number] = BANDS[sum(start >= end * targets.sum() for end in _BAND_ENDS)]
    return bands


def mean(values: Sequence[float] | Array) -> float:
    """NaN for no values."""
    return float(np.mean(values)) if len(values) else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


NO_MATCH = -1


def best_pairs(first: Array, second: Array, quality: Array, count: int) -> Array:
    """Match one to one: take the best candidate pair, then the best of those left, and so on; ties go to the first.

    Arguments `[candidates]`: both members and how well they fit. Returns the match of each of the `count` members of
    the first side, or `NO_MATCH`.
    """
    order = np.lexsort((second, first, -quality))
    first, second = first[order], second[order]
    matches = np.full(count, NO_MATCH)
    while len(first):
        # A pair that is the best for both its members is final, whatever happens to the others.
        best_of_first, best_of_second = (np.unique(side, return_index=True)[1] for side in (first, second))
        chosen = np.intersect1d(best_of_first, best_of_second)
        matches[first[chosen]] = second[chosen]
        free = ~(np.isin(first, first[chosen]) | np.isin(second, second[chosen]))
        first, second = first[free], second[free]
    return matches
