"""Open Images V6 scene graphs, counted as by RLIPv2's evaluator: relations, phrases, and the
weighted sum of both.

A relation is a true positive if both boxes overlap those of a target with an IoU of at least 0.5. A
phrase is the rectangle around both boxes; it is a true positive if the rectangles overlap as much.
The class of both is (subject label, object label, predicate). Predictions in an image without
ground-truth boxes count as wrong phrases, but not as wrong relations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationImage
from rlip_model.evaluation.matching import best_matches, equal_rows
from rlip_model.evaluation.overlap import hull, pixel_iou
from rlip_model.evaluation.scores import ClassScores, Tally
from rlip_model.evaluation.suppression import PairSuppression, unsuppressed
from rlip_model.evaluation.triplets import (
    MATCH_OVERLAP,
    TripletClasses,
    TripletTable,
    best_triplets,
    blocks,
    ground_truth_triplets,
    match,
)

MOST_DETECTIONS = (50, 100)  # per image
PHRASE_OVERLAP = 0.5  # IoU of two phrases of one class above which the worse one is suppressed

PhraseOrder = Literal["published", "repaired"]


@dataclass(frozen=True)
class OpenImagesSettings:
    """suppression: pair NMS after the cut, then NMS of phrases; default: none, as published.

    phrase_order: with suppression, the published evaluator looks up a phrase's overlaps under the
    index of another phrase. "published" keeps this error, which the published numbers contain;
    "repaired" corrects it.
    """

    num_objects: int = 601
    num_predicates: int = 30
    suppression: PairSuppression | None = None
    phrase_order: PhraseOrder = "published"

    @property
    def classes(self) -> TripletClasses:
        return TripletClasses(self.num_objects, self.num_predicates)


@dataclass(frozen=True)
class OpenImagesScores:
    """Relations and phrases among the 50 and the 100 best triplets of each image; keys are
    `MOST_DETECTIONS`.
    """

    relations: dict[int, ClassScores]
    phrases: dict[int, ClassScores]

    def resampled(self, counts: Array) -> OpenImagesScores:
        """As `ClassScores.resampled`."""
        return OpenImagesScores(
            {limit: scores.resampled(counts) for limit, scores in self.relations.items()},
            {limit: scores.resampled(counts) for limit, scores in self.phrases.items()},
        )

    def recall(self, limit: int) -> float:
        """Share of all target relations that are matched; `recall(50)` is the benchmark's R@50."""
        return _recall(self.relations[limit], slice(None))

    def phrase_recall(self, limit: int) -> float:
        """Return the same for phrases, but only over classes with predictions, as in the published
        evaluator.
        """
        return _recall(self.phrases[limit], self.phrases[limit].detections > 0)

    def weighted_score(self, *, by_frequency: bool = True) -> float:
        """score_wtd: 0.2 R@50 + 0.4 AP of relations + 0.4 AP of phrases, each the (weighted) mean
        AP at 100.
        """
        relations = self.relations[100]
        phrases = self.phrases[100]
        relations_ap = relations.weighted_mean() if by_frequency else relations.mean()
        phrases_ap = phrases.weighted_mean() if by_frequency else phrases.mean()
        return 0.2 * self.recall(50) + 0.4 * relations_ap + 0.4 * phrases_ap

    def summary(self) -> dict[str, float]:
        """Return all measures under the published evaluator's names; the benchmark's headline
        number is score_wtd (wmAP).
        """
        summary = {}
        for limit in MOST_DETECTIONS:
            parts = (
                ("RelD", self.relations[limit], self.recall(limit)),
                ("PhrD", self.phrases[limit], self.phrase_recall(limit)),
            )
            for name, scores, recall in parts:
                summary[f"mAP@{limit} ({name})"] = scores.mean()
                summary[f"wmAP@{limit} ({name})"] = scores.weighted_mean()
                summary[f"mean max recall@{limit} ({name})"] = scores.mean_max_recall()
                summary[f"max recall@{limit} ({name})"] = recall
        summary["score_wtd (mAP)"] = self.weighted_score(by_frequency=False)
        summary["score_wtd (wmAP)"] = self.weighted_score()
        return summary


