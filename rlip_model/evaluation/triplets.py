"""Triplets of many images in columns: what the benchmarks of pairs (all but Visual Genome's) compute with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import TypeVar

import numpy as np

from rlip_model.evaluation.inputs import NOT_PREDICTED, Array, EvaluationImage, GroundTruth, PredictedPairs
from rlip_model.evaluation.matching import best_matches, equal_rows
from rlip_model.evaluation.overlap import pixel_iou

IMAGES_AT_ONCE = 64  # enough to spread numpy's overhead; few enough that all pairs of their detections fit in memory
MATCH_OVERLAP = 0.5
NO_LABEL = -1  # of the object that a true triplet does not have

AnyImage = TypeVar("AnyImage")


@dataclass(frozen=True)
class TripletTable:
    """One row per triplet, all `[rows]` but boxes `[rows, 4]` (xyxy, pixels); `image` counts within the block.

    scores: of true triplets 1.
    """

    image: Array
    subject_boxes: Array
    object_boxes: Array
    subjects: Array
    objects: Array
    predicates: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.image)

    def where(self, rows: Array) -> TripletTable:
        return TripletTable(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class TripletClasses:
    """Numbers for (subject label, object label, predicate)."""

    num_objects: int
    num_predicates: int

    def number(self, subjects: Array, objects: Array, predicates: Array) -> Array:
        return (subjects * self.num_objects + objects) * self.num_predicates + predicates

    def of(self, triplets: TripletTable) -> Array:
        return self.number(triplets.subjects, triplets.objects, triplets.predicates)

    def within_images(self, triplets: TripletTable) -> Array:
        """Numbers that are equal for equal classes of the same image only."""
        return triplets.image * (self.num_objects**2 * self.num_predicates) + self.of(triplets)

    def labels(self, numbers: Array) -> Array:
        """`[numbers, 3]`: subject label, object label, predicate."""
        pairs, predicates = np.divmod(numbers, self.num_predicates)
        return np.stack((*np.divmod(pairs, self.num_objects), predicates), -1)


def blocks(images: Iterable[AnyImage]) -> Iterator[list[AnyImage]]:
    """A few images at a time, so that a stream of any length needs little memory."""
    stream = iter(images)
    while block := list(islice(stream, IMAGES_AT_ONCE)):
        yield block


def best_triplets(images: Sequence[EvaluationImage], most: int, possible: Array | None = None) -> TripletTable:
    """The `most` best triplets of each image by falling score; equal ones by pair, then by predicate.

    Args:
        possible: `[predicates, objects]`, 0 for what cannot be: scored 0, yet not left out; all of it by default.
    """
    return _concatenate([_best(number, image.found, most, possible) for number, image in enumerate(images)])


def _best(image: int, found: PredictedPairs, most: int, possible: Array | None) -> TripletTable:
    scores = found.scores.astype(np.float32, copy=False)
    if possible is not None:
        impossible = possible.T[found.object_labels] == 0
        scores = np.where(impossible & (scores != NOT_PREDICTED), np.float32(0), scores)
    chosen = largest(scores.reshape(-1), most)
    chosen = chosen[scores.reshape(-1)[chosen] != NOT_PREDICTED]
    pairs, predicates = np.divmod(chosen, max(scores.shape[1], 1))
    return TripletTable(
        np.full(len(chosen), image),
        found.subject_boxes[pairs].astype(np.float32),
        found.object_boxes[pairs].astype(np.float32),
        found.subject_labels[pairs].astype(int),
        found.object_labels[pairs].astype(int),
        predicates,
        scores.reshape(-1)[chosen],
    )


def largest(scores: Array, most: int) -> Array:
    """Where the `most` largest are, in falling order, equal ones in theirs: the start of a stable sort, but faster.

    Of as many chunks as are wanted each has a largest one; what is below the least of these is not wanted.
    """
    candidates = np.arange(len(scores))
    if len(scores) > most:
        least = scores[: len(scores) // most * most].reshape(most, -1).max(1).min()
        candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:most]]


def ground_truth_triplets(images: Sequence[EvaluationImage]) -> TripletTable:
    """All annotated triplets, image by image."""
    return _concatenate([_true(number, image.truth) for number, image in enumerate(images)])


def _true(image: int, truth: GroundTruth) -> TripletTable:
    subjects, objects, predicates = truth.triplets.T
    boxes = np.append(truth.boxes, np.zeros((1, 4)), 0).astype(np.float32)  # NO_BOX, -1, means the last one
    labels = np.append(truth.labels, NO_LABEL)
    count = len(truth.triplets)
    columns = (boxes[subjects], boxes[objects], labels[subjects], labels[objects], predicates)
    return TripletTable(np.full(count, image), *columns, np.ones(count, dtype=np.float32))


def match(found: TripletTable, true: TripletTable, found_groups: Array, true_groups: Array) -> Array:
    """What each detection claims: both labels right, both boxes overlapping by half or more.

    The fit is the smaller of both overlaps. True triplets without object need the subject only.

    Args:
        found_groups, true_groups: `[detections]`, `[true ones]`, numbers of which equal ones may fit.

    Returns:
        `[detections]` as of `best_matches`.
    """
    detections, truths = equal_rows(found_groups, true_groups)
    without = true.objects[truths] == NO_LABEL
    fitting = found.subjects[detections] == true.subjects[truths]
    fitting &= (found.objects[detections] == true.objects[truths]) | without
    subject = pixel_iou(found.subject_boxes[detections], true.subject_boxes[truths], touching=False)
    object_ = pixel_iou(found.object_boxes[detections], true.object_boxes[truths], touching=False)
    quality = np.where(without, subject, np.minimum(subject, object_))
    fitting &= quality >= MATCH_OVERLAP
    return best_matches(detections[fitting], truths[fitting], quality[fitting], len(found))


def _concatenate(parts: Sequence[TripletTable]) -> TripletTable:
    return TripletTable(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(TripletTable))
    )
