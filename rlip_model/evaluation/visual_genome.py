"""Scene graphs of Visual Genome (VG150), as Scene-Graph-Benchmark (Tang et al., CVPR 2020) counts: recall at K.

A predicted triplet finds every true one with the same three labels whose boxes both overlap by half or more; several
may be found at once. With graph constraint each pair has one predicate, its best; without, the 100 best (pair,
predicate) count. Recall is averaged over images, mean recall over predicates; images without true relations or
without predicted pairs are left out.
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
from rlip_model.evaluation.recall import NEVER, RECALL_AT, Recall, RecallTally
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
    """The true scene graph of one image.

    boxes `[boxes, 4]` xyxy, pixels; labels `[boxes]` from 1; relations `[relations, 3]`: subject, object, predicate
    from 1.
    """

    boxes: Array
    labels: Array
    relations: Array


@dataclass(frozen=True)
class PredictedGraph:
    """The scene graph found in one image, pairs already sorted: subject x object x best predicate, falling.

    boxes `[boxes, 4]` xyxy, pixels; labels, scores `[boxes]`; pairs `[pairs, 2]`, boxes of subject and object;
    predicate_scores `[pairs, 1 + predicates]`, column 0 is background.
    """

    boxes: Array
    labels: Array
    scores: Array
    pairs: Array
    predicate_scores: Array


@dataclass(frozen=True)
class GraphImage:
    """One image: its name (for messages), its scene graph, and what was found."""

    name: str
    truth: GroundTruthGraph
    found: PredictedGraph

    def check(self, num_objects: int, num_predicates: int) -> None:
        """Raises EvaluationError."""
        for what, boxes, labels in (
            ("true box", self.truth.boxes, self.truth.labels),
            ("found box", self.found.boxes, self.found.labels),
        ):
            check_boxes(self.name, what, boxes)
            check_equal(self.name, f"labels of {what}es", len(labels), len(boxes))
            check_range(self.name, f"label of a {what}", labels, 1, num_objects + 1)
        ends, predicates = self.truth.relations[:, :2], self.truth.relations[:, 2]
        check_range(self.name, "box of a true relation", ends, 0, len(self.truth.boxes))
        check_range(self.name, "predicate of a true relation", predicates, 1, num_predicates + 1)
        check_range(self.name, "box of a found pair", self.found.pairs, 0, len(self.found.boxes))
        check_equal(self.name, "scores of found boxes", len(self.found.scores), len(self.found.boxes))
        expected = (len(self.found.pairs), num_predicates + 1)
        if self.found.predicate_scores.shape != expected:
            shape = self.found.predicate_scores.shape
            raise EvaluationError(f"{self.name}: predicate scores have the shape {shape}, not {expected}")
        check_finite(self.name, "score of a predicate", self.found.predicate_scores)
        check_finite(self.name, "score of a box", self.found.scores)


@dataclass(frozen=True)
class GraphScores:
    """pair_accuracy: share of all true relations found if only true pairs are ranked; none where boxes are detected."""

    constrained: Recall
    unconstrained: Recall
    pair_accuracy: dict[int, float]

    def summary(self) -> dict[str, float]:
        """R, mR and zR at K, with "ng-" before those without graph constraint; A at K, the pair accuracy."""
        summary = {}
        for prefix, recall in (("", self.constrained), ("ng-", self.unconstrained)):
            for most in RECALL_AT:
                summary[f"{prefix}R@{most}"] = recall.recall(most)
                summary[f"{prefix}mR@{most}"] = recall.mean_recall(most)
                summary[f"{prefix}zR@{most}"] = recall.zero_shot_recall(most)
        return {**summary, **{f"A@{most}": share for most, share in self.pair_accuracy.items()}}


def evaluate_graphs(
    images: Iterable[GraphImage],
    mode: Mode,
    *,
    zero_shot: Array | None = None,
    num_objects: int = 150,
    num_predicates: int = 50,
) -> GraphScores:
    """Recalls of a data set, read as a stream.

    Args:
        mode: what was given to the model: boxes and labels (predcls), boxes (sgcls), nothing (sgdet).
        zero_shot: `[triplets, 3]` of labels (subject, object, predicate) that training lacks, such as
            `vg150_zero_shot()`; none by default.

    Raises:
        EvaluationError: labels out of range, numbers that are not finite, boxes inside out.
    """
    unseen = {tuple(row) for row in np.reshape([] if zero_shot is None else zero_shot, (-1, 3)).astype(int).tolist()}
    constrained, unconstrained = RecallTally.empty(num_predicates), RecallTally.empty(num_predicates)
    of_true_pairs: list[Array] = []
    for image in images:
        image = _with_known(image, mode)
        image.check(num_objects, num_predicates)
        if not len(image.truth.relations) or not len(image.found.pairs):
            continue
        truth, found = image.truth, image.found
        predicates, new = truth.relations[:, 2] - 1, _is_unseen(truth, unseen)
        best = found.predicate_scores[:, 1:].argmax(1) + 1
        constrained.add(_found_at(image, np.arange(len(best)), best), predicates, new)
        unconstrained.add(_found_at(image, *_best_unconstrained(found)), predicates, new)
        if mode != "sgdet":
            true_pairs = (found.pairs[:, None] == truth.relations[:, :2]).all(2).any(1)
            of_true_pairs.append(_found_at(image, np.flatnonzero(true_pairs), best[true_pairs]))
    accuracy = {most: mean(np.concatenate(of_true_pairs) < most) for most in RECALL_AT} if of_true_pairs else {}
    return GraphScores(constrained.result(), unconstrained.result(), accuracy)


def vg150_zero_shot() -> Array:
    """`[5971, 3]`: the triplets (subject, object, predicate) of VG150 that its training set lacks, as published."""
    return np.array(json.loads(Path(__file__).with_name("vg150_zero_shot.json").read_text(encoding="utf-8")))


def _with_known(image: GraphImage, mode: Mode) -> GraphImage:
    """With what the model was given in place of what it says of it."""
    if mode != "predcls":
        return image
    check_equal(image.name, "found boxes", len(image.found.boxes), len(image.truth.boxes))
    given = image.truth
    certain = np.ones(len(given.boxes), dtype=np.float32)
    return replace(image, found=replace(image.found, boxes=given.boxes, labels=given.labels, scores=certain))


def _is_unseen(truth: GroundTruthGraph, unseen: set[tuple[int, ...]]) -> Array:
    """`[relations]`, True for triplets in `unseen`."""
    subjects, objects, predicates = truth.relations.T
    triplets = np.stack((truth.labels[subjects], truth.labels[objects], predicates), -1)
    return np.array([tuple(row) in unseen for row in triplets.tolist()], dtype=bool)


def _best_unconstrained(found: PredictedGraph) -> tuple[Array, Array]:
    """Pairs and predicates of the best triplets, equal ones by pair, then by predicate."""
    scores = found.scores[found.pairs].prod(1)[:, None] * found.predicate_scores[:, 1:]
    pairs, predicates = np.divmod(largest(scores.reshape(-1), MOST_UNCONSTRAINED), scores.shape[1])
    return pairs, predicates + 1


def _found_at(image: GraphImage, pairs: Array, predicates: Array) -> Array:
    """For each true relation `[relations]` the place of the first triplet that finds it, or `NEVER`.

    Args:
        pairs, predicates: `[triplets]`, rows of the found pairs and labels, best first.
    """
    truth, found = image.truth, image.found
    boxes, true_boxes = found.boxes.astype(np.float32), truth.boxes.astype(np.float32)
    fits = pixel_iou(boxes[:, None], true_boxes, touching=True) >= MATCH_OVERLAP
    fits &= found.labels[:, None] == truth.labels
    subjects, objects = found.pairs[pairs].T
    true_subjects, true_objects, true_predicates = truth.relations.T
    finds = fits[subjects[:, None], true_subjects] & fits[objects[:, None], true_objects]
    finds &= predicates[:, None] == true_predicates
    return np.where(finds.any(0), finds.argmax(0), NEVER) if len(pairs) else np.full(len(truth.relations), NEVER)
