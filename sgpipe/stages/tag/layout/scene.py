"""The boxes of several images as arrays, one image after the other, and their candidate pairs as
rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
BoolArray: TypeAlias = NDArray[np.bool_]

UNKNOWN = 0  # number of a class that the model does not know
MIN_SIDE = 1.0  # pixels; smaller boxes grow to it, so that every ratio of sides is finite


@dataclass(frozen=True)
class ImageLayout:
    """The boxes of an image. `boxes`: [boxes, 4] float32, pixel xyxy; `classes`: a name for each
    box.
    """

    boxes: FloatArray
    classes: Sequence[str]
    width: float
    height: float


@dataclass(frozen=True)
class Rows:
    """Candidate pairs, a row each: a subject with another box of its image. All arrays are [rows].

    `subjects` and `objects` are positions among the boxes of a scene.
    """

    subjects: IntArray
    objects: IntArray


@dataclass(frozen=True)
class Scene:
    """The boxes of several images, one image after the other.

    Attributes:
        boxes: [boxes, 4] float32, pixel xyxy, inside the image, with an area
        sizes: [boxes, 2] width and height of the image
        images: [boxes] position of the image
        starts: [images + 1] position of each image's first box
        classes: [boxes] number of the class, or `UNKNOWN`
        is_subject: [boxes] whether boxes of this class can be subjects
    """

    boxes: FloatArray
    sizes: FloatArray
    images: IntArray
    starts: IntArray
    classes: IntArray
    is_subject: BoolArray

    @classmethod
    def of(
        cls, layouts: Sequence[ImageLayout], numbers: Mapping[str, int], subjects: AbstractSet[int]
    ) -> Scene:
        """Join the boxes of images.

        Args:
            layouts: the images
            numbers: number of each class; others are `UNKNOWN`
            subjects: numbers of the classes that can be subjects
        """
        counts = np.array([len(layout.classes) for layout in layouts], np.int64)
        images = np.repeat(np.arange(len(layouts)), counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        sizes = np.array([(layout.width, layout.height) for layout in layouts], np.float32).reshape(
            -1, 2
        )
        sizes = np.maximum(sizes, MIN_SIDE)[images]
        boxes = [np.asarray(layout.boxes, np.float32).reshape(-1, 4) for layout in layouts]
        joined = np.concatenate([*boxes, np.zeros((0, 4), np.float32)])
        classes = [numbers.get(name, UNKNOWN) for layout in layouts for name in layout.classes]
        class_numbers = np.array(classes, np.int64)
        is_subject = np.isin(class_numbers, list(subjects))
        return cls(_with_area(joined, sizes), sizes, images, starts, class_numbers, is_subject)

    @property
    def images_count(self) -> int:
        return len(self.starts) - 1

    def rows_of(self, subjects: IntArray) -> Rows:
        """Return the candidate pairs of subjects: each with every other box of its image, in the
        order of the boxes.
        """
        counts = self.others_of(subjects)
        repeated = np.repeat(subjects, counts)
        position = np.arange(len(repeated)) - np.repeat(np.cumsum(counts) - counts, counts)
        objects = self.starts[self.images[repeated]] + position
        objects += objects >= repeated  # a box is not paired with itself
        return Rows(repeated, objects)

    def others_of(self, boxes: IntArray) -> IntArray:
        """Return how many other boxes the image of each box has."""
        counts: IntArray = np.diff(self.starts)[self.images[boxes]] - 1
        return counts

    def blocks(self, limit: int) -> Iterator[IntArray]:
        """Yield the subjects in blocks that have at most `limit` candidate pairs, or are a single
        subject.
        """
        subjects = np.flatnonzero(self.is_subject)
        ends = np.cumsum(self.others_of(subjects))
        start = 0
        while start < len(subjects):
            before = int(ends[start - 1]) if start else 0
            stop = max(int(np.searchsorted(ends, before + limit, "right")), start + 1)
            yield subjects[start:stop]
            start = stop


def _with_area(boxes: FloatArray, sizes: FloatArray) -> FloatArray:
    """Clip boxes to their images, and make each side at least `MIN_SIDE` long. Coordinates that are
    NaN become 0.
    """
    limits = np.concatenate([sizes, sizes], axis=1)
    clipped = np.clip(np.nan_to_num(boxes, posinf=np.inf, neginf=-np.inf), 0, limits)
    low = np.minimum(clipped[:, :2], clipped[:, 2:])
    high = np.maximum(clipped[:, :2], clipped[:, 2:])
    high = np.clip(np.maximum(high, low + MIN_SIDE), 0, sizes)
    low = np.minimum(low, high - MIN_SIDE)
    return np.concatenate([low, high], axis=1)
