"""What an evaluation is given for one image: its true triplets, and the pairs that a model found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlip_model.postprocess import TripletDetections

Array = NDArray[Any]
NOT_PREDICTED = -np.inf  # the score of a triplet that is no detection at all, other than one with score 0
NO_BOX = -1  # in place of an object's index: the triplet has a subject only (V-COCO)


class EvaluationError(ValueError):
    """Input that would make numbers wrong. The message is one line: which image, what, and what it should be."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of one image.

    boxes `[boxes, 4]` xyxy in pixels; labels `[boxes]` from 0; triplets `[triplets, 3]`, each the indices of the
    subject's and the object's box (or `NO_BOX`) and the predicate, from 0.
    """

    boxes: Array
    labels: Array
    triplets: Array

    @classmethod
    def from_lists(cls, boxes: Any, labels: Any, triplets: Any) -> GroundTruth:
        """Of nested lists, empty ones included.

        Raises:
            EvaluationError: they are not of these shapes.
        """
        return cls(table(boxes, (-1, 4), np.float32), table(labels, (-1,), int), table(triplets, (-1, 3), int))

    def check(self, image: str, num_objects: int, num_predicates: int, *, objectless: bool = False) -> None:
        """`objectless`: whether triplets may have no object. Raises EvaluationError."""
        check_boxes(image, "true box", self.boxes)
        check_equal(image, "labels of true boxes", len(self.labels), len(self.boxes))
        check_range(image, "label of a true box", self.labels, 0, num_objects)
        subjects, objects, predicates = self.triplets.T
        check_range(image, "subject of a true triplet", subjects, 0, len(self.boxes))
        check_range(image, "object of a true triplet", objects, NO_BOX if objectless else 0, len(self.boxes))
        check_range(image, "predicate of a true triplet", predicates, 0, num_predicates)


@dataclass(frozen=True)
class PredictedPairs:
    """The pairs of boxes that a model found in one image, and how sure it is of each predicate of each.

    subject_boxes, object_boxes `[pairs, 4]` xyxy in pixels; subject_labels, object_labels `[pairs]`;
    scores `[pairs, predicates]` of whole triplets, `NOT_PREDICTED` for those that were not predicted.
    """

    subject_boxes: Array
    object_boxes: Array
    subject_labels: Array
    object_labels: Array
    scores: Array

    @classmethod
    def from_detections(cls, found: TripletDetections) -> PredictedPairs:
        """Of what `rlip_model.postprocess` makes."""
        boxes = (found.subject_boxes.float().cpu().numpy(), found.object_boxes.float().cpu().numpy())
        labels = (found.subject_labels.cpu().numpy(), found.object_labels.cpu().numpy())
        return cls(*boxes, *labels, found.relation_scores.float().cpu().numpy())

    def __len__(self) -> int:
        return len(self.object_labels)

    def check(self, image: str, num_objects: int, num_predicates: int) -> None:
        """Raises EvaluationError."""
        for name, boxes in (("subject", self.subject_boxes), ("object", self.object_boxes)):
            check_boxes(image, f"predicted {name} box", boxes)
            check_equal(image, f"predicted {name} boxes", len(boxes), len(self))
        for name, labels in (("subject", self.subject_labels), ("object", self.object_labels)):
            check_equal(image, f"predicted {name} labels", len(labels), len(self))
            check_range(image, f"predicted {name} label", labels, 0, num_objects)
        if self.scores.shape != (len(self), num_predicates):
            expected = f"{len(self)} pairs x {num_predicates} predicates"
            raise EvaluationError(f"{image}: scores have the shape {self.scores.shape}, not {expected}")
        check_finite(image, "score", self.scores[self.scores != NOT_PREDICTED])


@dataclass(frozen=True)
class EvaluationImage:
    """One image: its name (for messages), what is in it, and what was found in it."""

    name: str
    truth: GroundTruth
    found: PredictedPairs


def table(values: Any, shape: tuple[int, ...], kind: Any) -> Array:
    """Nested lists, empty ones included, as an array; None becomes NaN, and what is too large infinite.

    Args:
        shape: beginning with -1, for any number of rows.

    Raises:
        EvaluationError: they are not of that shape, or not whole numbers though `kind` is `int`.
    """
    try:
        found = np.asarray(values)
        if not found.size and found.ndim <= len(shape):
            return np.zeros((0, *shape[1:]), dtype=kind)
        with np.errstate(over="ignore", invalid="ignore"):
            array = found.astype(kind)
            whole = kind is not int or bool((array == found.astype(float)).all())
    except (TypeError, ValueError, OverflowError) as reason:
        raise EvaluationError(f"not a table of numbers of the shape {shape}: {reason}") from reason
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not whole:
        numbers = "whole numbers" if kind is int else "numbers"
        raise EvaluationError(f"not a table of {numbers} of the shape {shape}: {str(values)[:80]}")
    return array


def check_boxes(image: str, what: str, boxes: Array) -> None:
    """Raises EvaluationError: numbers that are not finite, or a right side left of the left one."""
    check_finite(image, what, boxes)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if inverted.any():
        box = boxes[inverted.argmax()].tolist()
        raise EvaluationError(f"{image}: {what} {box} is inside out; boxes are xyxy: left, top, right, bottom")


def check_finite(image: str, what: str, values: Array) -> None:
    """Raises EvaluationError: NaN or infinite."""
    if not np.isfinite(values).all():
        raise EvaluationError(f"{image}: a {what} is NaN or infinite; leave it out or mend the model's output")


def check_range(image: str, what: str, values: Array, least: int, end: int) -> None:
    """Raises EvaluationError: not all of `least` to `end` - 1."""
    wrong = (values < least) | (values >= end)
    if wrong.any():
        known = f"only {least} to {end - 1} exist" if end > least else "there are none"
        raise EvaluationError(f"{image}: {what} is {values[wrong][0]}, but {known}")


def check_equal(image: str, what: str, found: int, expected: int) -> None:
    """Raises EvaluationError: one number is not the other."""
    if found != expected:
        raise EvaluationError(f"{image}: {found} {what}, but there are {expected} of what they belong to")
