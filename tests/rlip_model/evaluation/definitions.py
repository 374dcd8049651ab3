"""The benchmarks' rules once more, one detection at a time and as slowly as they read: what the evaluators must equal.

Written from the rules, not from the evaluators; overlaps and averages are their own, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import NOT_PREDICTED, EvaluationImage
from rlip_model.evaluation.vcoco import Actions, PeopleImage
from rlip_model.evaluation.visual_genome import GraphImage

Box = Sequence[float]
Class = tuple[int, ...]


def overlap(first: Box, second: Box, *, touching: bool) -> np.float32:
    """Intersection over union in whole pixels, in single precision."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    one = np.float32(1)
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    if width <= (0 if touching else 1) or height <= (0 if touching else 1):
        return np.float32(0)
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


@dataclass
class Detection:
    """One triplet that was found; `labels`: subject, object, predicate."""

    image: int
    subject: Box
    object: Box
    labels: Class
    score: float

    @property
    def phrase(self) -> Box:
        return [*np.minimum(self.subject[:2], self.object[:2]), *np.maximum(self.subject[2:], self.object[2:])]


@dataclass
class Ranking:
    """The detections of one class, and how many true ones there are."""

    truths: int
    scores: list[float]
    hits: list[bool]

    def sorted_hits(self) -> list[bool]:
        order = sorted(range(len(self.hits)), key=lambda place: -self.scores[place])
        return [self.hits[place] for place in order]

    def eleven_points(self) -> float:
        points, found = [], 0
        for count, hit in enumerate(self.sorted_hits(), 1):
            found += hit
            points.append((found / self.truths, found / count))
        levels = np.arange(0, 1.1, 0.1)
        return float(sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 11)


def ranked(images: Sequence[EvaluationImage], most: int, possible: Any = None) -> list[list[Detection]]:
    """The best detections of each image, by falling score; equal ones as listed."""
    result = []
    for number, image in enumerate(images):
        found = image.predicted
        every = []
        for pair in range(len(found)):
            labels = int(found.subject_labels[pair]), int(found.object_labels[pair])
            for predicate in range(found.scores.shape[1]):
                score = np.float32(found.scores[pair, predicate])
                if score == NOT_PREDICTED:
                    continue
                if possible is not None and not possible[predicate][labels[1]]:
                    score = np.float32(0)
                boxes = found.subject_boxes[pair], found.object_boxes[pair]
                every.append(Detection(number, *boxes, (*labels, predicate), float(score)))
        every.sort(key=lambda one: -one.score)
        result.append(every[:most])
    return result


