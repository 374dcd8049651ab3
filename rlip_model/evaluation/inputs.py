"""The input of an evaluation for one image: its ground-truth triplets and the predicted pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlip_model.postprocess import TripletDetections

Array: TypeAlias = NDArray[Any]
Number = type[int] | type[float] | type[np.float32]
# the score of a triplet that is not a detection, unlike a detection with score 0
NOT_PREDICTED = -np.inf
NO_BOX = -1  # object index of a triplet that has a subject only (V-COCO)


class EvaluationError(ValueError):
    """Invalid input. The message is one line: the image, the wrong value, and what is expected."""


@dataclass(frozen=True)
class ImageGroundTruth:
    """The annotations of one image.

    boxes `[boxes, 4]` pixel xyxy; labels `[boxes]` from 0; triplets `[triplets, 3]`: the index of
    the subject's box, the index of the object's box (or `NO_BOX`), and the predicate, from 0.
    """

    boxes: Array
    labels: Array
    triplets: Array

    @classmethod
    def from_lists(cls, boxes: object, labels: object, triplets: object) -> ImageGroundTruth:
        """Convert nested lists, which may be empty.

        Raises:
            EvaluationError: the lists have other shapes.
        """
        return cls(
            table(boxes, (-1, 4), np.float32),
            table(labels, (-1,), int),
            table(triplets, (-1, 3), int),
        )

    def check(
        self, image: str, num_objects: int, num_predicates: int, *, objectless: bool = False
    ) -> None:
        """Check all values.

        Args:
            image: its name, for messages.
            objectless: whether triplets may have no object.

        Raises:
            EvaluationError: a value is out of range, not finite, or missing.
        """
        check_boxes(image, "ground-truth box", self.boxes)
        check_equal(image, "labels of ground-truth boxes", len(self.labels), len(self.boxes))
        check_range(image, "label of a ground-truth box", self.labels, 0, num_objects)
        subjects, objects, predicates = self.triplets.T
        check_range(image, "subject of a ground-truth triplet", subjects, 0, len(self.boxes))
        check_range(
            image,
            "object of a ground-truth triplet",
            objects,
            NO_BOX if objectless else 0,
            len(self.boxes),
        )
        check_range(image, "predicate of a ground-truth triplet", predicates, 0, num_predicates)


@dataclass(frozen=True)
class PredictedPairs:
    """The pairs of boxes predicted in one image, and the confidence of each predicate of each pair.

    subject_boxes, object_boxes `[pairs, 4]` pixel xyxy; subject_labels, object_labels `[pairs]`;
    scores `[pairs, predicates]` of whole triplets, `NOT_PREDICTED` for triplets that were not
    predicted.
    """

    subject_boxes: Array
    object_boxes: Array
    subject_labels: Array
    object_labels: Array
    scores: Array

    @classmethod
    def from_detections(cls, detections: TripletDetections) -> PredictedPairs:
        """Convert the output of `rlip_model.postprocess`."""
        boxes = (
            detections.subject_boxes.float().cpu().numpy(),
            detections.object_boxes.float().cpu().numpy(),
        )
        labels = (detections.subject_labels.cpu().numpy(), detections.object_labels.cpu().numpy())
        return cls(*boxes, *labels, detections.relation_scores.float().cpu().numpy())

    def __len__(self) -> int:
        return len(self.object_labels)

    def check(self, image: str, num_objects: int, num_predicates: int) -> None:
        """Check all values; `image` is its name, for messages.

        Raises:
            EvaluationError: a value is out of range, not finite, or missing.
        """
        for name, boxes in (("subject", self.subject_boxes), ("object", self.object_boxes)):
            check_boxes(image, f"predicted {name} box", boxes)
            check_equal(image, f"predicted {name} boxes", len(boxes), len(self))
        for name, labels in (("subject", self.subject_labels), ("object", self.object_labels)):
            check_equal(image, f"predicted {name} labels", len(labels), len(self))
            check_range(image, f"predicted {name} label", labels, 0, num_objects)
        if self.scores.shape != (len(self), num_predicates):
            expected = (len(self), num_predicates)
            raise EvaluationError(
                f"{image}: scores have shape {self.scores.shape}, expected {expected}"
            )
        check_finite(image, "score", self.scores[self.scores != NOT_PREDICTED])


@dataclass(frozen=True)
class EvaluationImage:
    """One image: its name (for messages), its ground truth, and its predictions."""

    name: str
    ground_truth: ImageGroundTruth
    predicted: PredictedPairs


def table(values: object, shape: tuple[int, ...], kind: Number) -> Array:
    """Convert nested lists, which may be empty, to an array. None becomes NaN, numbers too large
    become infinite.

    Args:
        shape: starts with -1, for any number of rows.

    Raises:
        EvaluationError: the values have another shape, or are not integers although `kind` is
            `int`.
    """
    try:
        array = np.asarray(values)
        if not array.size and array.ndim <= len(shape):
            return np.zeros((0, *shape[1:]), dtype=kind)
        with np.errstate(over="ignore", invalid="ignore"):
            converted: Array = array.astype(kind)
            is_exact = kind is not int or bool((converted == array.astype(float)).all())
    except (TypeError, ValueError, OverflowError) as reason:
        wrong = _first_wrong(values, shape[1:]) or str(reason)
        raise EvaluationError(f"not a table of numbers with shape {shape}: {wrong}") from reason
    if converted.ndim != len(shape) or converted.shape[1:] != shape[1:] or not is_exact:
        numbers = "integers" if kind is int else "numbers"
        wrong = _first_wrong(values, shape[1:]) or str(values)[:80]
        raise EvaluationError(f"not a table of {numbers} with shape {shape}: {wrong}")
    return converted


def _first_wrong(values: object, shape: tuple[int, ...]) -> str:
    """Return the first item that has another shape or is not numbers; empty if there is none."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return ""
    for number, item in enumerate(values):
        try:
            is_wrong = np.asarray(item, dtype=float).shape != shape
        except (TypeError, ValueError, OverflowError):
            is_wrong = True
        if is_wrong:
            return f"item {number} is {repr(item)[:80]}"
    return ""


def check_boxes(image: str, name: str, boxes: Array) -> None:
    """Raise EvaluationError unless all boxes are finite and their corners in order."""
    check_finite(image, name, boxes)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if inverted.any():
        box = boxes[inverted.argmax()].tolist()
        raise EvaluationError(
            f"{image}: {name} {box} has inverted corners, expected xyxy: left, top, right, bottom"
        )


def check_finite(image: str, name: str, values: Array) -> None:
    """Raise EvaluationError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        origin = "annotation" if name.startswith("ground-truth") else "model's output"
        raise EvaluationError(
            f"{image}: a {name} is NaN or infinite; leave it out or fix the {origin}"
        )


def check_range(image: str, name: str, values: Array, start: int, end: int) -> None:
    """Raise EvaluationError unless all values are between `start` and `end` - 1."""
    wrong = (values < start) | (values >= end)
    if wrong.any():
        expected = f"expected {start} to {end - 1}" if end > start else "but there are none"
        raise EvaluationError(f"{image}: {name} is {values[wrong][0]}, {expected}")


def check_equal(image: str, name: str, count: int, expected: int) -> None:
    """Raise EvaluationError unless `count` is `expected`."""
    if count != expected:
        raise EvaluationError(f"{image}: {count} {name}, expected {expected}")
