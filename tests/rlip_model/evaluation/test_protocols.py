"""Official protocols beside the reference figures of tests/parity: empty inputs, suppression,
divisions, bad input.
"""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.evaluation.hico import evaluate_hico
from rlip_model.evaluation.hico_classes import (
    CLASSES,
    SETTINGS,
    class_numbers,
    possible_interactions,
    split,
)
from rlip_model.evaluation.inputs import EvaluationError, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.evaluation.suppression import unsuppressed
from rlip_model.evaluation.vcoco import Actions, Role, evaluate_vcoco
from rlip_model.evaluation.visual_genome import evaluate_graphs

BOXES = np.array([[0, 0, 9, 9], [50, 50, 59, 59]], np.float32)
INVERTED = np.array([[5, 0, 4, 9]], np.float32)
INFINITE = np.array([[0, 0, np.inf, 1]], np.float32)
TRUE = ImageGroundTruth.from_lists(BOXES, [0, 1], [[0, 1, 3]])
FOUND = PredictedPairs(
    BOXES[:1], BOXES[1:], TRUE.labels[:1], TRUE.labels[1:], np.full((1, 117), 0.5, np.float32)
)


def test_the_600_classes_and_their_divisions() -> None:
    numbers = class_numbers()
    assert len(set(numbers.tolist())) == 600 == possible_interactions().sum()
    for setting, rare in zip(SETTINGS, (138, 138, 120, 120, 100), strict=True):
        division = split(setting)
        assert len(division.rare) == rare
        assert sorted([*division.rare, *division.non_rare]) == sorted(numbers)
    unseen, seen = (
        set(CLASSES.labels(part)[:, 1].tolist())
        for part in (split("UO").rare, split("UO").non_rare)
    )
    assert len(unseen) == 12
    assert not unseen & seen


def one_by_one(
    groups: np.ndarray, scores: np.ndarray, overlaps: np.ndarray, threshold: float
) -> list[bool]:
    survivors: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        rivals = [better for better in survivors if groups[better] == groups[row]]
        if all(overlaps[better, row] <= threshold for better in rivals):
            survivors.append(row)
    return [row in survivors for row in range(len(scores))]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 14),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_as_one_by_one(seed: int, count: int, num_groups: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    groups = random.integers(0, num_groups, count)
    scores = random.integers(0, 5, count) / 5
    overlaps = random.random((count, count))
    overlaps = np.maximum(overlaps, overlaps.T)
    is_kept = unsuppressed(groups, scores, lambda better, worse: overlaps[better, worse], threshold)
    assert is_kept.tolist() == one_by_one(groups, scores, overlaps, threshold)


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    people = evaluate_vcoco([], Actions(("hold",), (Role(0, "obj"),)))
    graphs = evaluate_graphs([], "predcls", num_objects=2, num_predicates=3).summary()
    figures = [
        *evaluate_hico([]).summary(split("default")).values(),
        *evaluate_open_images([], OpenImagesSettings(6, 3)).summary().values(),
        people.agent_mean(),
        people.role_mean(1),
        graphs["R@20"],
        graphs["ng-zR@100"],
    ]
    assert all(map(math.isnan, figures))


@pytest.mark.parametrize(
    ("scene", "changes", "message"),
    [
        (
            FOUND,
            {"object_labels": np.array([80])},
            "a.jpg: predicted object label is 80, expected 0 to 79",
        ),
        (FOUND, {"object_boxes": INVERTED}, "box [5.0, 0.0, 4.0, 9.0] has inverted corners"),
        (FOUND, {"scores": FOUND.scores * np.nan}, "a.jpg: a score is NaN or infinite"),
        (FOUND, {"subject_boxes": INFINITE}, "a predicted subject box is NaN or infinite"),
        (FOUND, {"scores": FOUND.scores[:, :5]}, "shape (1, 5), expected (1, 117)"),
        (TRUE, {"triplets": np.array([[0, 2, 3]])}, "object of a ground-truth triplet is 2"),
        (TRUE, {"triplets": np.array([[0, 1, 117]])}, "predicate of a ground-truth triplet is 117"),
        (TRUE, {"labels": np.array([0, 80])}, "label of a ground-truth box is 80"),
        (TRUE, {"labels": TRUE.labels[:1]}, "1 labels of ground-truth boxes, expected 2"),
        (
            TRUE,
            {"boxes": TRUE.boxes * np.nan},
            "box is NaN or infinite; leave it out or fix the annotation",
        ),
        (TRUE, {"boxes": INVERTED}, "ground-truth box [5.0, 0.0, 4.0, 9.0] has inverted corners"),
    ],
)
def test_what_would_make_numbers_wrong_is_told(
    scene: Any, changes: dict[str, Any], message: str
) -> None:
    scene.check("a.jpg", 80, 117)
    with pytest.raises(EvaluationError, match=re.escape(message)):
        replace(scene, **changes).check("a.jpg", 80, 117)


@pytest.mark.parametrize(("boxes", "labels", "triplets"), [
    ([[0, 0, 1]], [0], []), ([[0, 0], [1, 1]], [0], []),  # four numbers, but not one box
    ([[0, 0, 1, 1]], [[]], []), ([[0, 0, 1, 1]], [0.5], []), ([[0, 0, 1, 1]], [10**30], []),
    ([[0, 0, 1, 1]], [0], [[0, 0, 1, 0]] * 3),  # twelve numbers, but not four triplets
    ([[0, 0, 1, 1], [0, 0, 1]], [0, 0], []),
])  # fmt: skip
def test_lists_of_another_form_are_told(boxes: Any, labels: Any, triplets: Any) -> None:
    with pytest.raises(EvaluationError, match="not a table of"):
        ImageGroundTruth.from_lists(boxes, labels, triplets)
