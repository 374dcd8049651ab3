"""Matching: optimal, one to one, indifferent to the order of targets, and right about missing objects."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

from rlip_model.boxes import generalized_iou, to_corners
from rlip_model.heads import LayerOutput
from rlip_model.matcher import NonFiniteError, match, matching_costs
from rlip_model.settings import MatchingCosts
from rlip_model.targets import Triplets, join
from tests.rlip_model.samples import PAIRS, RELATIONS, random_layer, random_triplets

COSTS = MatchingCosts()


@pytest.mark.parametrize("seed", range(5))
def test_cheaper_than_every_other_assignment(seed: int) -> None:
    batch = join([random_triplets(3, seed), random_triplets(2, seed)], RELATIONS)
    output = random_layer(seed=seed)
    costs, found = matching_costs(output, batch, COSTS).detach(), match(output, batch, COSTS)
    assert sorted(found.triplets.tolist()) == list(range(5))
    assert len(set(zip(found.images.tolist(), found.queries.tolist(), strict=True))) == 5
    for image, rows in ((0, [0, 1, 2]), (1, [3, 4])):
        chosen = found.images == image
        ours = costs[found.triplets[chosen], found.queries[chosen]].sum()
        every = [
            sum(costs[row, query] for row, query in zip(rows, queries, strict=True))
            for queries in permutations(range(PAIRS), len(rows))
        ]
        assert float(ours) == pytest.approx(float(min(every)), abs=1e-5)


def cost_by_the_book(output: LayerOutput, image: int, query: int, targets: Triplets, index: int) -> float:
    """One entry, written out from the definition."""
    assert output.subject_logits is not None
    label = -float(output.object_logits[image, query].softmax(-1)[targets.object_labels[index]])
    label -= float(output.subject_logits[image, query].softmax(-1)[targets.subject_labels[index]])
    probability, true = output.relation_logits[image, query].sigmoid(), targets.relation_labels[index]
    hits = float((probability * true).sum() / (true.sum() + 1e-4))
    misses = float(((1 - probability) * (1 - true)).sum() / ((1 - true).sum() + 1e-4))

    def distance(predicted: Tensor, box: Tensor) -> float:
        return float((predicted[image, query] - box[index]).abs().sum())

    def giou(predicted: Tensor, box: Tensor) -> float:
        return float(generalized_iou(to_corners(predicted[image, query]), to_corners(box[index])))

    subject_giou = giou(output.subject_boxes, targets.subject_boxes)
    object_giou = giou(output.object_boxes, targets.object_boxes)
    missing = not bool(targets.object_boxes[index].any())
    box = max(
        distance(output.subject_boxes, targets.subject_boxes),
        0.0 if missing else distance(output.object_boxes, targets.object_boxes),
    )
    overlap = max(-subject_giou, -object_giou - (subject_giou if missing else 0.0))
    return label - (hits + misses) / 2 + 2.5 * box + overlap


def test_costs_are_as_defined() -> None:
    images = [random_triplets(2), random_triplets(3)]
    images[0].object_boxes[1] = 0
    output, batch = random_layer(), join(images, RELATIONS)
    costs = matching_costs(output, batch, COSTS)
    for row, (image, index) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
        for query in range(PAIRS):
            expected = cost_by_the_book(output, image, query, images[image], index)
            assert float(costs[row, query]) == pytest.approx(expected, abs=1e-4)


def test_nothing_to_match() -> None:
    found = match(random_layer(), join([random_triplets(0)] * 2, RELATIONS), COSTS)
    assert found.images.tolist() == found.queries.tolist() == found.triplets.tolist() == []


def test_without_subject_classes_subjects_labels_cost_nothing() -> None:
    triplets, output = random_triplets(3), random_layer(batch=1, subjects=False)
    other = replace(triplets, subject_labels=(triplets.subject_labels + 1) % 4)
    first = matching_costs(output, join([triplets], RELATIONS), COSTS)
    torch.testing.assert_close(first, matching_costs(output, join([other], RELATIONS), COSTS))


def test_diverged_predictions_are_refused() -> None:
    output = random_layer(batch=1)
    broken = replace(output, relation_logits=torch.full_like(output.relation_logits, float("nan")))
    with pytest.raises(NonFiniteError, match="not finite"):
        match(broken, join([random_triplets(2)], RELATIONS), COSTS)
