import math

import numpy as np
import pytest

from rlip_model.evaluation.hico import HicoScores, evaluate_hico
from rlip_model.evaluation.hico_classes import (
    CLASSES,
    SETTINGS,
    ClassSplit,
    class_numbers,
    possible_interactions,
    split,
)
from tests.rlip_model.evaluation.scenes import PERSON, THING, image

BICYCLE, HOLD, RIDE, WASH, EAT = 1, 36, 76, 111, 24
RIGHT = (PERSON, THING, BICYCLE, {RIDE: 0.9})


def test_what_is_scored_0_is_a_detection_if_the_hundred_best_reach_that_far() -> None:
    scores = evaluate_hico([image([(0, 1, RIDE), (0, 1, WASH)], [(PERSON, THING, BICYCLE, {HOLD: 0.9})])]).per_class
    assert scores.true_positives.tolist() == [RIDE < 100, WASH < 100] == [True, False]


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    summary = evaluate_hico([]).summary(split("default"))
    assert all(math.isnan(value) for value in summary.values())


def test_impossible_interactions_are_scored_0() -> None:
    both = image([(0, 1, RIDE), (0, 1, EAT)], [(PERSON, THING, BICYCLE, {RIDE: 0.5, EAT: 0.9})])
    scores = evaluate_hico([both]).per_class
    assert [scores.of_class(CLASSES.number(0, BICYCLE, verb))[0].tolist() for verb in (RIDE, EAT)] == [[0.5], [0.0]]


def test_rare_and_others() -> None:
    scores: HicoScores = evaluate_hico([image([(0, 1, RIDE), (0, 1, WASH)], [RIGHT])])
    nobody = np.zeros((0, 3))
    summary = scores.summary(ClassSplit.from_labels(np.array([[0, BICYCLE, RIDE]]), nobody))
    assert summary["mAP rare"] == pytest.approx(1)
    assert summary["mAP"] == pytest.approx(0.5)
    assert math.isnan(summary["mAP non-rare"])


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
