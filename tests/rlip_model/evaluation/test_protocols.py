"""Official protocols beside the reference figures of tests/parity: empty inputs, suppression, HICO-DET's divisions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.evaluation.hico import evaluate_hico
from rlip_model.evaluation.hico_classes import CLASSES, SETTINGS, class_numbers, possible_interactions, split
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.evaluation.suppression import unsuppressed
from rlip_model.evaluation.vcoco import Actions, Role, evaluate_vcoco
from rlip_model.evaluation.visual_genome import evaluate_graphs


def test_the_600_classes_and_their_divisions() -> None:
    numbers = class_numbers()
    assert len(set(numbers.tolist())) == 600 == possible_interactions().sum()
    for setting, rare in zip(SETTINGS, (138, 138, 120, 120, 100), strict=True):
        division = split(setting)
        assert len(division.rare) == rare
        assert sorted([*division.rare, *division.non_rare]) == sorted(numbers)
    unseen, seen = (set(CLASSES.labels(part)[:, 1].tolist()) for part in (split("UO").rare, split("UO").non_rare))
    assert len(unseen) == 12
    assert not unseen & seen


def one_by_one(groups: np.ndarray, scores: np.ndarray, overlaps: np.ndarray, threshold: float) -> list[bool]:
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        rivals = [better for better in kept if groups[better] == groups[row]]
        if all(overlaps[better, row] <= threshold for better in rivals):
            kept.append(row)
    return [row in kept for row in range(len(scores))]


@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.9]))
def test_as_one_by_one(seed: int, count: int, num_groups: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    groups, scores = random.integers(0, num_groups, count), random.integers(0, 5, count) / 5
    overlaps = random.random((count, count))
    overlaps = np.maximum(overlaps, overlaps.T)
    found = unsuppressed(groups, scores, lambda better, worse: overlaps[better, worse], threshold)
    assert found.tolist() == one_by_one(groups, scores, overlaps, threshold)


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    people = evaluate_vcoco([], Actions(("hold",), (Role(0, "obj"),)))
    graphs = evaluate_graphs([], "predcls", num_objects=2, num_predicates=3).summary()
    found = [
        *evaluate_hico([]).summary(split("default")).values(),
        *evaluate_open_images([], OpenImagesSettings(6, 3)).summary().values(),
        *(people.agent_mean(), people.role_mean(1), graphs["R@20"], graphs["ng-zR@100"]),
    ]
    assert all(map(math.isnan, found))
