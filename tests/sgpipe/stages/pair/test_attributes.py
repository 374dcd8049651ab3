"""What captions say of objects: whose attributes they are."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.recipe import PairConfig, ParseConfig
from sgpipe.records import Attribute, Box, Caption, Record
from sgpipe.stages.pair import PairStage
from sgpipe.stages.parse.stage import ParseStage

PARSE, PLAIN = ParseStage(ParseConfig()), ParseStage(ParseConfig(attributes=False))
PAIR = PairStage(PairConfig(), "coco", [])


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    for stage in (PARSE, PLAIN, PAIR):
        stage.setup()


def record(classes: list[str], *captions: str | Caption) -> Record:
    boxes = [Box(name, 1, (10.0 * place, 0.0, 8.0, 8.0)) for place, name in enumerate(classes)]
    texts = [each if isinstance(each, Caption) else Caption(each) for each in captions]
    return Record("1", "coco", "val", "1.jpg", 640, 480, boxes, texts)


def described(made: Record, parse: ParseStage = PARSE) -> list[list[tuple[str, int | None]]]:
    [found] = PAIR(parse([made]))
    assert found.mentions is None
    return [[(each.name, each.caption) for each in box.attributes] for box in found.objects]


@pytest.mark.parametrize(
    ("classes", "captions", "expected"),
    [
        (["car", "dog"], ["a car", "a red car near a dog"], [[("red", 1)], []]),
        (["dog", "dog"], ["two brown dogs"], [[("two", 0), ("brown", 0)]] * 2),
        (["dog", "dog", "dog"], ["two brown dogs"], [[], [], []]),
        (["dog", "dog"], ["three dogs", "a brown dog", "brown dogs"], [[], []]),
        (["person"], ["a tall man and a young woman", "an old man"], [[("old", 1)]]),
        (["person", "cup"], ["a man with a cold beer", "a white mug"], [[], [("white", 1)]]),
        (["car"], ["a red truck"], [[]]),
        (["car"], ["a red car", "a red car"], [[("red", 0), ("red", 1)]]),
        ([], ["a red car"], []),
    ],
)
def test_attributes_are_of_the_only_objects_that_a_caption_can_mean(
    classes: list[str], captions: list[str], expected: list[list[tuple[str, int]]]
) -> None:
    assert described(record(classes, *captions)) == expected


def test_a_crowd_is_never_described() -> None:
    made = record(["sheep"], "white sheep")
    made.objects[0].iscrowd = True
    assert described(made) == [[]]


def test_a_grounded_box_is_described_by_its_phrase_beside_others_of_its_class() -> None:
    made = record(["dog", "dog", "bicycle"], "a small puppy and a big dog", "three wet puppies")
    made.objects[1] = replace(made.objects[1], origin="grounded", phrase="puppy, pup")
    assert described(made) == [[], [("small", 0)], []]


def test_a_loose_word_describes_only_the_box_that_it_was_grounded_by() -> None:
    made = record(["bottle", "beer"], "a cold beer")
    assert described(made) == [[], []]
    made.objects[1] = replace(made.objects[1], origin="grounded", phrase="beer")
    assert described(made) == [[], [("cold", 0)]]


def test_a_caption_of_a_region_describes_its_boxes_only() -> None:
    made = record(["car", "car"], Caption("a red car", "box", [1]), Caption("a blue car", "box", [0]))
    assert described(made) == [[("blue", 1)], [("red", 0)]]


def test_annotated_attributes_stay_and_those_of_captions_are_replaced() -> None:
    made = record(["car"], "a red car")
    made.objects[0].attributes = [Attribute("shiny"), Attribute("green", 3)]
    assert described(made) == [[("shiny", None), ("red", 0)]]


def test_attributes_of_rows_that_are_taken_over_stay() -> None:
    made = record(["car"], "a blue car")
    made.objects[0].attributes = [Attribute("red", 0)]
    [found] = PAIR([made])
    assert found.objects[0].attributes == [Attribute("red", 0)]


CAPTIONS = ("a red car next to two dogs", "two brown dogs", "a big dog", "a tall man with a small dog", "a skier", "")


@given(
    st.lists(st.sampled_from(["car", "dog", "person", "skis"]), max_size=6),
    st.lists(st.sampled_from(CAPTIONS), max_size=4),
)
def test_attributes_change_nothing_else(classes: list[str], captions: list[str]) -> None:
    with_attributes, without = record(classes, *captions), record(classes, *captions)
    given_names = described(with_attributes)
    assert described(without, PLAIN) == [[]] * len(classes)
    assert (with_attributes.triplets, with_attributes.pairs) == (without.triplets, without.pairs)
    for names, name in zip(given_names, classes, strict=True):
        assert not names or classes.count(name) == 1 or (name, classes.count(name)) == ("dog", 2)
