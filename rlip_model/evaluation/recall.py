"""Recall among the K best triplets of each image: per image, per predicate, and of triplets unseen in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import mean

RECALL_AT = (20, 50, 100)
NEVER = np.iinfo(np.int64).max  # the rank of a target relation that no triplet matches


@dataclass(frozen=True)
class Recall:
    """Keys are `RECALL_AT`.

    per_image, zero_shot_per_image: `[images]` that have (zero-shot) relations; per_predicate: `[predicates]`, the mean
    over the images that have the predicate, 0 if none has it.
    """

    per_image: dict[int, Array]
    zero_shot_per_image: dict[int, Array]
    per_predicate: dict[int, Array]

    def recall(self, most: int) -> float:
        """R@K; NaN without images."""
        return mean(self.per_image[most])

    def mean_recall(self, most: int) -> float:
        """mR@K."""
        return mean(self.per_predicate[most])

    def zero_shot_recall(self, most: int) -> float:
        """zR@K; NaN without zero-shot relations."""
        return mean(self.zero_shot_per_image[most])


@dataclass(frozen=True)
class RecallTally:
    """Collects the recalls of a dataset, image by image.

    per_predicate: `[predicates]`, sums of the images' recalls; images: `[predicates]`, how many images have each.
    """

    per_image: dict[int, list[float]]
    zero_shot_per_image: dict[int, list[float]]
    per_predicate: dict[int, Array]
    images: Array

    @classmethod
    def empty(cls, num_predicates: int) -> RecallTally:
        return cls(
            {most: [] for most in RECALL_AT},
            {most: [] for most in RECALL_AT},
            {most: np.zeros(num_predicates) for most in RECALL_AT},
            np.zeros(num_predicates),
        )

    def add(self, ranks: Array, predicates: Array, unseen: Array) -> None:
        """Add one image.

        Args:
            ranks: `[relations]`, the rank (from 0) of the first triplet that matches each target, or `NEVER`.
            predicates: `[relations]`, from 0.
            unseen: `[relations]`, True for triplets that do not occur in training.
        """
        counts = np.bincount(predicates, minlength=len(self.images))
        self.images[counts > 0] += 1
        for most in RECALL_AT:
            recalled = ranks < most
            self.per_image[most].append(float(recalled.mean()))
            if unseen.any():
                self.zero_shot_per_image[most].append(float(recalled[unseen].mean()))
            per_predicate = np.bincount(predicates[recalled], minlength=len(self.images))
            self.per_predicate[most][counts > 0] += (per_predicate / np.maximum(counts, 1))[counts > 0]

    def result(self) -> Recall:
        """The recalls of all images added so far."""
        images = np.maximum(self.images, 1)
        return Recall(
            {most: np.array(values) for most, values in self.per_image.items()},
            {most: np.array(values) for most, values in self.zero_shot_per_image.items()},
            {most: sums / images for most, sums in self.per_predicate.items()},
        )
