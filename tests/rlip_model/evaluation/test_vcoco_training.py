import numpy as np
import pytest

from rlip_model.evaluation.inputs import Image
from rlip_model.evaluation.vcoco_training import VERBS, VcocoTrainingScores, evaluate_vcoco_training
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, Found, image

EVERYTHING = np.ones((len(VERBS), 80))
HOLD, STAND, SNOWBOARD, NO_OBJECT = 0, 1, 28, 80


def scene(true: list[tuple[int, int, int]], found: list[Found], **boxes: list) -> Image:
    return image(true, found, num_predicates=len(VERBS), **boxes)


def scores(*images: Image, possible: np.ndarray = EVERYTHING) -> VcocoTrainingScores:
    return evaluate_vcoco_training(images, possible)


@pytest.mark.parametrize("label", [1, 33, NO_OBJECT])
def test_what_has_no_object_is_found_by_its_person(label: int) -> None:
    found = scores(scene([(0, -1, STAND)], [(PERSON, FAR, label, {STAND: 0.9})]))
    assert found.summary()["AP_stand"] == pytest.approx(1)


def test_what_has_an_object_needs_it() -> None:
    assert scores(scene([(0, 1, HOLD)], [(PERSON, FAR, 1, {HOLD: 0.9})])).summary()["AP_hold_obj"] == 0
    assert scores(scene([(0, 1, HOLD)], [(PERSON, THING, 2, {HOLD: 0.9})])).summary()["AP_hold_obj"] == 0
    assert scores(scene([(0, 1, HOLD)], [(PERSON, THING, 1, {HOLD: 0.9})])).summary()["AP_hold_obj"] == pytest.approx(1)


def test_classes_are_verbs_whatever_the_objects() -> None:
    labels = ([0, 1], [0, 2])
    images = [scene([(0, 1, HOLD)], [(PERSON, THING, own[1], {HOLD: 0.9})], labels=own) for own in labels]
    assert scores(*images).per_class.truths.tolist() == [2]


def test_images_without_boxes_have_wrong_detections() -> None:
    empty = scene([], [(PERSON, THING, 1, {HOLD: 0.99})], boxes=[], labels=[])
    right = scene([(0, 1, HOLD)], [(PERSON, THING, 1, {HOLD: 0.9})])
    assert scores(right, empty).summary()["AP_hold_obj"] == pytest.approx(0.5)


def test_no_object_is_possible_for_every_verb() -> None:
    found = [(PERSON, FAR, NO_OBJECT, {SNOWBOARD: 0.9}), (PERSON, FAR, 5, {SNOWBOARD: 0.9})]
    nothing = np.zeros_like(EVERYTHING)
    assert scores(scene([(0, -1, SNOWBOARD)], found), possible=nothing).per_class.scores.tolist() == pytest.approx(
        [0.9, 0]
    )


def test_the_mean_of_the_thesis_counts_absent_verbs_as_0() -> None:
    images = [scene([(0, 1, HOLD), (0, -1, STAND)], [(PERSON, THING, 1, {HOLD: 0.9, STAND: 0.9})])]
    summary = scores(*images).summary()
    assert summary["mAP_all"] == pytest.approx(1)
    assert summary["mAP_thesis"] == pytest.approx(1 / 24)
