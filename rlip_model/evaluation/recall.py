"""Recall among the K best triplets of each image: per image, per predicate, and of triplets unseen
in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import mean

RECALL_AT = (20, 50, 100)
NEVER = np.iinfo(np.int64).max  # the rank of a target relation that no triplet matches


@dataclass(frozen=True)
class Recall:
    """Keys are `RECALL_AT`.

    per_image, zero_shot_per_image: `[images]` that have (zero-shot) relations; images,
    zero_shot_images: their numbers.
    occurrences: `[occurrences, 2]`, an image and a predicate that it has; recalls: `[occurrences]`.
    """

    num_predicates: int
    per_image: dict[int, Array]
    zero_shot_per_image: dict[int, Array]
    images: Array
    zero_shot_images: Array
    occurrences: Array
    recalls: dict[int, Array]

    def resampled(self, counts: Array) -> Recall:
        """Return the recalls of a dataset in which each image occurs `counts[image]` times."""
        images = repeated_rows(self.images, counts)
        zero_shot_images = repeated_rows(self.zero_shot_images, counts)
        entries = repeated_rows(self.occurrences[:, 0], counts)
        return Recall(
            self.num_predicates,
            {limit: values[images] for limit, values in self.per_image.items()},
            {limit: values[zero_shot_images] for limit, values in self.zero_shot_per_image.items()},
            self.images[images],
            self.zero_shot_images[zero_shot_images],
            self.occurrences[entries],
            {limit: values[entries] for limit, values in self.recalls.items()},
        )

    @cached_property
    def per_predicate(self) -> dict[int, Array]:
        """`[predicates]`: the mean over the images that have the predicate, 0 if none has it."""
        predicates = self.occurrences[:, 1]
        images = np.maximum(np.bincount(predicates, minlength=self.num_predicates), 1)
        return {
            limit: np.bincount(predicates, recall, self.num_predicates) / images
            for limit, recall in self.recalls.items()
        }

    def recall(self, limit: int) -> float:
        """R@K; NaN without images."""
        return mean(self.per_image[limit])

    def mean_recall(self, limit: int) -> float:
        """mR@K."""
        return mean(self.per_predicate[limit])

    def zero_shot_recall(self, limit: int) -> float:
        """zR@K; NaN without zero-shot relations."""
        return mean(self.zero_shot_per_image[limit])


def repeated_rows(images: Array, counts: Array) -> Array:
    """Return the index of each row as often as its image occurs: `counts[images[row]]` times."""
    return np.repeat(np.arange(len(images)), counts[images])


@dataclass
class RecallTally:
    """Collects the recalls of a dataset, image by image."""

    num_predicates: int
    per_image: dict[int, list[float]] = field(
        default_factory=lambda: {limit: [] for limit in RECALL_AT}
    )
    zero_shot_per_image: dict[int, list[float]] = field(
        default_factory=lambda: {limit: [] for limit in RECALL_AT}
    )
    images: list[int] = field(default_factory=list)
    zero_shot_images: list[int] = field(default_factory=list)
    occurrences: list[Array] = field(default_factory=lambda: [np.zeros((0, 2), dtype=int)])
    recalls: dict[int, list[Array]] = field(
        default_factory=lambda: {limit: [np.zeros(0)] for limit in RECALL_AT}
    )

    def add(self, image: int, ranks: Array, predicates: Array, unseen: Array) -> None:
        """Add one image.

        Args:
            image: its number in the dataset.
            ranks: `[relations]`, the rank (from 0) of the first triplet that matches each target,
                or `NEVER`.
            predicates: `[relations]`, from 0.
            unseen: `[relations]`, True for triplets that do not occur in training.
        """
        counts = np.bincount(predicates, minlength=self.num_predicates)
        present = np.flatnonzero(counts)
        self.images.append(image)
        self.occurrences.append(np.stack((np.full(len(present), image), present), 1))
        if unseen.any():
            self.zero_shot_images.append(image)
        for limit in RECALL_AT:
            recalled = ranks < limit
            self.per_image[limit].append(float(recalled.mean()))
            if unseen.any():
                self.zero_shot_per_image[limit].append(float(recalled[unseen].mean()))
            per_predicate = np.bincount(predicates[recalled], minlength=self.num_predicates)
            self.recalls[limit].append(per_predicate[present] / counts[present])

    def result(self) -> Recall:
        """Return the recalls of all images added so far."""
        return Recall(
            self.num_predicates,
            {limit: np.array(values) for limit, values in self.per_image.items()},
            {limit: np.array(values) for limit, values in self.zero_shot_per_image.items()},
            np.array(self.images, dtype=int),
            np.array(self.zero_shot_images, dtype=int),
            np.concatenate(self.occurrences),
            {limit: np.concatenate(values) for limit, values in self.recalls.items()},
        )
