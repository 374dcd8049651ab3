import math

import numpy as np
import pytest

from rlip_model.evaluation.hico import HicoScores, HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import (
    CLASSES,
    SETTINGS,
    ClassSplit,
    class_numbers,
    possible_interactions,
    split,
)
from rlip_model.evaluation.inputs import EvaluationImage
from rlip_model.evaluation.suppression import PairSuppression
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, image

BICYCLE, HOLD, RIDE, WASH, EAT = 1, 36, 76, 111, 24
RIGHT = (PERSON, THING, BICYCLE, {RIDE: 0.9})


def precision(*images: EvaluationImage, settings: HicoSettings | None = None) -> float:
    return evaluate_hico(images, settings).per_class.mean()


def rides(*found: tuple, **boxes: list) -> EvaluationImage:
    return image([(0, 1, RIDE)], found, **boxes)


def test_found() -> None:
    assert precision(rides(RIGHT)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "expected"),
    [([50, 50, 59, 54], 1), ([50, 50, 59, 53], 0)],  # 5 and 4 of 10 rows: half is enough
)
@pytest.mark.parametrize("end", [0, 1])
def test_both_boxes_overlap_by_half(box: list[float], expected: float, end: int) -> None:
    shrunk = [value - 50 for value in box] if end == 0 else box
    boxes = [PERSON, THING]
    boxes[end] = shrunk
    assert precision(rides((*boxes, BICYCLE, {RIDE: 0.9}))) == pytest.approx(expected)


def test_what_is_scored_0_is_a_detection_if_the_hundred_best_reach_that_far() -> None:
    scores = evaluate_hico([image([(0, 1, RIDE), (0, 1, WASH)], [(PERSON, THING, BICYCLE, {HOLD: 0.9})])]).per_class
    assert scores.true_positives.tolist() == [RIDE < 100, WASH < 100] == [True, False]


def test_equal_annotations_are_found_once_and_count_twice() -> None:
    scores = evaluate_hico([image([(0, 1, RIDE), (0, 1, RIDE)], [RIGHT, RIGHT])]).per_class
    assert (scores.targets.tolist(), scores.true_positives.tolist()) == ([2], [1])


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    summary = evaluate_hico([]).summary(split("default"))
    assert all(math.isnan(value) for value in summary.values())


def test_impossible_interactions_are_scored_0() -> None:
    both = image([(0, 1, RIDE), (0, 1, EAT)], [(PERSON, THING, BICYCLE, {RIDE: 0.5, EAT: 0.9})])
    scores = evaluate_hico([both]).per_class
    assert [scores.of_class(CLASSES.number(0, BICYCLE, verb))[0].tolist() for verb in (RIDE, EAT)] == [[0.5], [0.0]]


def test_only_the_hundred_best_count() -> None:
    others = [(PERSON, FAR, BICYCLE, {HOLD: 0.5 + row / 1000}) for row in range(100)]
    last = (PERSON, THING, BICYCLE, {RIDE: 0.1})
    assert precision(rides(*others[:99], last)) == pytest.approx(1)
    assert precision(rides(*others, last)) == 0


SUPPRESSING = HicoSettings(suppression=PairSuppression())


@pytest.mark.parametrize(
    ("subject", "object_", "left"),
    [
        ([0, 0, 9, 7], THING, 1),  # 0.8
        ([0, 0, 9, 5], THING, 2),  # 0.6
        (PERSON, [50, 50, 59, 54], 1),  # the root of 0.5
        (PERSON, [50, 50, 59, 53], 2),  # the root of 0.4
        ([0, 0, 9, 7], [50, 50, 59, 56], 2),  # 0.8 times the root of 0.7
    ],
)
def test_pairs_that_overlap_a_better_one_are_suppressed(subject: list[float], object_: list[float], left: int) -> None:
    scene = image([(0, 1, WASH)], [(PERSON, THING, BICYCLE, {WASH: 0.9}), (subject, object_, BICYCLE, {WASH: 0.8})])
    assert evaluate_hico([scene], SUPPRESSING).per_class.detections.tolist() == [left]


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
