"""Average precision and recall of the detections of a dataset, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rlip_model.distributed import gather
from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.matching import NO_MATCH, first_matches
from rlip_model.evaluation.precision import AveragePrecision, eleven_point, weighted_averages


@dataclass(frozen=True)
class Occurrences:
    """The image of each detection and of each target, for `ClassScores.resampled`.

    detections `[detections]` and targets `[targets]`: numbers of images; target_rows `[targets]`:
    rows of the classes;
    measure: what the average precision is.
    """

    detections: Array
    targets: Array
    target_rows: Array
    measure: AveragePrecision


@dataclass(frozen=True)
class ClassScores:
    """One row per class that occurs in the ground truth.

    `[classes]`: classes, their numbers, ascending; targets, detections and true_positives, counts;
    average_precision, 0 to 1. `[detections]`, class by class, each by descending score: scores, and
    correct (True for true positives), for drawing curves. occurrences: None if the images are not
    known.
    """

    classes: Array
    targets: Array
    detections: Array
    true_positives: Array
    average_precision: Array
    scores: Array
    correct: Array
    occurrences: Occurrences | None = None

    def resampled(self, counts: Array) -> ClassScores:
        """Return the scores of a dataset in which each image occurs `counts[image]` times, without
        scores for curves.

        The same as to evaluate such a dataset, but nothing is matched or sorted again.
        """
        occurrences = self.occurrences
        assert occurrences is not None
        rows, hits = self._true_positives
        weights = counts[occurrences.detections]
        total = _cumulative(weights)
        matched = _cumulative(weights[hits])
        ends = np.cumsum(self.detections)
        before = total[ends - self.detections]
        hit_ends = np.cumsum(self.true_positives)
        matched_before = matched[hit_ends - self.true_positives]
        targets = np.bincount(
            occurrences.target_rows, counts[occurrences.targets], len(self.classes)
        ).astype(int)
        precisions = weighted_averages(
            occurrences.measure,
            total[hits + 1] - before[rows],
            matched[1:] - matched_before[rows],
            rows,
            targets,
        )
        present = targets > 0
        return ClassScores(
            classes=self.classes[present],
            targets=targets[present],
            detections=(total[ends] - before)[present],
            true_positives=(matched[hit_ends] - matched_before)[present],
            average_precision=precisions[present],
            scores=self.scores[:0],
            correct=self.correct[:0],
        )

    @cached_property
    def _true_positives(self) -> tuple[Array, Array]:
        """`[true positives]`: the row of the class of each, and its place among the detections."""
        rows = np.repeat(np.arange(len(self.classes)), self.true_positives)
        return rows, np.flatnonzero(self.correct)

    @property
    def max_recall(self) -> Array:
        """Recall `[classes]` of all detections."""
        return self.true_positives / self.targets

    def mean(self, classes: Array | None = None) -> float:
        """Mean average precision of all or some classes; NaN if none of them occurs in the ground
        truth.
        """
        if classes is None:
            return mean(self.average_precision)
        return mean(self.average_precision[np.isin(self.classes, classes)])

    def weighted_mean(self) -> float:
        """Average precision, each class weighted by its number of targets; NaN without classes."""
        if not len(self.targets):
            return float("nan")
        return float(self.average_precision @ self.targets / self.targets.sum())

    def mean_max_recall(self) -> float:
        return mean(self.max_recall)

    def of_class(self, number: int) -> tuple[Array, Array]:
        """Scores, descending, and correctness of the detections of one class; none if it has no
        targets.
        """
        place = int(np.searchsorted(self.classes, number))
        if place == len(self.classes) or self.classes[place] != number:
            return self.scores[:0], self.correct[:0]
        end = int(self.detections[: place + 1].sum())
        rows = slice(end - int(self.detections[place]), end)
        return self.scores[rows], self.correct[rows]


def _cumulative(values: Array) -> Array:
    """`[values + 1]`: the sum of all values before each place."""
    return np.append(0, np.cumsum(values))


def mean(values: Array) -> float:
    """Return the mean; NaN of nothing, without a warning."""
    return float(values.mean()) if len(values) else float("nan")


@dataclass
class Tally:
    """Collects the detections and targets of a dataset, block by block."""

    target_classes: list[Array] = field(default_factory=list)
    predicted_classes: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    matches: list[Array] = field(default_factory=list)
    target_images: list[Array] = field(default_factory=list)
    predicted_images: list[Array] = field(default_factory=list)
    total: int = 0

    def add(
        self,
        target_classes: Array,
        predicted_classes: Array,
        scores: Array,
        matches: Array,
        images: tuple[Array, Array] | None = None,
    ) -> None:
        """Add one block.

        Args:
            target_classes: `[targets]`, class numbers.
            predicted_classes, scores, matches: `[detections]`, image by image, in the order in
                which detections are matched. A match is an index into the block's targets, or
                `NO_MATCH`.
            images: `[targets]` and `[detections]`, numbers of images in the dataset; only
                `resampled` needs them.
        """
        self.target_classes.append(target_classes)
        self.predicted_classes.append(predicted_classes)
        self.scores.append(scores)
        self.matches.append(
            np.where(matches == NO_MATCH, NO_MATCH, matches + self.total).astype(np.int32)
        )
        self.total += len(target_classes)
        if images is not None:
            self.target_images.append(images[0].astype(np.int32))
            self.predicted_images.append(images[1].astype(np.int32))

    def class_scores(
        self, average_precision: AveragePrecision = eleven_point, *, last_first: bool = False
    ) -> ClassScores:
        """Score every class that has targets; detections of other classes are left out and match
        nothing.

        Of several processes, each has images of its own; all return the common result.

        The first detection matched to a target is a true positive, all others are false positives.

        Args:
            last_first: sort detections of equal score from last to first, instead of in the given
                order.
        """
        tally = _merged(gather(self))
        classes, target_rows, targets = np.unique(
            _joined(tally.target_classes, int), return_inverse=True, return_counts=True
        )
        predicted = _joined(tally.predicted_classes, int)
        known = np.isin(predicted, classes)
        correct = first_matches(_joined(tally.matches, int)[known])
        predicted = predicted[known]
        scores = _joined(tally.scores, float)[known]
        by_class = np.argsort(predicted, kind="stable")
        ends = np.searchsorted(predicted[by_class], classes, side="right")
        parts = [_descending(rows, scores, last_first) for rows in np.split(by_class, ends)[:-1]]
        true_positives = [correct[rows] for rows in parts]
        precisions = map(average_precision, true_positives, targets.tolist())
        order = _joined(parts, int)
        occurrences = None
        if len(tally.target_images) == len(tally.matches):
            images = _joined(tally.predicted_images, int)[known][order]
            target_images = _joined(tally.target_images, int)
            occurrences = Occurrences(
                images, target_images, target_rows.reshape(-1), average_precision
            )
        return ClassScores(
            classes=classes,
            targets=targets,
            detections=np.array([len(rows) for rows in parts], dtype=int),
            true_positives=np.array([rows.sum() for rows in true_positives], dtype=int),
            average_precision=np.array(list(precisions), dtype=float),
            scores=scores[order],
            correct=correct[order],
            occurrences=occurrences,
        )


def _merged(parts: Sequence[Tally]) -> Tally:
    """Return the tally of all images; of several parts, it does not know which ones."""
    if len(parts) == 1:
        return parts[0]
    merged = Tally()
    for part in parts:
        merged.target_classes += part.target_classes
        merged.predicted_classes += part.predicted_classes
        merged.scores += part.scores
        merged.matches += [
            np.where(match == NO_MATCH, NO_MATCH, match + merged.total) for match in part.matches
        ]
        merged.total += part.total
    return merged


def _descending(rows: Array, scores: Array, last_first: bool) -> Array:
    """`rows` by descending score; of equal scores, the first (or the last) row comes first."""
    rows = rows[::-1] if last_first else rows
    return rows[np.argsort(-scores[rows], kind="stable")]


def _joined(parts: list[Array], kind: type) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
