"""How good scores of pairs are: average precision, precision at a recall, calibration, and V-COCO's
role AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.layout.data import ACTIONS, PERSON, AnnotatedImage
from rlip_model.evaluation.vcoco import (
    Actions,
    People,
    PeopleImage,
    PredictedPeople,
    Role,
    evaluate_vcoco,
)
from sgpipe.stages.tag.layout.scene import BoolArray, IntArray

RECALLS = (0.8, 0.85, 0.9)
TENTHS = 10
MIN_PAIRS = 50  # of a tenth whose calibration is reported

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Pairs of person and another box with the ground truth. All arrays are [pairs] or [pairs,
    actions].
    """

    pairs: Sequence[IntArray]  # of each image
    interacts: BoolArray
    actions: BoolArray
    with_thing: BoolArray  # the object is not a person
    classes: NDArray[np.str_]  # of the object

    @classmethod
    def of(
        cls, images: Sequence[AnnotatedImage], actions: Sequence[str] = (), nothing: str = ""
    ) -> Judged:
        """Collect the pairs of images. Pairs whose only predicate is `nothing` do not interact."""
        columns = {action: column for column, action in enumerate(actions)}
        pairs = [image.pairs() for image in images]
        interacts = []
        done = []
        classes = []
        for image, pair in zip(images, pairs, strict=True):
            predicates = {
                (subject, thing): set(words) - {nothing}
                for subject, words, thing in image.relations
            }
            for subject, thing in pair.tolist():
                words = predicates.get((subject, thing), set())
                interacts.append(bool(words))
                done.append([columns[word] for word in words if word in columns])
                classes.append(image.layout.classes[thing])
        matrix = np.zeros((len(done), len(actions)), bool)
        for row, found in enumerate(done):
            matrix[row, found] = True
        names = np.array(classes)
        return cls(pairs, np.array(interacts), matrix, names != PERSON, names)


def average_precision(scores: Floats, truth: BoolArray) -> float:
    """Return the mean precision at each true pair, by descending score; NaN without one."""
    if not truth.any():
        return float("nan")
    precision, _ = curve(scores, truth)
    in_order = truth[np.argsort(-scores, kind="stable")]
    return float(precision[in_order].mean())


def curve(scores: Floats, truth: BoolArray) -> tuple[Floats, Floats]:
    """Return precision and recall after each pair, by descending score."""
    true_counts = np.cumsum(truth[np.argsort(-scores, kind="stable")])
    return true_counts / np.arange(1, len(truth) + 1), true_counts / max(int(truth.sum()), 1)


def precision_at(scores: Floats, truth: BoolArray, recall: float) -> float:
    precision, recalls = curve(scores, truth)
    return float(precision[np.searchsorted(recalls, recall)])


def area_under_roc(scores: Floats, truth: BoolArray) -> float:
    """Return the probability that a true pair has a higher score than another one; equal scores
    count half.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(truth.sum())
    negatives = int((~truth).sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration(scores: Floats, truth: BoolArray) -> list[tuple[int, float, float]]:
    """Return for each tenth of the probability its pairs, their mean probability, and the share
    that is true.
    """
    tenths = np.minimum((scores * TENTHS).astype(int), TENTHS - 1)
    rows = []
    for tenth in range(TENTHS):
        inside = tenths == tenth
        if inside.any():
            rows.append(
                (int(inside.sum()), float(scores[inside].mean()), float(truth[inside].mean()))
            )
    return rows


def worst_tenth(scores: Floats, truth: BoolArray) -> float:
    """Return the greatest difference of a tenth between its probability and the share that is
    true.
    """
    rows = calibration(scores, truth)
    return max(abs(mean - share) for pairs, mean, share in rows if pairs >= MIN_PAIRS)


def mean_average_precision(scores: Floats, truth: BoolArray) -> float:
    """Return the mean over actions that occur, of `[pairs, actions]`."""
    columns = range(truth.shape[1])
    return float(
        np.nanmean([average_precision(scores[:, column], truth[:, column]) for column in columns])
    )


def role_average_precision(
    images: Sequence[AnnotatedImage], judged: Judged, scores: Floats, actions: Sequence[str]
) -> float:
    """Return the mean role AP (scenario 1) of V-COCO's evaluator, given the annotated boxes, over
    the 24 actions.

    Every person is predicted once with each other box as its roles. The evaluator counts a person
    once for each role; of several annotated boxes with the same role, the first is the one to be
    found.

    Args:
        images: with persons of whom nothing more is known counted as persons who do nothing
        judged: their pairs
        scores: [pairs, actions]
        actions: words
    """
    official = {word: name.split(" ") for name, word in ACTIONS.items()}
    names = tuple(dict.fromkeys(official[word][0] for word in actions))
    roles = tuple(Role(names.index(official[word][0]), official[word][1]) for word in actions)
    columns = Actions(names, roles)
    evaluated = []
    start = 0
    for image, pairs in zip(images, judged.pairs, strict=True):
        image_scores = scores[start : start + len(pairs)]
        start += len(pairs)
        if len(pairs):
            truth = _people(image, columns, actions)
            predicted = _predicted(image, pairs, image_scores, columns)
            evaluated.append(PeopleImage(str(image.image_id), truth, predicted))
    return evaluate_vcoco(evaluated, columns).role_mean(1)


def _people(image: AnnotatedImage, columns: Actions, actions: Sequence[str]) -> People:
    """Return the persons of an image as the evaluator takes them."""
    persons = [index for index, name in enumerate(image.layout.classes) if name == PERSON]
    done = np.zeros((len(persons), len(columns.names)), int)
    boxes = np.full((len(persons), len(actions), 4), np.nan)
    for subject, words, thing in image.relations:
        person = persons.index(subject)
        for word in words:
            column = actions.index(word)
            done[person, columns.roles[column].action] = 1
            if np.isnan(boxes[person, column, 0]):
                boxes[person, column] = image.layout.boxes[thing]
    return People(image.layout.boxes[persons].astype(float), done, boxes)


def _predicted(
    image: AnnotatedImage, pairs: IntArray, scores: Floats, columns: Actions
) -> PredictedPeople:
    """Return a prediction for each pair: the person with the object in every role."""
    boxes = image.layout.boxes.astype(float)
    agents = np.zeros((len(pairs), len(columns.names)))
    for column, role in enumerate(columns.roles):
        agents[:, role.action] = np.maximum(agents[:, role.action], scores[:, column])
    role_boxes = np.repeat(boxes[pairs[:, 1]][:, None], len(columns.roles), axis=1)
    return PredictedPeople(boxes[pairs[:, 0]], agents, scores, role_boxes)
