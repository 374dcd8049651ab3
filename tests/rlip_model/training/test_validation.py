"""Matching of predicted triplets, and average precision against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.postprocess import TripletDetections
from rlip_model.targets import Triplets
from rlip_model.training.validation import (
    RelationScores,
    average_precision,
    match_triplets,
    validate,
)
from tests.rlip_model.training.worlds import ToyFeed, objective

# xyxy
LEFT = [0.0, 0.0, 0.4, 1.0]
RIGHT = [0.6, 0.0, 1.0, 1.0]


def detections_of(
    *rows: tuple[list[float], list[float], int, int, list[float]],
) -> TripletDetections:
    subjects, objects, subject_labels, object_labels, scores = zip(*rows, strict=True)
    boxes = map(torch.tensor, (subjects, objects))
    labels = map(torch.tensor, (subject_labels, object_labels))
    return TripletDetections(*boxes, *labels, torch.tensor(scores))


def true(*rows: tuple[list[float], list[float], int, int, list[float]]) -> Triplets:
    predicted = detections_of(*rows)
    centres = [
        torch.cat(((b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]), 1)
        for b in (predicted.subject_boxes, predicted.object_boxes)
    ]
    return Triplets(
        *centres, predicted.subject_labels, predicted.object_labels, predicted.relation_scores
    )


TRUTH = true((LEFT, RIGHT, 1, 2, [1.0, 0.0]))


def hits(detections: TripletDetections) -> list[tuple[float, bool]]:
    confidences, correct = match_triplets(detections, TRUTH)
    return [(round(float(c), 3), bool(h)) for c, h in zip(confidences, correct, strict=True)]


def test_names_and_boxes_have_to_be_right() -> None:
    half_off = [0.0, 0.0, 0.4, 0.4]
    rows = [
        (LEFT, RIGHT, 1, 2, [0.9, 0.8]),  # right, and another relation of the same pair
        (LEFT, RIGHT, 0, 2, [0.7, 0.0]), (LEFT, RIGHT, 1, 3, [0.6, 0.0]), (half_off, RIGHT, 1, 2, [0.5, 0.0]),
        (RIGHT, LEFT, 1, 2, [0.4, 0.0]),
    ]  # fmt: skip
    wrong = [
        (0.8, False),
        (0.7, False),
        (0.6, False),
        (0.5, False),
        (0.4, False),
        *[(0.0, False)] * 4,
    ]
    assert hits(detections_of(*rows)) == [(0.9, True), *wrong]
    assert [hit for _, hit in hits(detections_of(*rows[1:]))] == [False] * 8


def area_under_the_curve(confidences: list[float], right: list[bool], total: int) -> float:
    """By the definition: over every threshold, what recall gains times the best precision at that
    recall or more.
    """
    order = sorted(range(len(right)), key=lambda i: -confidences[i])
    true_counts = [sum(right[i] for i in order[:cut]) for cut in range(1, len(order) + 1)]
    points = [
        (true_count / total, true_count / cut) for cut, true_count in enumerate(true_counts, 1)
    ]
    area = 0.0
    before = 0.0
    for recall, _ in points:
        area += (recall - before) * max(precision for at, precision in points if at >= recall)
        before = recall
    return area


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(0, 5)
)
def test_average_precision_is_the_area_under_the_curve(
    rows: list[tuple[float, bool]], missed: int
) -> None:
    confidences = [c for c, _ in rows]
    right = [h for _, h in rows]
    total = max(1, sum(right) + missed)
    expected = area_under_the_curve(confidences, right, total)
    assert average_precision(np.array(confidences), np.array(right), total) == pytest.approx(
        expected
    )


def test_measures_of_two_images() -> None:
    """Of the first image's two relations one is found, surely; of the second's one, at place 25,
    unsurely.
    """
    scores = RelationScores()
    scores.add(
        detections_of((LEFT, RIGHT, 1, 2, [0.9, 0.0])),
        true((LEFT, RIGHT, 1, 2, [1.0, 0.0]), (RIGHT, LEFT, 1, 2, [1.0, 0.0])),
    )
    wrong = [(LEFT, RIGHT, 0, 0, [0.5, 0.5])] * 12
    scores.add(detections_of(*wrong, (LEFT, RIGHT, 1, 2, [0.1, 0.0])), TRUTH)
    measures = scores.measures()
    assert measures["recall@20"] == pytest.approx((1 / 2 + 0) / 2)
    assert measures["recall@50"] == measures["recall@100"] == pytest.approx((1 / 2 + 1) / 2)
    assert measures["precision"] == pytest.approx(1 / 25)
    assert measures["recall"] == pytest.approx(1 / 3)
    assert measures["ap"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 26)


@pytest.mark.parametrize("kind", ["tagger", "parseda"])
def test_a_validation_leaves_the_network_as_it_was(kind: str) -> None:
    target = objective(kind).train()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    batches = [parts[0] for parts in ToyFeed(2)._batches(0, 0)]
    measures = validate(target, batches, torch.device("cpu"))
    # nothing random, such as noise, is in it
    assert measures == validate(target, batches, torch.device("cpu"))
    assert target.training
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert measures.keys() == {
        "loss",
        "ap",
        "recall@20",
        "recall@50",
        "recall@100",
        "precision",
        "recall",
    }
    assert validate(target, [], torch.device("cpu")) == {}