def suppressed(found: list[Detection], fit: Callable[[Detection, Detection], float], threshold: float) -> list:
    """What no better one of its class that stays overlaps by more."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda one: -one.score):
        if all(other.labels != one.labels or fit(other, one) <= threshold for other in kept):
            kept.append(one)
    return [one for one in found if any(one is other for other in kept)]


def pair_fit(first: Detection, second: Detection) -> float:
    subjects = overlap(first.subject, second.subject, touching=True)
    return subjects * overlap(first.object, second.object, touching=True) ** 0.5


def phrase_fit(first: Detection, second: Detection) -> float:
    return overlap(first.phrase, second.phrase, touching=True)


def true_ones(image: EvaluationImage, number: int) -> list[Detection]:
    truth = image.ground_truth
    return [
        Detection(
            number,
            truth.boxes[subject],
            truth.boxes[object_],
            (int(truth.labels[subject]), int(truth.labels[object_]), int(predicate)),
            1.0,
        )
        for subject, object_, predicate in truth.triplets
    ]


def relation_quality(found: Detection, true: Detection) -> float:
    return min(overlap(found.subject, true.subject, touching=False), overlap(found.object, true.object, touching=False))


def phrase_quality(found: Detection, true: Detection) -> float:
    return overlap(found.phrase, true.phrase, touching=False)


def judge(found: Sequence[Detection], true: Sequence[Detection], quality: Callable) -> list[bool]:
    """Each detection in turn claims the true one that it fits best; the first to claim it is right."""
    taken: set[int] = set()
    hits = []
    for one in found:
        best, chosen = -1.0, None
        for place, other in enumerate(true):
            fit = quality(one, other)
            if one.labels == other.labels and fit >= 0.5 and fit > best:
                best, chosen = fit, place
        hits.append(chosen is not None and chosen not in taken)
        if chosen is not None:
            taken.add(chosen)
    return hits


def rankings(
    images: Sequence[EvaluationImage], found: Sequence[Sequence[Detection]], quality: Callable
) -> dict[Class, Ranking]:
    """By class, those that are true somewhere."""
    result: dict[Class, Ranking] = defaultdict(lambda: Ranking(0, [], []))
    for number, (image, detections) in enumerate(zip(images, found, strict=True)):
        true = true_ones(image, number)
        for one in true:
            result[one.labels].truths += 1
        for one, hit in zip(detections, judge(detections, true, quality), strict=True):
            result[one.labels].scores.append(one.score)
            result[one.labels].hits.append(hit)
    return {labels: ranking for labels, ranking in result.items() if ranking.truths}


def hico(
    images: Sequence[EvaluationImage], possible: Any, *, pair_nms: bool = False, known_object: bool = False
) -> dict[Class, Ranking]:
    found = ranked(images, 100, possible)
    for number, image in enumerate(images):
        if not len(image.ground_truth.boxes):
            found[number] = []
        if known_object:
            found[number] = [one for one in found[number] if one.labels[1] in image.ground_truth.labels]
        if pair_nms:
            found[number] = suppressed(found[number], pair_fit, 0.7)
    return rankings(images, found, relation_quality)


def open_images(images: Sequence[EvaluationImage], most: int, *, nms: bool = False) -> dict[str, dict[Class, Ranking]]:
    """Relations and phrases; `nms` without the published slip."""
    found = ranked(images, most)
    if nms:
        found = [suppressed(own, pair_fit, 0.7) for own in found]
    relations = [own if len(image.ground_truth.boxes) else [] for image, own in zip(images, found, strict=True)]
    phrases = [suppressed(own, phrase_fit, 0.5) for own in found] if nms else found
    return {
        "relations": rankings(images, relations, relation_quality),
        "phrases": rankings(images, phrases, phrase_quality),
    }


def area(hits: Sequence[bool], truths: int) -> float:
    """Under the envelope of precision over recall."""
    found, points = 0, []
    for count, hit in enumerate(hits, 1):
        found += hit
        points.append((found / truths, found / count))
    total, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        total += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return total


def vcoco(images: Sequence[PeopleImage], actions: Actions) -> dict[str, list[float]]:
    """Average precision by column: of agents, and of roles in scenarios 1 and 2; scores are all different."""
    result: dict[str, list[float]] = {
        "agent": [_vcoco_column(images, action, None, 1) for action in range(len(actions.names))]
    }
    for scenario in (1, 2):
        result[f"scenario {scenario}"] = [
            _vcoco_column(images, role.action, column, scenario) for column, role in enumerate(actions.roles)
        ]
    return result


def _vcoco_column(images: Sequence[PeopleImage], action: int, column: int | None, scenario: int) -> float:
    scored: list[tuple[float, bool]] = []
    positives = 0
    for image in images:
        people, found = image.ground_truth, image.predicted
        positives += int((people.actions[:, action] == 1).sum())
        scores = found.agent_scores[:, action] if column is None else found.role_scores[:, column]
        covered: set[int] = set()
        for one in sorted(np.flatnonzero(~np.isnan(scores)), key=lambda one: -scores[one]):
            fits = [_double_overlap(found.boxes[one], box) for box in people.boxes]
            person = int(np.argmax(fits)) if fits else -1
            if fits and (people.actions[person] == -1).any():
                continue
            right = bool(fits) and fits[person] >= 0.5 and people.actions[person, action] == 1 and person not in covered
            if right and column is not None:
                right = _role_is_right(found.role_boxes[one, column], people.role_boxes[person, column], scenario)
            if right:
                covered.add(person)
            scored.append((scores[one], right))
    scored.sort(key=lambda pair: -pair[0])
    return area([hit for _, hit in scored], positives) if positives else float("nan")


def _role_is_right(found: np.ndarray, true: np.ndarray, scenario: int) -> bool:
    if np.isnan(true).any():
        return scenario == 2 or bool(np.isnan(found).all() or (found == 0).all())
    return not np.isnan(found).any() and _double_overlap(found, true) >= 0.5


def _double_overlap(first: np.ndarray, second: np.ndarray) -> float:
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]) + 1)
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]) + 1)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second))
    return width * height / (areas - width * height)


def recall(images: Sequence[GraphImage], most: int, *, constrained: bool) -> tuple[float, list[float]]:
    """R@K, and the recall of each predicate, for detected boxes; scores are all different."""
    shares: list[float] = []
    by_predicate: dict[int, list[float]] = defaultdict(list)
    for image in images:
        truth, found = image.ground_truth, image.predicted
        if not len(truth.relations) or not len(found.pairs):
            continue
        triplets = []
        for pair, scores in zip(found.pairs, found.predicate_scores[:, 1:], strict=True):
            both = found.scores[pair[0]] * found.scores[pair[1]]
            triplets += (
                [(*pair, int(scores.argmax()) + 1, 0.0)]
                if constrained
                else [(*pair, predicate, both * score) for predicate, score in enumerate(scores, 1)]
            )
        if not constrained:
            triplets = sorted(triplets, key=lambda one: -one[3])[:100]
        hits = [
            any(
                predicate == true_predicate
                and all(
                    found.labels[own] == truth.labels[other]
                    and overlap(found.boxes[own], truth.boxes[other], touching=True) >= 0.5
                    for own, other in ((subject, true_subject), (object_, true_object))
                )
                for subject, object_, predicate, _ in triplets[:most]
            )
            for true_subject, true_object, true_predicate in truth.relations
        ]
        shares.append(float(np.mean(hits)))
        for predicate in set(truth.relations[:, 2].tolist()):
            own = [hit for hit, relation in zip(hits, truth.relations, strict=True) if relation[2] == predicate]
            by_predicate[predicate].append(float(np.mean(own)))
    predicates = images[0].predicted.predicate_scores.shape[1]
    return float(np.mean(shares)), [float(np.mean(by_predicate.get(number, 0))) for number in range(1, predicates)]