def _recall(scores: ClassScores, classes: Array | slice) -> float:
    targets = scores.targets[classes].sum()
    if not targets:
        return float("nan")
    return float(scores.true_positives[classes].sum() / targets)


def evaluate_open_images(
    images: Iterable[EvaluationImage], settings: OpenImagesSettings | None = None
) -> OpenImagesScores:
    """Evaluate a dataset, read as a stream.

    Args:
        images: scores are final (predicate x object x subject).

    Raises:
        EvaluationError: labels out of range, values that are not finite, inverted boxes.
    """
    settings = settings or OpenImagesSettings()
    classes = settings.classes
    relations = {limit: Tally() for limit in MOST_DETECTIONS}
    phrases = {limit: Tally() for limit in MOST_DETECTIONS}
    for number, block in enumerate(blocks(images)):
        for image in block:
            image.ground_truth.check(image.name, settings.num_objects, settings.num_predicates)
            image.predicted.check(image.name, settings.num_objects, settings.num_predicates)
        target = ground_truth_triplets(block)
        target_images = target.in_dataset(number)
        annotated = np.array([len(image.ground_truth.boxes) > 0 for image in block])
        for limit in MOST_DETECTIONS:
            predicted = best_triplets(block, limit)
            if settings.suppression:
                predicted = settings.suppression.best(predicted, classes)
            judged = predicted.where(annotated[predicted.image])
            matches = match(
                judged, target, classes.within_images(judged), classes.within_images(target)
            )
            images_of = target_images, judged.in_dataset(number)
            relations[limit].add(
                classes.of(target), classes.of(judged), judged.scores, matches, images_of
            )
            predicted, matches = _match_phrases(predicted, target, settings)
            images_of = target_images, predicted.in_dataset(number)
            phrases[limit].add(
                classes.of(target), classes.of(predicted), predicted.scores, matches, images_of
            )
    return OpenImagesScores(
        {limit: tally.class_scores() for limit, tally in relations.items()},
        {limit: tally.class_scores() for limit, tally in phrases.items()},
    )


def _match_phrases(
    predicted: TripletTable, target: TripletTable, settings: OpenImagesSettings
) -> tuple[TripletTable, Array]:
    """Return the phrases that count, and the target that each is matched to."""
    groups = settings.classes.within_images(predicted)
    if settings.suppression:
        boxes = hull(predicted.subject_boxes, predicted.object_boxes)

        def overlap(better: Array, worse: Array) -> Array:
            return pixel_iou(boxes[better], boxes[worse], touching=True)

        remaining = unsuppressed(groups, predicted.scores, overlap, PHRASE_OVERLAP)
        predicted = predicted.where(remaining)
        if settings.phrase_order == "published":
            predicted = predicted.where(_grouped(predicted.image, groups[remaining]))
    phrases, targets = equal_rows(
        settings.classes.within_images(predicted), settings.classes.within_images(target)
    )
    boxes = hull(predicted.subject_boxes, predicted.object_boxes)
    target_boxes = hull(target.subject_boxes, target.object_boxes)
    quality = pixel_iou(boxes[phrases], target_boxes[targets], touching=False)
    fitting = quality >= MATCH_OVERLAP
    matches = best_matches(phrases[fitting], targets[fitting], quality[fitting], len(predicted))
    # Changes nothing unless the rows were grouped. If they were, each phrase gets the match of the
    # row in its place.
    return predicted.where(np.lexsort((-predicted.scores, predicted.image))), matches


def _grouped(image: Array, groups: Array) -> Array:
    """Return rows sorted by image, then by group; groups in the order of their first rows."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.lexsort((first[number], image))
