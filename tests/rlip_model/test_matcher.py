"""Matching: optimal, one to one, indifferent to the order of targets, and right about missing objects."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from rlip_model.matcher import NonFiniteError, match, matching_costs
from rlip_model.settings import MatchingCosts
from rlip_model.targets import join
from tests.rlip_model.samples import PAIRS, RELATIONS, random_layer, random_triplets

COSTS = MatchingCosts()


@pytest.mark.parametrize("seed", range(5))
def test_cheaper_than_every_other_assignment(seed: int) -> None:
    batch = join([random_triplets(3, seed), random_triplets(2, seed)], RELATIONS)
    output = random_layer(seed=seed)
    costs, found = matching_costs(output, batch, COSTS).detach(), match([output], batch, COSTS)[0]
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


def test_nothing_to_match() -> None:
    found = match([random_layer()], join([random_triplets(0)] * 2, RELATIONS), COSTS)[0]
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
        match([broken], join([random_triplets(2)], RELATIONS), COSTS)
