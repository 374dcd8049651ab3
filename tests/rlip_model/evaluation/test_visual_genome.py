import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlip_model.evaluation.visual_genome import (
    GraphImage,
    GraphScores,
    GroundTruthGraph,
    Mode,
    PredictedGraph,
    evaluate_graphs,
)

BOXES = [[0, 0, 9, 9], [50, 50, 59, 59], [200, 200, 230, 230]]
LABELS = [5, 6, 7]
ON, OF, NEAR = 1, 2, 3


def scene(
    relations: Sequence[tuple[int, int, int]],
    pairs: Sequence[tuple[int, int, dict[int, float]]],
    *,
    boxes: list[list[float]] = BOXES,
    labels: Sequence[int] = LABELS,
    scores: Sequence[float] = (1.0, 1.0, 1.0),
) -> GraphImage:
    """The true boxes are `BOXES`; `pairs` are two found boxes and scores of predicates."""
    predicates = np.zeros((len(pairs), 4))
    for row, (_, _, own) in zip(predicates, pairs, strict=True):
        row[0] = 0.99  # background
        for predicate, score in own.items():
            row[predicate] = score
    found = PredictedGraph(
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(labels, dtype=int),
        np.array(scores[: len(boxes)], dtype=float),
        np.array([pair[:2] for pair in pairs], dtype=int).reshape(-1, 2),
        predicates,
    )
    truth = GroundTruthGraph(
        np.array(BOXES, dtype=float), np.array(LABELS), np.array(relations, dtype=int).reshape(-1, 3)
    )
    return GraphImage("7", truth, found)


def scores(*images: GraphImage, mode: Mode = "sgdet", zero_shot: np.ndarray | None = None) -> GraphScores:
    return evaluate_graphs(images, mode, zero_shot=zero_shot, num_predicates=3)


def test_mean_recall_is_of_predicates_over_images_that_have_them() -> None:
    first = scene([(0, 1, ON), (1, 0, ON), (0, 2, OF)], [(0, 1, {ON: 0.5})])
    second = scene([(0, 1, ON)], [(0, 1, {ON: 0.5})])
    recall = scores(first, second).constrained
    assert recall.per_predicate[20].tolist() == [0.75, 0, 0]
    assert recall.mean_recall(20) == 0.25


def test_zero_shot_recall_is_of_triplets_that_training_lacks() -> None:
    first = scene([(0, 1, ON), (1, 0, ON)], [(0, 1, {ON: 0.5})])
    second = scene([(1, 0, ON)], [(0, 1, {ON: 0.5})])
    found = scores(first, second, zero_shot=np.array([[5, 6, ON], [9, 9, OF]]))
    assert found.constrained.zero_shot_per_image[20].tolist() == [1]
    assert math.isnan(scores(first).constrained.zero_shot_recall(20))


def test_pair_accuracy_ranks_only_true_pairs_and_counts_all_relations() -> None:
    others = [(0, 2, {OF: 0.9})] * 20
    first = scene([(0, 1, ON)], [*others, (0, 1, {ON: 0.5})])
    second = scene([(1, 0, ON), (2, 0, ON), (1, 2, ON)], [(0, 1, {ON: 0.5})])
    found = scores(first, second, mode="sgcls")
    assert found.constrained.recall(20) == 0
    assert found.pair_accuracy == {20: 0.25, 50: 0.25, 100: 0.25}
    assert scores(first).pair_accuracy == {}


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    summary = scores(mode="predcls").summary()
    assert math.isnan(summary["R@20"])
    assert math.isnan(summary["ng-zR@100"])
