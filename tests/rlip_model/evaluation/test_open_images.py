import math

import pytest

from rlip_model.evaluation.inputs import EvaluationImage
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


def test_the_weighted_score() -> None:
    missed = scene([(0, 1, WEARS)] * 3, [], labels=[0, 2])
    found = scores(scene([(0, 1, HOLDS)], [RIGHT]), missed)
    assert found.weighted_score() == pytest.approx(0.2 / 4 + 0.4 / 4 + 0.4 / 4)
    assert found.weighted_score(by_frequency=False) == pytest.approx(0.2 / 4 + 0.4 / 2 + 0.4 / 2)


@pytest.mark.parametrize(("order", "hits"), [("repaired", [1, 1]), ("published", [2, 0])])
def test_the_published_slip_looks_phrases_up_in_the_place_of_others(order: PhraseOrder, hits: list[int]) -> None:
    """By score: class 1 right, class 2 right, class 1 wrong; by class the last two change places."""
    boxes, labels = [PERSON, THING, FAR, [300, 300, 330, 330]], [0, 1, 0, 2]
    found = [RIGHT, (FAR, boxes[3], 2, {WEARS: 0.8}), ([100, 100, 120, 120], [140, 140, 160, 160], 1, {HOLDS: 0.7})]
    images = [scene([(0, 1, HOLDS), (2, 3, WEARS)], found, boxes=boxes, labels=labels)]
    slipped = scores(*images, suppression=PairSuppression(), order=order)
    assert slipped.phrases[100].true_positives.tolist() == hits
    assert slipped.relations[100].true_positives.tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
def test_nothing_is_no_number() -> None:
    assert all(math.isnan(value) for value in scores().summary().values())
