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
from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage
from rlip_model.evaluation.suppression import PairSuppression
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, image

BICYCLE, HOLD, RIDE, WASH, EAT = 1, 36, 76, 111, 24
RIGHT = (PERSON, THING, BICYCLE, {RIDE: 0.9})
WRONG = (FAR, FAR, BICYCLE, {RIDE: 0.8})


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


def test_lines_overlap_nothing() -> None:
    line = [50, 50, 50, 99]
    scene = image([(0, 1, RIDE)], [(PERSON, line, BICYCLE, {RIDE: 0.9})], boxes=[PERSON, line])
    assert precision(scene) == 0


def test_another_class_is_another_thing() -> None:
    assert precision(rides((PERSON, THING, BICYCLE + 1, {RIDE: 0.9}))) == 0
    assert precision(image([(0, 1, WASH)], [RIGHT])) == 0


def test_what_is_scored_0_is_a_detection_if_the_hundred_best_reach_that_far() -> None:
    scores = evaluate_hico([image([(0, 1, RIDE), (0, 1, WASH)], [(PERSON, THING, BICYCLE, {HOLD: 0.9})])]).per_class
    assert scores.true_positives.tolist() == [RIDE < 100, WASH < 100] == [True, False]


def test_the_second_detection_of_one_is_wrong() -> None:
    worse = (PERSON, THING, BICYCLE, {RIDE: 0.7})
    missed = image([(0, 1, RIDE)])
    once, twice = (evaluate_hico([scene, missed]) for scene in (rides(RIGHT), rides(RIGHT, worse)))
    assert once.per_class.true_positives.tolist() == twice.per_class.true_positives.tolist() == [1]
    assert twice.per_class.of_class(CLASSES.number(0, BICYCLE, RIDE))[1].tolist() == [True, False]


def test_no_second_choice_if_the_best_is_taken() -> None:
    boxes, labels = [PERSON, THING, [50, 52, 59, 61]], [0, BICYCLE, BICYCLE]
    both = image(
        [(0, 1, RIDE), (0, 2, RIDE)],
        [RIGHT, (PERSON, [50, 50, 59, 58], BICYCLE, {RIDE: 0.8})],
        boxes=boxes,
        labels=labels,
    )
    assert evaluate_hico([both]).per_class.true_positives.tolist() == [1]


def test_equal_annotations_are_found_once_and_count_twice() -> None:
    scores = evaluate_hico([image([(0, 1, RIDE), (0, 1, RIDE)], [RIGHT, RIGHT])]).per_class
    assert (scores.targets.tolist(), scores.true_positives.tolist()) == ([2], [1])


def test_equal_boxes_annotated_twice_are_two() -> None:
    """But the first is always the best choice, so that only it can be found."""
    twice = image([(0, 1, RIDE), (0, 2, RIDE)], [RIGHT, RIGHT], boxes=[PERSON, THING, THING], labels=[0, 1, 1])
    scores = evaluate_hico([twice]).per_class
    assert (scores.targets.tolist(), scores.true_positives.tolist()) == ([2], [1])


def test_images_without_boxes_are_left_out_and_those_without_triplets_are_not() -> None:
    empty = image([], [WRONG], boxes=(), labels=())
    assert precision(rides((PERSON, THING, BICYCLE, {RIDE: 0.5})), empty) == pytest.approx(1)
    assert precision(rides((PERSON, THING, BICYCLE, {RIDE: 0.5})), image([], [WRONG])) == pytest.approx(0.5)


def test_images_without_detections_count_as_missed() -> None:
    assert precision(rides(RIGHT), rides()) == pytest.approx(6 / 11)
    assert precision(rides()) == 0


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


def test_equal_scores_stay_in_order() -> None:
    wrong = (FAR, FAR, BICYCLE, {RIDE: 0.9})
    assert precision(rides(RIGHT, wrong)) == pytest.approx(1)
    assert precision(rides(wrong, RIGHT)) == pytest.approx(0.5)
    assert precision(rides(RIGHT), image([], [wrong])) == pytest.approx(1)
    assert precision(image([], [wrong]), rides(RIGHT)) == pytest.approx(0.5)


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


def test_other_verbs_objects_and_images_suppress_nothing() -> None:
    found = [RIGHT, (PERSON, THING, BICYCLE, {WASH: 0.8}), (PERSON, THING, BICYCLE + 1, {RIDE: 0.7})]
    boxes, labels = [PERSON, THING, THING], [0, BICYCLE, BICYCLE + 1]
    scene = image([(0, 1, RIDE), (0, 1, WASH), (0, 2, RIDE)], found, boxes=boxes, labels=labels)
    assert evaluate_hico([scene, scene], SUPPRESSING).per_class.true_positives.tolist() == [2, 2, 2]


def test_known_object() -> None:
    elsewhere = image([], [WRONG], boxes=[PERSON, THING], labels=[0, 2])
    scene = rides((PERSON, THING, BICYCLE, {RIDE: 0.5}))
    assert precision(scene, elsewhere) == pytest.approx(0.5)
    assert precision(scene, elsewhere, settings=HicoSettings(known_object=True)) == pytest.approx(1)
    here = image([], [WRONG])
    assert precision(scene, here, settings=HicoSettings(known_object=True)) == pytest.approx(0.5)


def test_blocks_do_not_show() -> None:
    scenes = [rides(RIGHT, WRONG), rides(WRONG), image([(0, 1, HOLD)], [RIGHT])] * 50
    many = evaluate_hico(scenes).per_class
    one = evaluate_hico(scenes[:3]).per_class
    np.testing.assert_array_equal(many.true_positives, one.true_positives * 50)
    np.testing.assert_array_equal(many.detections, one.detections * 50)


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


def test_wrong_input_is_told() -> None:
    with pytest.raises(EvaluationError, match=r"a\.jpg: predicted object label is 80"):
        evaluate_hico([rides((PERSON, THING, 80, {}))])
