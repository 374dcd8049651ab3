"""Triplets of many images as columns, for all benchmarks of pairs (every one but Visual Genome)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import TypeVar

import numpy as np

from rlip_model.evaluation.inputs import (
    NOT_PREDICTED,
    Array,
    EvaluationImage,
    ImageGroundTruth,
    PredictedPairs,
)
from rlip_model.evaluation.matching import best_matches, equal_rows
from rlip_model.evaluation.overlap import pixel_iou

# enough to amortize numpy's overhead, few enough that all pairs of detections fit in memory
IMAGES_AT_ONCE = 64
MATCH_OVERLAP = 0.5
NO_LABEL = -1  # object label of a ground-truth triplet without an object

AnyImage = TypeVar("AnyImage")


@dataclass(frozen=True)
class TripletTable:
    """One row per triplet. All columns are `[rows]`, but boxes are `[rows, 4]` (pixel xyxy).

    image: index within the block; scores: 1 for ground truth.
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

    def in_dataset(self, block: int) -> Array:
        """`[rows]`: the image of each row, numbered over all `blocks`, of which this one is number
        `block`.
        """
        return self.image + block * IMAGES_AT_ONCE

    def where(self, rows: Array) -> TripletTable:
        """Select rows by a mask or by indices."""
        return TripletTable(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class TripletClasses:
    """Numbers the classes (subject label, object label, predicate)."""

    num_objects: int
    num_predicates: int

    def number(self, subjects: Array, objects: Array, predicates: Array) -> Array:
        """Return the class numbers of labels and predicates of equal shape."""
        return (subjects * self.num_objects + objects) * self.num_predicates + predicates

    def of(self, triplets: TripletTable) -> Array:
        """Return the class number `[rows]` of each triplet."""
        return self.number(triplets.subjects, triplets.objects, triplets.predicates)

    def within_images(self, triplets: TripletTable) -> Array:
        """Numbers `[rows]` that are equal only for equal classes in the same image."""
        return triplets.image * (self.num_objects**2 * self.num_predicates) + self.of(triplets)

    def labels(self, numbers: Array) -> Array:
        """`[numbers, 3]`: subject label, object label, predicate."""
        pairs, predicates = np.divmod(numbers, self.num_predicates)
        return np.stack((*np.divmod(pairs, self.num_objects), predicates), -1)


def blocks(images: Iterable[AnyImage]) -> Iterator[list[AnyImage]]:
    """Yield a few images at a time, so that a stream of any length needs little memory."""
    stream = iter(images)
    while block := list(islice(stream, IMAGES_AT_ONCE)):
        yield block


def best_triplets(
    images: Sequence[EvaluationImage], limit: int, possible: Array | None = None
) -> TripletTable:
    """Return the `limit` best triplets of each image by descending score; equal scores by pair, then
    by predicate.

    Args:
        possible: `[predicates, objects]`, 0 for impossible combinations, which are scored 0 but
            kept; default: all are possible.
    """
    return _concatenate(
        [_best(number, image.predicted, limit, possible) for number, image in enumerate(images)]
    )


def _best(
    image: int, predicted: PredictedPairs, limit: int, possible: Array | None
) -> TripletTable:
    scores = predicted.scores.astype(np.float32, copy=False)
    if possible is not None:
        impossible = possible.T[predicted.object_labels] == 0
        scores = np.where(impossible & (scores != NOT_PREDICTED), np.float32(0), scores)
    chosen = largest(scores.reshape(-1), limit)
    chosen = chosen[scores.reshape(-1)[chosen] != NOT_PREDICTED]
    pairs, predicates = np.divmod(chosen, max(scores.shape[1], 1))
    return TripletTable(
        np.full(len(chosen), image),
        predicted.subject_boxes[pairs].astype(np.float32),
        predicted.object_boxes[pairs].astype(np.float32),
        predicted.subject_labels[pairs].astype(int),
        predicted.object_labels[pairs].astype(int),
        predicates,
        scores.reshape(-1)[chosen],
    )


def largest(scores: Array, limit: int) -> Array:
    """Indices of the `limit` largest scores, descending; equal scores keep their order.

    The same as the start of a stable sort, but faster: split the scores into `limit` chunks. Each
    chunk has a maximum, so nothing below the smallest maximum can be among the `limit` largest.
    """
    candidates = np.arange(len(scores))
    if len(scores) > limit:
        chunks = scores[: len(scores) // limit * limit].reshape(limit, -1)
        candidates = np.flatnonzero(scores >= chunks.max(1).min())
    return candidates[np.argsort(-scores[candidates], kind="stable")[:limit]]


def ground_truth_triplets(images: Sequence[EvaluationImage]) -> TripletTable:
    """Return all annotated triplets, image by image."""
    return _concatenate(
        [_targets(number, image.ground_truth) for number, image in enumerate(images)]
    )


def _targets(image: int, ground_truth: ImageGroundTruth) -> TripletTable:
    subjects, objects, predicates = ground_truth.triplets.T
    # index -1, NO_BOX, is the last row
    boxes = np.append(ground_truth.boxes, np.zeros((1, 4)), 0).astype(np.float32)
    labels = np.append(ground_truth.labels, NO_LABEL)
    count = len(ground_truth.triplets)
    columns = (boxes[subjects], boxes[objects], labels[subjects], labels[objects], predicates)
    return TripletTable(np.full(count, image), *columns, np.ones(count, dtype=np.float32))


def match(
    predicted: TripletTable, target: TripletTable, predicted_groups: Array, target_groups: Array
) -> Array:
    """Match detections to targets: both labels equal, and both boxes with an IoU of at least 0.5.

    The quality of a fit is the smaller of the two IoUs. A target without an object needs the
    subject only.

    Args:
        predicted_groups, target_groups: `[detections]` and `[targets]` integers; only equal groups
        can match.

    Returns:
        `[detections]`, see `best_matches`.
    """
    detections, targets = equal_rows(predicted_groups, target_groups)
    no_object = target.objects[targets] == NO_LABEL
    fitting = predicted.subjects[detections] == target.subjects[targets]
    fitting &= (predicted.objects[detections] == target.objects[targets]) | no_object
    subject = pixel_iou(
        predicted.subject_boxes[detections], target.subject_boxes[targets], touching=False
    )
    object_ = pixel_iou(
        predicted.object_boxes[detections], target.object_boxes[targets], touching=False
    )
    quality = np.where(no_object, subject, np.minimum(subject, object_))
    fitting &= quality >= MATCH_OVERLAP
    return best_matches(detections[fitting], targets[fitting], quality[fitting], len(predicted))


def _concatenate(parts: Sequence[TripletTable]) -> TripletTable:
    return TripletTable(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(TripletTable)
        )
    )
