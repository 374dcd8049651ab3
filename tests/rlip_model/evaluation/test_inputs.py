from typing import Any

import numpy as np
import pytest
import torch

from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.postprocess import TripletDetections
from tests.rlip_model.evaluation.scenes import PERSON, THING, image


def check(scene: EvaluationImage) -> None:
    scene.ground_truth.check(scene.name, 80, 117)
    scene.predicted.check(scene.name, 80, 117)


@pytest.mark.parametrize(
    ("scene", "told"),
    [
        (image(found=[(PERSON, THING, 80, {3: 0.5})]), "a.jpg: predicted object label is 80, expected 0 to 79"),
        (image(found=[(PERSON, THING, -1, {3: 0.5})]), "predicted object label is -1"),
        (image(found=[(PERSON, [59, 50, 50, 59], 1, {})]), "box [59.0, 50.0, 50.0, 59.0] has inverted corners"),
        (image(found=[(PERSON, THING, 1, {3: float("nan")})]), "a.jpg: a score is NaN or infinite"),
        (image(found=[([0, 0, float("inf"), 1], THING, 1, {})]), "a predicted subject box is NaN or infinite"),
        (image([(0, 2, 3)]), "object of a ground-truth triplet is 2"),
        (image([(0, -1, 3)]), "object of a ground-truth triplet is -1"),
        (image([(-1, 1, 3)]), "subject of a ground-truth triplet is -1"),
        (image([(0, 1, 117)]), "predicate of a ground-truth triplet is 117"),
        (image(labels=(0, 80)), "label of a ground-truth box is 80"),
        (image(labels=(0,)), "1 labels of ground-truth boxes, expected 2"),
        (image(boxes=([5, 0, 4, 9], THING)), "ground-truth box [5.0, 0.0, 4.0, 9.0] has inverted corners"),
        (image(found=[(PERSON, THING, 1, {})], num_predicates=5), "shape (1, 5), expected (1, 117)"),
    ],
)
def test_what_would_make_numbers_wrong_is_told(scene: EvaluationImage, told: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        check(scene)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("boxes", "labels", "triplets"),
    [
        ([[0, 0, 1]], [0], []),
        ([[0, 0], [1, 1]], [0], []),  # four numbers, but not one box
        ([[0, 0, 1, 1]], [[0]], []),
        ([[0, 0, 1, 1]], 0, []),
        ([[0, 0, 1, 1]], [[]], []),
        ([[0, 0, 1, 1]], [0.5], []),
        ([[0, 0, 1, 1]], [float("nan")], []),
        ([[0, 0, 1, 1]], [10**30], []),
        ([[0, 0, 1, 1]], [0], [[0, 0, 1, 0]] * 3),  # twelve numbers, but not four triplets
        ([[0, 0, 1, 1], [0, 0, 1]], [0, 0], []),
    ],
)
def test_lists_of_another_form_are_told(boxes: Any, labels: Any, triplets: Any) -> None:
    with pytest.raises(EvaluationError, match="not a table of"):
        ImageGroundTruth.from_lists(boxes, labels, triplets)


def test_detections_keep_every_number() -> None:
    boxes = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    scores = torch.tensor([[0.25, 0.5, 0.75], [0.125, 0.0, 1.0]])
    found = TripletDetections(boxes, boxes + 1, torch.tensor([0, 1]), torch.tensor([2, 3]), scores.bfloat16())
    pairs = PredictedPairs.from_detections(found)
    assert len(pairs) == 2
    np.testing.assert_array_equal(pairs.object_boxes, boxes.numpy() + 1)
    np.testing.assert_array_equal(pairs.subject_labels, [0, 1])
    np.testing.assert_array_equal(pairs.object_labels, [2, 3])
    np.testing.assert_array_equal(pairs.scores, scores.numpy())
