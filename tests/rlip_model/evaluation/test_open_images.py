import math

import pytest

from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage
from rlip_model.evaluation.open_images import OpenImagesScores, OpenImagesSettings, PhraseOrder, evaluate_open_images
from rlip_model.evaluation.suppression import PairSuppression
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, Found, image

AT, HOLDS, WEARS = 0, 1, 2
RIGHT = (PERSON, THING, 1, {HOLDS: 0.9})


def scene(true: list[tuple[int, int, int]], found: list[Found], **boxes: list) -> EvaluationImage:
    return image(true, found, num_predicates=3, **boxes)


def scores(
    *images: EvaluationImage, suppression: PairSuppression | None = None, order: PhraseOrder = "published"
) -> OpenImagesScores:
    return evaluate_open_images(images, OpenImagesSettings(6, 3, suppression, order))


def test_found() -> None:
    found = scores(scene([(0, 1, HOLDS)], [RIGHT]))
    assert all(value == pytest.approx(1) for value in found.summary().values())


def test_a_phrase_can_be_right_where_its_boxes_are_not() -> None:
    found = scores(scene([(0, 1, HOLDS)], [([0, 0, 3, 3], [56, 56, 59, 59], 1, {HOLDS: 0.9})]))
    assert found.relations[100].true_positives.tolist() == [0]
    assert found.phrases[100].true_positives.tolist() == [1]


@pytest.mark.parametrize(("bottom", "hits"), [(29, 1), (28, 0)])
def test_phrases_overlap_by_half(bottom: float, hits: int) -> None:
    boxes = [PERSON, [0, 50, 59, 59]]
    found = scores(scene([(0, 1, HOLDS)], [(PERSON, [0, 20, 59, bottom], 1, {HOLDS: 0.9})], boxes=boxes))
    assert found.phrases[100].true_positives.tolist() == [hits]


def test_images_without_boxes_have_wrong_phrases_but_no_wrong_relations() -> None:
    empty = scene([], [(PERSON, THING, 1, {HOLDS: 0.99})], boxes=[], labels=[])
    found = scores(scene([(0, 1, HOLDS)], [RIGHT]), empty)
    assert found.relations[100].detections.tolist() == [1]
    assert found.phrases[100].detections.tolist() == [2]
    assert found.phrases[100].mean() == pytest.approx(0.5)


def test_recall_of_phrases_leaves_out_what_was_never_detected() -> None:
    other = scene([(0, 1, WEARS)], [(PERSON, THING, 3, {AT: 0.2})], labels=[4, 5])
    found = scores(scene([(0, 1, HOLDS)], [RIGHT]), other)
    assert found.recall(50) == 0.5
    assert found.phrase_recall(50) == 1


def test_the_weighted_score() -> None:
    missed = scene([(0, 1, WEARS)] * 3, [], labels=[0, 2])
    found = scores(scene([(0, 1, HOLDS)], [RIGHT]), missed)
    assert found.weighted_score() == pytest.approx(0.2 / 4 + 0.4 / 4 + 0.4 / 4)
    assert found.weighted_score(by_frequency=False) == pytest.approx(0.2 / 4 + 0.4 / 2 + 0.4 / 2)


def test_the_fifty_best_are_half_of_the_hundred_best() -> None:
    others = [(FAR, FAR, 2, {AT: 0.5 + row / 1000}) for row in range(50)]
    found = scores(scene([(0, 1, HOLDS)], [*others, (PERSON, THING, 1, {HOLDS: 0.1})]))
    assert found.relations[50].true_positives.tolist() == found.phrases[50].true_positives.tolist() == [0]
    assert found.relations[100].true_positives.tolist() == found.phrases[100].true_positives.tolist() == [1]


def test_suppression_takes_pairs_first_and_then_phrases() -> None:
    """Of three pairs of one class the second is like the first; the third only has the same hull."""
    like = (PERSON, [50, 50, 59, 58], 1, {HOLDS: 0.8})
    same_hull = ([0, 0, 29, 29], [30, 30, 59, 59], 1, {HOLDS: 0.7})
    images = [scene([(0, 1, HOLDS)], [RIGHT, like, same_hull])]
    assert scores(*images).phrases[100].detections.tolist() == [3]
    left = scores(*images, suppression=PairSuppression())
    assert left.relations[100].detections.tolist() == [2]
    assert left.phrases[100].detections.tolist() == [1]


@pytest.mark.parametrize(("order", "hits"), [("repaired", [1, 1]), ("published", [2, 0])])
def test_the_published_slip_looks_phrases_up_in_the_place_of_others(order: PhraseOrder, hits: list[int]) -> None:
    """By score: class 1 right, class 2 right, class 1 wrong; by class the last two change places."""
    boxes, labels = [PERSON, THING, FAR, [300, 300, 330, 330]], [0, 1, 0, 2]
    found = [
        RIGHT,
        (FAR, boxes[3], 2, {WEARS: 0.8}),
        ([100, 100, 120, 120], [140, 140, 160, 160], 1, {HOLDS: 0.7}),
    ]
    images = [scene([(0, 1, HOLDS), (2, 3, WEARS)], found, boxes=boxes, labels=labels)]
    slipped = scores(*images, suppression=PairSuppression(), order=order)
    assert slipped.phrases[100].true_positives.tolist() == hits
    assert slipped.relations[100].true_positives.tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    assert all(math.isnan(value) for value in scores().summary().values())


def test_wrong_input_is_told() -> None:
    with pytest.raises(EvaluationError, match="predicted object label is 6"):
        scores(scene([], [(PERSON, THING, 6, {})]))
