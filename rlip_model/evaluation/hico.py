"""HICO-DET (Chao et al., WACV 2018), as RLIPv2's and QPIC's evaluators count.

A class is (subject label, object label, verb). An image without true boxes is left out, with all that was found
in it; so is what was found of classes that are true nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlip_model.evaluation.hico_classes import ClassSplit, possible_interactions
from rlip_model.evaluation.inputs import Array, EvaluationImage
from rlip_model.evaluation.scores import ClassScores, Tally
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import (
    TripletClasses,
    TripletTable,
    best_triplets,
    blocks,
    ground_truth_triplets,
    match,
)

MOST_DETECTIONS = 100  # per image


@dataclass(frozen=True)
class HicoSettings:
    """possible: `[verbs, objects]`, others are scored 0; its shape says how many there are, HICO-DET's or others.

    suppression: pair NMS after the cut to 100.
    known_object: a class is judged only in images with a box of its object ("Known Object"; else "Default").
    """

    possible: Array = field(default_factory=possible_interactions)
    suppression: PairSuppression | None = None
    known_object: bool = False

    @property
    def classes(self) -> TripletClasses:
        num_verbs, num_objects = self.possible.shape
        return TripletClasses(num_objects, num_verbs)


@dataclass(frozen=True)
class HicoScores:
    """Classes are numbered by `HicoSettings.classes`; HICO-DET's own are `hico_classes.CLASSES`."""

    per_class: ClassScores

    def summary(self, split: ClassSplit) -> dict[str, float]:
        """Means over classes that are true somewhere; NaN of none. "rare" is "unseen" in zero-shot settings."""
        return {
            "mAP": self.per_class.mean(),
            "mAP rare": self.per_class.mean(split.rare),
            "mAP non-rare": self.per_class.mean(split.non_rare),
            "mean max recall": self.per_class.mean_max_recall(),
        }


def evaluate_hico(images: Iterable[EvaluationImage], settings: HicoSettings | None = None) -> HicoScores:
    """Scores of a data set, read as a stream.

    Args:
        images: scores are final (verb x object), labels from 0 in COCO's order (subjects: 0), verbs from 0; or
            those of other classes, where settings say so.

    Raises:
        EvaluationError: labels out of range, numbers that are not finite, boxes inside out.
    """
    settings = settings or HicoSettings()
    classes = settings.classes
    tally = Tally()
    for block in blocks(images):
        for image in block:
            image.truth.check(image.name, classes.num_objects, classes.num_predicates)
            image.found.check(image.name, classes.num_objects, classes.num_predicates)
        true = ground_truth_triplets(block)
        found = _judged(block, settings)
        claims = match(found, true, classes.within_images(found), classes.within_images(true))
        tally.add(classes.of(true), classes.of(found), found.scores, claims)
    return HicoScores(tally.class_scores())


def _judged(block: Sequence[EvaluationImage], settings: HicoSettings) -> TripletTable:
    """The detections that count."""
    found = best_triplets(block, MOST_DETECTIONS, settings.possible)
    annotated = np.array([len(image.truth.boxes) > 0 for image in block])
    found = found.where(annotated[found.image])
    if settings.known_object:
        found = found.where(_objects(block, settings.classes.num_objects)[found.image, found.objects])
    return settings.suppression.best(found, settings.classes) if settings.suppression else found


def _objects(block: Sequence[EvaluationImage], num_objects: int) -> Array:
    """`[images, objects]`, True where an image has a true box of the class."""
    present = np.zeros((len(block), num_objects), dtype=bool)
    for image, row in zip(block, present, strict=True):
        row[image.truth.labels] = True
    return present
