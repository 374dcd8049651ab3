"""Open Images V6 scene graphs, as RLIPv2's evaluator counts: relations, phrases, and the weighted sum of both.

A relation is right if both boxes overlap a true one's by half; a phrase, the rectangle around both, if it does. The
class of both is (subject label, object label, predicate). What was found in an image without true boxes counts as
wrong phrases, but not as wrong relations.
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
PHRASE_OVERLAP = 0.5  # of two phrases of one class, above which the worse is suppressed

PhraseOrder = Literal["published", "repaired"]


@dataclass(frozen=True)
class OpenImagesSettings:
    """suppression: pair NMS after the cut, and then NMS of phrases; none by default, as published.

    phrase_order: the published evaluator, with suppression, looks up a phrase's overlaps in the place of another
    one: its own figures contain the slip.
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
    """Relations and phrases among the 50 and the 100 best triplets of each image; keys are `MOST_DETECTIONS`."""

    relations: dict[int, ClassScores]
    phrases: dict[int, ClassScores]

    def recall(self, most: int) -> float:
        """Share of all true relations that are found; `recall(50)` is the benchmark's R@50."""
        return _share(self.relations[most], slice(None))

    def phrase_recall(self, most: int) -> float:
        """The same of phrases, but only of classes of which anything was found: so does the published evaluator."""
        return _share(self.phrases[most], self.phrases[most].detections > 0)

    def weighted_score(self, *, by_frequency: bool = True) -> float:
        """score_wtd: 0.2 R@50 + 0.4 of relations + 0.4 of phrases, each (weighted) mean AP at 100."""
        relations, phrases = self.relations[100], self.phrases[100]
        if by_frequency:
            return 0.2 * self.recall(50) + 0.4 * relations.weighted_mean() + 0.4 * phrases.weighted_mean()
        return 0.2 * self.recall(50) + 0.4 * relations.mean() + 0.4 * phrases.mean()

    def summary(self) -> dict[str, float]:
        """By the names that the published evaluator prints; the benchmark's number is the score_wtd of wmAP."""
        summary = {}
        for most in MOST_DETECTIONS:
            parts = (
                ("RelD", self.relations[most], self.recall(most)),
                ("PhrD", self.phrases[most], self.phrase_recall(most)),
            )
            for name, scores, recall in parts:
                summary[f"mAP@{most} ({name})"] = scores.mean()
                summary[f"wmAP@{most} ({name})"] = scores.weighted_mean()
                summary[f"mean max recall@{most} ({name})"] = scores.mean_max_recall()
                summary[f"max recall@{most} ({name})"] = recall
        summary["score_wtd (mAP)"] = self.weighted_score(by_frequency=False)
        summary["score_wtd (wmAP)"] = self.weighted_score()
        return summary


def _share(scores: ClassScores, kept: Array | slice) -> float:
    truths = scores.truths[kept].sum()
    return float(scores.hits[kept].sum() / truths) if truths else float("nan")


def evaluate_open_images(
    images: Iterable[EvaluationImage], settings: OpenImagesSettings | None = None
) -> OpenImagesScores:
    """Scores of a data set, read as a stream.

    Args:
        images: scores are final (predicate x object x subject).

    Raises:
        EvaluationError: labels out of range, numbers that are not finite, boxes inside out.
    """
    settings = settings or OpenImagesSettings()
    classes = settings.classes
    relations = {most: Tally() for most in MOST_DETECTIONS}
    phrases = {most: Tally() for most in MOST_DETECTIONS}
    for block in blocks(images):
        for image in block:
            image.truth.check(image.name, settings.num_objects, settings.num_predicates)
            image.found.check(image.name, settings.num_objects, settings.num_predicates)
        true = ground_truth_triplets(block)
        annotated = np.array([len(image.truth.boxes) > 0 for image in block])
        for most in MOST_DETECTIONS:
            found = best_triplets(block, most)
            found = settings.suppression.best(found, classes) if settings.suppression else found
            judged = found.where(annotated[found.image])
            claims = match(judged, true, classes.within_images(judged), classes.within_images(true))
            relations[most].add(classes.of(true), classes.of(judged), judged.scores, claims)
            found, claims = _match_phrases(found, true, settings)
            phrases[most].add(classes.of(true), classes.of(found), found.scores, claims)
    return OpenImagesScores(
        {most: tally.class_scores() for most, tally in relations.items()},
        {most: tally.class_scores() for most, tally in phrases.items()},
    )


def _match_phrases(found: TripletTable, true: TripletTable, settings: OpenImagesSettings) -> tuple[TripletTable, Array]:
    """The phrases that count, and what each claims."""
    groups = settings.classes.within_images(found)
    if settings.suppression:
        boxes = hull(found.subject_boxes, found.object_boxes)

        def overlap(better: Array, worse: Array) -> Array:
            return pixel_iou(boxes[better], boxes[worse], touching=True)

        kept = unsuppressed(groups, found.scores, overlap, PHRASE_OVERLAP)
        found = found.where(kept)
        if settings.phrase_order == "published":
            found = found.where(_grouped(found.image, groups[kept]))
    phrases, truths = equal_rows(settings.classes.within_images(found), settings.classes.within_images(true))
    boxes, true_boxes = (hull(part.subject_boxes, part.object_boxes) for part in (found, true))
    quality = pixel_iou(boxes[phrases], true_boxes[truths], touching=False)
    fitting = quality >= MATCH_OVERLAP
    claims = best_matches(phrases[fitting], truths[fitting], quality[fitting], len(found))
    # moves nothing unless grouped: then a phrase gets the claim of the one that is in its place
    return found.where(np.lexsort((-found.scores, found.image))), claims


def _grouped(image: Array, groups: Array) -> Array:
    """Rows image by image, in each group by group, groups in the order of their first rows."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.lexsort((first[number], image))
