import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.postprocess import TripletDetections

PERSON, THING = [0, 0, 9, 9], [50, 50, 59, 59]
Found = tuple[list[float], list[float], int, dict[int, float]]  # subject, object, its label, scores of predicates


def image(
    true: Sequence[tuple[int, int, int]] = (),
    found: Sequence[Found] = (),
    *,
    boxes: Sequence[list[float]] = (PERSON, THING),
    labels: Sequence[int] = (0, 1),
    num_predicates: int = 117,
) -> EvaluationImage:
    """`true`: indices of two boxes, and a predicate. All subjects found are persons, label 0."""
    scores = np.zeros((len(found), num_predicates), dtype=np.float32)
    for row, item in zip(scores, found, strict=True):
        for predicate, score in item[3].items():
            row[predicate] = score
    columns: list[Any] = [np.array([item[end] for item in found], dtype=float).reshape(-1, 4) for end in (0, 1)]
    object_labels = np.array([item[2] for item in found], dtype=int)
    return EvaluationImage(
        "a.jpg",
        ImageGroundTruth.from_lists(boxes, labels, true),
        PredictedPairs(*columns, np.zeros(len(found), dtype=int), object_labels, scores),
    )


@pytest.mark.parametrize(
    ("scene", "told"),
    [
        (image(found=[(PERSON, THING, 80, {3: 0.5})]), "a.jpg: predicted object label is 80, expected 0 to 79"),
        (image(found=[(PERSON, [59, 50, 50, 59], 1, {})]), "box [59.0, 50.0, 50.0, 59.0] has inverted corners"),
        (image(found=[(PERSON, THING, 1, {3: float("nan")})]), "a.jpg: a score is NaN or infinite"),
        (image(found=[([0, 0, float("inf"), 1], THING, 1, {})]), "a predicted subject box is NaN or infinite"),
        (image([(0, 2, 3)]), "object of a ground-truth triplet is 2"),
        (image([(0, 1, 117)]), "predicate of a ground-truth triplet is 117"),
        (image(labels=(0, 80)), "label of a ground-truth box is 80"),
        (image(labels=(0,)), "1 labels of ground-truth boxes, expected 2"),
        (image(boxes=([5, 0, 4, 9], THING)), "ground-truth box [5.0, 0.0, 4.0, 9.0] has inverted corners"),
        (image(found=[(PERSON, THING, 1, {})], num_predicates=5), "shape (1, 5), expected (1, 117)"),
    ],
)
def test_what_would_make_numbers_wrong_is_told(scene: EvaluationImage, told: str) -> None:
    wrong = scene.predicted if len(scene.predicted) else scene.ground_truth
    with pytest.raises(EvaluationError, match=re.escape(told)):
        wrong.check(scene.name, 80, 117)


@pytest.mark.parametrize(("boxes", "labels", "triplets"), [
    ([[0, 0, 1]], [0], []), ([[0, 0], [1, 1]], [0], []),  # four numbers, but not one box
    ([[0, 0, 1, 1]], [[]], []), ([[0, 0, 1, 1]], [0.5], []), ([[0, 0, 1, 1]], [10**30], []),
    ([[0, 0, 1, 1]], [0], [[0, 0, 1, 0]] * 3),  # twelve numbers, but not four triplets
    ([[0, 0, 1, 1], [0, 0, 1]], [0, 0], []),
])  # fmt: skip
def test_lists_of_another_form_are_told(boxes: Any, labels: Any, triplets: Any) -> None:
    with pytest.raises(EvaluationError, match="not a table of"):
        ImageGroundTruth.from_lists(boxes, labels, triplets)


def test_detections_keep_every_number() -> None:
    boxes = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    scores = torch.tensor([[0.25, 0.5, 0.75], [0.125, 0.0, 1.0]])
    found = TripletDetections(boxes, boxes + 1, torch.tensor([0, 1]), torch.tensor([2, 3]), scores.bfloat16())
    pairs = PredictedPairs.from_detections(found)
    assert (pairs.subject_labels.tolist(), pairs.object_labels.tolist()) == ([0, 1], [2, 3])
    np.testing.assert_array_equal(pairs.object_boxes, boxes.numpy() + 1)
    np.testing.assert_array_equal(pairs.scores, scores.numpy())
