"""Scene graphs of Visual Genome (VG150), counted as by Scene-Graph-Benchmark (Tang et al., CVPR
2020): recall at K.

A predicted triplet matches every target with the same three labels whose two boxes both overlap
with an IoU of at least 0.5; it may match several. With graph constraint each pair has one
predicate, its best; without, the 100 best (pair, predicate) count. Recall is averaged over images,
mean recall over predicates. Images without target relations or without predicted pairs are left
out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import (
    Array,
    EvaluationError,
    check_boxes,
    check_equal,
    check_finite,
    check_range,
)
from rlip_model.evaluation.overlap import pixel_iou
from rlip_model.evaluation.recall import NEVER, RECALL_AT, Recall, RecallTally, repeated_rows
from rlip_model.evaluation.scores import mean
from rlip_model.evaluation.triplets import largest

MOST_UNCONSTRAINED = 100
MATCH_OVERLAP = 0.5

VG150_PREDICATES = (  # from 1
    "above",
    "across",
    "against",
    "along",
    "and",
    "at",
    "attached to",
    "behind",
    "belonging to",
    "between",
    "carrying",
    "covered in",
    "covering",
    "eating",
    "flying in",
    "for",
    "from",
    "growing on",
    "hanging from",
    "has",
    "holding",
    "in",
    "in front of",
    "laying on",
    "looking at",
    "lying on",
    "made of",
    "mounted on",
    "near",
    "of",
    "on",
    "on back of",
    "over",
    "painted on",
    "parked on",
    "part of",
    "playing",
    "riding",
    "says",
    "sitting on",
    "standing on",
    "to",
    "under",
    "using",
    "walking in",
    "walking on",
    "watching",
    "wearing",
    "wears",
    "with",
)

Mode = Literal["predcls", "sgcls", "sgdet"]
MODES: tuple[Mode, ...] = ("predcls", "sgcls", "sgdet")


@dataclass(frozen=True)
class GroundTruthGraph:
    """The annotated scene graph of one image.

    boxes `[boxes, 4]` pixel xyxy; labels `[boxes]` from 1; relations `[relations, 3]`: subject,
    object, predicate from 1.
    """

    boxes: Array
    labels: Array
    relations: Array


@dataclass(frozen=True)
class PredictedGraph:
    """The scene graph predicted in one image; pairs sorted by descending subject x object x best
    predicate score.

    boxes `[boxes, 4]` pixel xyxy; labels, scores `[boxes]`; pairs `[pairs, 2]`, box indices of
    subject and object; predicate_scores `[pairs, 1 + predicates]`, column 0 is background.
    """

    boxes: Array
    labels: Array
    scores: Array
    pairs: Array
    predicate_scores: Array


@dataclass(frozen=True)
class GraphImage:
    """One image: its name (for messages), its annotated scene graph, and the predicted one."""

    name: str
    ground_truth: GroundTruthGraph
    predicted: PredictedGraph

    def check(self, num_objects: int, num_predicates: int) -> None:
        """Raise EvaluationError if a value is out of range or not finite, or an array has the wrong
        shape.
        """
        target = self.ground_truth
        predicted = self.predicted
        for kind, boxes, labels in (
            ("ground-truth box", target.boxes, target.labels),
            ("predicted box", predicted.boxes, predicted.labels),
        ):
            check_boxes(self.name, kind, boxes)
            check_equal(self.name, f"labels of {kind}es", len(labels), len(boxes))
            check_range(self.name, f"label of a {kind}", labels, 1, num_objects + 1)
        ends = target.relations[:, :2]
        predicates = target.relations[:, 2]
        check_range(self.name, "box of a ground-truth relation", ends, 0, len(target.boxes))
        check_range(
            self.name, "predicate of a ground-truth relation", predicates, 1, num_predicates + 1
        )
        check_range(self.name, "box of a predicted pair", predicted.pairs, 0, len(predicted.boxes))
        check_equal(
            self.name, "scores of predicted boxes", len(predicted.scores), len(predicted.boxes)
        )
        shape = predicted.predicate_scores.shape
        expected = (len(predicted.pairs), num_predicates + 1)
        if shape != expected:
            raise EvaluationError(
                f"{self.name}: predicate scores have shape {shape}, expected {expected}"
            )
        check_finite(self.name, "score of a predicate", predicted.predicate_scores)
        check_finite(self.name, "score of a box", predicted.scores)


@dataclass(frozen=True)
class GraphScores:
    """pair_ranks: `[relations]`, the rank of each target when only ground-truth pairs are ranked,
    and pair_images, the number of its image; empty in sgdet, where boxes are detected."""

    constrained: Recall
    unconstrained: Recall
    pair_ranks: Array
    pair_images: Array

    def resampled(self, counts: Array) -> GraphScores:
        """As `Recall.resampled`."""
        pairs = repeated_rows(self.pair_images, counts)
        return GraphScores(
            self.constrained.resampled(counts),
            self.unconstrained.resampled(counts),
            self.pair_ranks[pairs],
            self.pair_images[pairs],
        )

    @property
    def pair_accuracy(self) -> dict[int, float]:
        """Recall when only ground-truth pairs are ranked; empty in sgdet."""
        if not len(self.pair_ranks):
            return {}
        return {limit: mean(self.pair_ranks < limit) for limit in RECALL_AT}

    def summary(self) -> dict[str, float]:
        """R@K, mR@K and zR@K, with the prefix "ng-" without graph constraint; A@K, the pair
        accuracy.
        """
        summary = {}
        for prefix, recall in (("", self.constrained), ("ng-", self.unconstrained)):
            for limit in RECALL_AT:
                summary[f"{prefix}R@{limit}"] = recall.recall(limit)
                summary[f"{prefix}mR@{limit}"] = recall.mean_recall(limit)
                summary[f"{prefix}zR@{limit}"] = recall.zero_shot_recall(limit)
        for limit, accuracy in self.pair_accuracy.items():
            summary[f"A@{limit}"] = accuracy
        return summary


def evaluate_graphs(
    images: Iterable[GraphImage],
    mode: Mode,
    *,
    zero_shot: Array | None = None,
    num_objects: int = 150,
    num_predicates: int = 50,
) -> GraphScores:
    """Evaluate a dataset, read as a stream.

    Args:
        mode: what the model was given: boxes and labels (predcls), boxes (sgcls), or nothing
            (sgdet).
        zero_shot: `[triplets, 3]` labels (subject, object, predicate) that do not occur in
            training, such as `vg150_zero_shot()`; default: none.

    Raises:
        EvaluationError: labels out of range, values that are not finite, inverted boxes.
    """
    unseen: set[tuple[int, ...]] = set()
    if zero_shot is not None:
        unseen.update(map(tuple, np.reshape(zero_shot, (-1, 3)).astype(int).tolist()))
    constrained = RecallTally(num_predicates)
    unconstrained = RecallTally(num_predicates)
    pair_ranks = [np.zeros(0, dtype=int)]
    pair_images = [np.zeros(0, dtype=int)]
    for number, image in enumerate(images):
        image = _with_given(image, mode)
        image.check(num_objects, num_predicates)
        target = image.ground_truth
        predicted = image.predicted
        if not len(target.relations) or not len(predicted.pairs):
            continue
        predicates = target.relations[:, 2] - 1
        is_new = _is_unseen(target, unseen)
        best = predicted.predicate_scores[:, 1:].argmax(1) + 1
        constrained.add(number, _match_ranks(image, np.arange(len(best)), best), predicates, is_new)
        unconstrained.add(
            number, _match_ranks(image, *_best_unconstrained(predicted)), predicates, is_new
        )
        if mode != "sgdet":
            is_target_pair = (predicted.pairs[:, None] == target.relations[:, :2]).all(2).any(1)
            pair_ranks.append(
                _match_ranks(image, np.flatnonzero(is_target_pair), best[is_target_pair])
            )
            pair_images.append(np.full(len(pair_ranks[-1]), number))
    pairs = np.concatenate(pair_ranks), np.concatenate(pair_images)
    return GraphScores(constrained.result(), unconstrained.result(), *pairs)


def vg150_zero_shot() -> Array:
    """`[5971, 3]`: the published zero-shot triplets (subject, object, predicate) of VG150."""
    return np.array(
        json.loads(Path(__file__).with_name("vg150_zero_shot.json").read_text(encoding="utf-8"))
    )


def _with_given(image: GraphImage, mode: Mode) -> GraphImage:
    """In predcls, replace the predicted boxes and labels by those that the model was given."""
    if mode != "predcls":
        return image
    boxes = image.ground_truth.boxes
    labels = image.ground_truth.labels
    check_equal(image.name, "predicted boxes", len(image.predicted.boxes), len(boxes))
    certain = np.ones(len(boxes), dtype=np.float32)
    predicted = replace(image.predicted, boxes=boxes, labels=labels, scores=certain)
    return replace(image, predicted=predicted)


def _is_unseen(target: GroundTruthGraph, unseen: set[tuple[int, ...]]) -> Array:
    """`[relations]`, True for triplets in `unseen`."""
    subjects, objects, predicates = target.relations.T
    triplets = np.stack((target.labels[subjects], target.labels[objects], predicates), -1)
    return np.array([tuple(row) in unseen for row in triplets.tolist()], dtype=bool)


def _best_unconstrained(predicted: PredictedGraph) -> tuple[Array, Array]:
    """Return pairs and predicates of the best triplets; equal scores by pair, then by predicate."""
    scores = predicted.scores[predicted.pairs].prod(1)[:, None] * predicted.predicate_scores[:, 1:]
    pairs, predicates = np.divmod(largest(scores.reshape(-1), MOST_UNCONSTRAINED), scores.shape[1])
    return pairs, predicates + 1


def _match_ranks(image: GraphImage, pairs: Array, predicates: Array) -> Array:
    """`[relations]`: the rank of the first triplet that matches each target relation, or `NEVER`.

    Args:
        pairs, predicates: `[triplets]`, indices of predicted pairs, and predicates, best first.
    """
    target = image.ground_truth
    predicted = image.predicted
    if not len(pairs):
        return np.full(len(target.relations), NEVER)
    boxes = predicted.boxes.astype(np.float32)[:, None]
    fits = pixel_iou(boxes, target.boxes.astype(np.float32), touching=True) >= MATCH_OVERLAP
    fits &= predicted.labels[:, None] == target.labels
    subjects, objects = predicted.pairs[pairs].T
    target_subjects, target_objects, target_predicates = target.relations.T
    matches = fits[subjects[:, None], target_subjects] & fits[objects[:, None], target_objects]
    matches &= predicates[:, None] == target_predicates
    return np.where(matches.any(0), matches.argmax(0), NEVER)
