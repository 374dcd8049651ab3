"""Recall among the K best triplets of each image: of images, of predicates, of triplets that training lacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import mean

RECALL_AT = (20, 50, 100)
NEVER = np.iinfo(np.int64).max  # the place at which a true relation is found that is not


@dataclass(frozen=True)
class Recall:
    """Keys are `RECALL_AT`.

    per_image, zero_shot_per_image: `[images]` that have (such) relations; per_predicate `[predicates]`, the mean
    over images that have the predicate, 0 if none has.
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
        """zR@K; NaN without such relations."""
        return mean(self.zero_shot_per_image[most])


@dataclass(frozen=True)
class RecallTally:
    """Collects a data set image by image. Sums per predicate are of shares; images counts those that have it."""

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

    def add(self, found_at: Array, predicates: Array, unseen: Array) -> None:
        """One image.

        Args:
            found_at: `[relations]`, the place (from 0) at which each true one is found, or `NEVER`.
            predicates: `[relations]`, from 0.
            unseen: `[relations]`, True for those that training lacks.
        """
        counts = np.bincount(predicates, minlength=len(self.images))
        self.images[counts > 0] += 1
        for most in RECALL_AT:
            hits = found_at < most
            self.per_image[most].append(float(hits.mean()))
            if unseen.any():
                self.zero_shot_per_image[most].append(float(hits[unseen].mean()))
            found = np.bincount(predicates[hits], minlength=len(self.images))
            self.per_predicate[most][counts > 0] += (found / np.maximum(counts, 1))[counts > 0]

    def result(self) -> Recall:
        images = np.maximum(self.images, 1)
        return Recall(
            {most: np.array(values) for most, values in self.per_image.items()},
            {most: np.array(values) for most, values in self.zero_shot_per_image.items()},
            {most: sums / images for most, sums in self.per_predicate.items()},
        )
