"""Models that answer questions about objects without the image: from the words and the coordinates
of a question.

Each option of a question is a claim: a predicate, and the boxes of its subject and object. A model
learns which claims are right from how the two boxes differ (distances, ratios, overlap) and from
the predicate, with cross-validation by image. The most probable option is its answer, or "none of
these" (or "no") if no option is probable enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
BINS = 16
TREES = 60
DEPTH = 3
RATE = 0.15
SMOOTHING = 1.0  # of the hessians of leaves; of counts, twice as much for each bin
CUTS = 41

Array: TypeAlias = NDArray[np.float64]
Box: TypeAlias = tuple[int, ...]
NO_BOX: Box = (0, 0, 0, 0)


class Claim(NamedTuple):
    """An option of a question; boxes are left, top, right, bottom in pixels, or `NO_BOX`."""

    predicate: str
    subject: Box
    object: Box


class BoxQuestion(NamedTuple):
    """A question with options. right: the number of the right one; the number of options for none
    of them.
    """

    image: str
    kind: str
    claims: tuple[Claim, ...]
    right: int
    has_none: bool


@dataclass(frozen=True)
class Examples:
    """Claims as models see them: bins of features `[claims, features]`, predicates and whether they
    are right.
    """

    bins: NDArray[np.int64]
    predicate: NDArray[np.int64]
    right: NDArray[np.int64]

    def __getitem__(self, rows: NDArray[np.bool_]) -> Examples:
        return Examples(self.bins[rows], self.predicate[rows], self.right[rows])


# log odds of the second, learned from the first
Model: TypeAlias = Callable[[Examples, Examples], Array]


def answered(questions: Sequence[BoxQuestion]) -> dict[str, NDArray[np.bool_]]:
    """Return whether each model answers each question as is right, by cross-validation over
    images.
    """
    ends = np.cumsum([len(question.claims) for question in questions])
    places = [
        range(end - len(question.claims), end)
        for question, end in zip(questions, ends, strict=True)
    ]
    examples = _examples(questions)
    fold = np.array([zlib.crc32(question.image.encode()) % FOLDS for question in questions])
    fold_of_claim = np.repeat(fold, [len(rows) for rows in places])
    models: dict[str, Model] = {"naive Bayes": naive_bayes, "boosting": boosting}
    result = {}
    for name, model in models.items():
        scores = np.zeros(len(fold_of_claim))
        for held_out in range(FOLDS):
            test = fold_of_claim == held_out
            scores[test] = model(examples[~test], examples[test])
        result[name] = _right_answers(questions, places, scores, fold)
    return result


def _examples(questions: Sequence[BoxQuestion]) -> Examples:
    claims = [claim for question in questions for claim in question.claims]
    predicate = np.unique([claim.predicate for claim in claims], return_inverse=True)[1]
    boxes = np.array([claim.subject + claim.object for claim in claims], dtype=float)
    features = geometry(boxes[:, :4], boxes[:, 4:])
    shares = np.linspace(0, 1, BINS + 1)[1:-1]
    bins = [np.digitize(column, np.unique(np.quantile(column, shares))) for column in features.T]
    right = []
    for question in questions:
        right += [number == question.right for number in range(len(question.claims))]
    return Examples(np.column_stack(bins), predicate, np.array(right, dtype=np.int64))


def geometry(subject: Array, object_: Array) -> Array:
    """Return differences and ratios of boxes `[pairs, 4]`, their shapes and where they are:
    `[pairs, features]`.
    """
    size = subject[:, 2:] - subject[:, :2] + 1
    other_size = object_[:, 2:] - object_[:, :2] + 1
    centre = (subject[:, 2:] + subject[:, :2]) / 2
    other_centre = (object_[:, 2:] + object_[:, :2]) / 2
    area = size.prod(1)
    other_area = other_size.prod(1)
    scale = np.sqrt(np.minimum(area, other_area))[:, None]
    difference = (centre - other_centre) / scale
    shared = np.minimum(subject[:, 2:], object_[:, 2:]) - np.maximum(subject[:, :2], object_[:, :2])
    common = np.clip(shared, 0, None).prod(1)
    gap = np.clip(-shared, 0, None) / scale
    columns = [
        difference,
        np.abs(difference),
        np.hypot(*difference.T),
        np.log(size / other_size),
        np.log(area / other_area),
        np.log(size[:, 0] / size[:, 1]),
        np.log(other_size[:, 0] / other_size[:, 1]),
        common / area,
        common / other_area,
        common / (area + other_area - common),
        gap,
        np.hypot(*gap.T),
        (subject[:, [1, 3]] - object_[:, [1, 3]]) / scale,
        np.log(area),
        np.log(other_area),
        subject[:, 3],
        object_[:, 3],
        centre,
        other_centre,
    ]
    return np.column_stack(columns)


def naive_bayes(train: Examples, test: Examples) -> Array:
    """Return log odds by the bins of each feature, counted for each predicate and smoothed by those
    of all.
    """
    scores = np.zeros(len(test.right))
    for feature in range(train.bins.shape[1]):
        odds = _log_odds(train.bins[:, feature], train, int(test.predicate.max()) + 1)
        scores += odds[test.predicate, test.bins[:, feature]]
    return scores


def _log_odds(bins: NDArray[np.int64], train: Examples, predicates: int) -> Array:
    """Return how much more frequent each bin of a feature is among right claims: `[predicates,
    bins]`.
    """
    odds = np.zeros((predicates, BINS))
    for value, sign in ((0, -1), (1, 1)):
        rows = train.right == value
        prior = np.bincount(bins[rows], minlength=BINS) + 1.0
        prior *= 2 * SMOOTHING * BINS / prior.sum()
        for predicate in range(predicates):
            counts = prior + np.bincount(
                bins[rows & (train.predicate == predicate)], minlength=BINS
            )
            odds[predicate] += sign * np.log(counts / counts.sum())
    return odds


def boosting(train: Examples, test: Examples) -> Array:
    """Return log odds by boosted trees of bins and predicates."""
    predicates = np.arange(max(train.predicate.max(), test.predicate.max()) + 1)
    rows = np.column_stack([train.bins, train.predicate[:, None] == predicates])
    test_rows = np.column_stack([test.bins, test.predicate[:, None] == predicates])
    scores = np.zeros(len(rows))
    test_scores = np.zeros(len(test_rows))
    for _ in range(TREES):
        probability = 1 / (1 + np.exp(-scores))
        tree = _Tree(train.right - probability, probability * (1 - probability))
        tree.grow(rows, np.arange(len(rows)), test_rows, np.arange(len(test_rows)))
        for leaf, test_leaf, value in tree.leaves:
            scores[leaf] += value
            test_scores[test_leaf] += value
    return test_scores


class _Tree:
    """A regression tree. leaves: rows of training, rows of test, and what the leaf adds to their
    scores.
    """

    def __init__(self, gradient: Array, hessian: Array) -> None:
        self.gradient = gradient
        self.hessian = hessian
        self.leaves: list[tuple[NDArray[np.int64], NDArray[np.int64], float]] = []

    def grow(
        self,
        rows: NDArray[np.int64],
        node: NDArray[np.int64],
        test_rows: NDArray[np.int64],
        test_node: NDArray[np.int64],
        depth: int = DEPTH,
    ) -> None:
        """Split a node, a selection of the rows, until the depth is reached."""
        if not depth or len(node) < 2:
            value = RATE * self.gradient[node].sum() / (self.hessian[node].sum() + SMOOTHING)
            self.leaves.append((node, test_node, value))
            return
        feature, highest = self._best_split(rows[node], node)
        low = rows[node, feature] <= highest
        test_low = test_rows[test_node, feature] <= highest
        self.grow(rows, node[low], test_rows, test_node[test_low], depth - 1)
        self.grow(rows, node[~low], test_rows, test_node[~test_low], depth - 1)

    def _best_split(self, bins: NDArray[np.int64], node: NDArray[np.int64]) -> tuple[int, int]:
        """Return the feature and the highest bin of the lower part of the split that gains most."""
        features = bins.shape[1]
        cells = (bins + BINS * np.arange(features)).ravel()
        gain = np.zeros((features, BINS))
        low, low_weight = (
            np.bincount(cells, np.repeat(values[node], features), features * BINS)
            .reshape(gain.shape)
            .cumsum(1)
            for values in (self.gradient, self.hessian)
        )
        gain += low**2 / (low_weight + SMOOTHING)
        gain += (low[:, -1:] - low) ** 2 / (low_weight[:, -1:] - low_weight + SMOOTHING)
        feature, highest = np.unravel_index(np.argmax(gain), gain.shape)
        return int(feature), int(highest)


def _right_answers(
    questions: Sequence[BoxQuestion],
    places: Sequence[range],
    scores: Array,
    fold: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return which answers are right. Below which score it is "none" suits the other folds of a
    kind best.
    """
    best = np.array([scores[rows].max() for rows in places])
    option = np.array([int(np.argmax(scores[rows])) for rows in places])
    none = np.array([len(question.claims) for question in questions])
    right = np.array([question.right for question in questions])
    has_none = np.array([question.has_none for question in questions])
    kind = np.array([question.kind for question in questions])
    result = option == right
    for name in np.unique(kind[has_none]):
        for held_out in range(FOLDS):
            train = (kind == name) & (fold != held_out)
            test = (kind == name) & (fold == held_out)
            if train.any() and test.any():
                levels = np.quantile(best[train], np.linspace(0, 1, CUTS))
                cuts = (levels[1:] + levels[:-1]) / 2
                rates = [
                    np.mean(np.where(best < cut, none, option)[train] == right[train])
                    for cut in cuts
                ]
                cut = cuts[int(np.argmax(rates))]
                result[test] = np.where(best < cut, none, option)[test] == right[test]
    return result
