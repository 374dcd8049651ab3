"""What the detections of a data set are worth, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.matching import NO_MATCH, first_matches
from rlip_model.evaluation.precision import eleven_point

AveragePrecision = Callable[[Array, int], float]  # of hits in falling order of score, and the number of true ones


@dataclass(frozen=True)
class ClassScores:
    """One row per class that is true somewhere.

    All `[classes]`: classes, their numbers, rising; truths, detections, hits, counts; average_precision, 0 to 1.
    All `[detections]`, class by class, in each by falling score: scores and correct, for drawing curves.
    """

    classes: Array
    truths: Array
    detections: Array
    hits: Array
    average_precision: Array
    scores: Array
    correct: Array

    @property
    def max_recall(self) -> Array:
        """Recall `[classes]` of all detections."""
        return self.hits / self.truths

    def mean(self, classes: Array | None = None) -> float:
        """Mean average precision of all or some classes; NaN if none of them is true anywhere."""
        kept = slice(None) if classes is None else np.isin(self.classes, classes)
        return mean(self.average_precision[kept])

    def weighted_mean(self) -> float:
        """Average precision, classes weighted by how often they are true; NaN without classes."""
        return float(self.average_precision @ self.truths / self.truths.sum()) if len(self.truths) else float("nan")

    def mean_max_recall(self) -> float:
        return mean(self.max_recall)

    def of_class(self, number: int) -> tuple[Array, Array]:
        """Scores, falling, and correctness of the detections of one class; none if it is true nowhere."""
        place = int(np.searchsorted(self.classes, number))
        if place == len(self.classes) or self.classes[place] != number:
            return self.scores[:0], self.correct[:0]
        end = int(self.detections[: place + 1].sum())
        own = slice(end - int(self.detections[place]), end)
        return self.scores[own], self.correct[own]


def mean(values: Array) -> float:
    """NaN of nothing, without a warning."""
    return float(values.mean()) if len(values) else float("nan")


@dataclass
class Tally:
    """Collects a data set block by block."""

    true_classes: list[Array] = field(default_factory=list)
    found_classes: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    claims: list[Array] = field(default_factory=list)
    total: int = 0

    def add(self, true_classes: Array, found_classes: Array, scores: Array, claims: Array) -> None:
        """One block.

        Args:
            true_classes: `[true ones]`, numbers of classes.
            found_classes, scores, claims: `[detections]`, image by image, in each in the order in which they claim.
                Claims number the block's true ones (or are `NO_MATCH`).
        """
        self.true_classes.append(true_classes)
        self.found_classes.append(found_classes)
        self.scores.append(scores)
        self.claims.append(np.where(claims == NO_MATCH, NO_MATCH, claims + self.total).astype(np.int32))
        self.total += len(true_classes)

    def class_scores(
        self, average_precision: AveragePrecision = eleven_point, *, last_first: bool = False
    ) -> ClassScores:
        """Of every class that is true somewhere; detections of other classes are left out, and claim nothing.

        The first detection to claim a true one is right, others are wrong.

        Args:
            last_first: detections of equal score count from the last one given to the first, not as given.
        """
        classes, truths = np.unique(_joined(self.true_classes, int), return_counts=True)
        found = _joined(self.found_classes, int)
        known = np.isin(found, classes)
        correct = first_matches(_joined(self.claims, int)[known])
        found, scores = found[known], _joined(self.scores, float)[known]
        by_class = np.argsort(found, kind="stable")
        ends = np.searchsorted(found[by_class], classes, side="right")
        parts = [_falling(rows, scores, last_first) for rows in np.split(by_class, ends)[:-1]]
        hits = [correct[rows] for rows in parts]
        precisions = [average_precision(own, int(count)) for own, count in zip(hits, truths, strict=True)]
        order = _joined(parts, int)
        return ClassScores(
            classes=classes,
            truths=truths,
            detections=np.array([len(own) for own in hits], dtype=int),
            hits=np.array([own.sum() for own in hits], dtype=int),
            average_precision=np.array(precisions, dtype=float),
            scores=scores[order],
            correct=correct[order],
        )


def _falling(rows: Array, scores: Array, last_first: bool) -> Array:
    """`rows` by falling score; of equal ones the first, or the last, comes first."""
    rows = rows[::-1] if last_first else rows
    return rows[np.argsort(-scores[rows], kind="stable")]


def _joined(parts: list[Array], kind: type) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
