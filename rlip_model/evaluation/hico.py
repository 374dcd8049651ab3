"""HICO-DET (Chao et al., WACV 2018), counted as by the evaluators of RLIPv2 and QPIC.

A class is (subject label, object label, verb). Images without ground-truth boxes are left out
together with all their predictions. Predictions of classes without ground truth are left out too.
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
    """possible: `[verbs, objects]`; all other combinations are scored 0. Its shape gives the number
    of classes, so that other class lists than HICO-DET's can be evaluated.

    suppression: pair NMS, applied after the cut to 100 triplets.
    known_object: judge a class only in images with a box of its object ("Known Object" setting;
    otherwise "Default").
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
    """Classes are numbered by `HicoSettings.classes`; HICO-DET's own numbering is
    `hico_classes.CLASSES`.
    """

    per_class: ClassScores

    def resampled(self, counts: Array) -> HicoScores:
        """As `ClassScores.resampled`."""
        return HicoScores(self.per_class.resampled(counts))

    def summary(self, split: ClassSplit) -> dict[str, float]:
        """Means over the classes with ground truth; NaN if there are none. In zero-shot settings
        "rare" is "unseen".
        """
        return {
            "mAP": self.per_class.mean(),
            "mAP rare": self.per_class.mean(split.rare),
            "mAP non-rare": self.per_class.mean(split.non_rare),
            "mean max recall": self.per_class.mean_max_recall(),
        }


def evaluate_hico(
    images: Iterable[EvaluationImage], settings: HicoSettings | None = None
) -> HicoScores:
    """Evaluate a dataset, read as a stream.

    Args:
        images: scores are final (verb x object); labels from 0 in COCO's order (subjects: 0) and
            verbs from 0, or those of another class list given by `settings`.

    Raises:
        EvaluationError: labels out of range, values that are not finite, inverted boxes.
    """
    settings = settings or HicoSettings()
    classes = settings.classes
    tally = Tally()
    for number, block in enumerate(blocks(images)):
        for image in block:
            image.ground_truth.check(image.name, classes.num_objects, classes.num_predicates)
            image.predicted.check(image.name, classes.num_objects, classes.num_predicates)
        target = ground_truth_triplets(block)
        predicted = _judged(block, settings)
        matches = match(
            predicted, target, classes.within_images(predicted), classes.within_images(target)
        )
        rows = target.in_dataset(number), predicted.in_dataset(number)
        tally.add(classes.of(target), classes.of(predicted), predicted.scores, matches, rows)
    return HicoScores(tally.class_scores())


def _judged(block: Sequence[EvaluationImage], settings: HicoSettings) -> TripletTable:
    """Return the predictions that count."""
    predicted = best_triplets(block, MOST_DETECTIONS, settings.possible)
    annotated = np.array([len(image.ground_truth.boxes) > 0 for image in block])
    predicted = predicted.where(annotated[predicted.image])
    if settings.known_object:
        objects = _objects(block, settings.classes.num_objects)
        predicted = predicted.where(objects[predicted.image, predicted.objects])
    if settings.suppression:
        predicted = settings.suppression.best(predicted, settings.classes)
    return predicted


def _objects(block: Sequence[EvaluationImage], num_objects: int) -> Array:
    """`[images, objects]`, True where the image has a ground-truth box of the class."""
    present = np.zeros((len(block), num_objects), dtype=bool)
    for number, image in enumerate(block):
        present[number, image.ground_truth.labels] = True
    return present
