"""Adjectives, states, materials and numbers of the things that captions name."""

from collections.abc import Callable

import pytest

from sgpipe.recipe import ParseConfig
from sgpipe.records import Mention
from sgpipe.stages.parse.stage import CaptionParser

Read = Callable[[str], list[Mention]]


@pytest.fixture(scope="module", params=["rules", "learned"])
def read(request: pytest.FixtureRequest) -> Read:
    parser = CaptionParser(ParseConfig(parser=request.param))
    return lambda caption: parser.read([caption])[0][1]


CAPTIONS = {
    "a red car next to two dogs": "car: red; dogs: two",
    "two small brown dogs and a black and white cat on a wooden bench": (
        "dogs: two, small, brown; cat: black, white; bench: wooden"
    ),
    "3 yellow umbrellas": "umbrellas: three, yellow",
    "a girl wearing a red , green and black shirt": "girl: ; shirt: red, green, black",
    "the dog is brown and wet": "dog: brown, wet",
    "a car that is red": "car: red",
    "the sky is blue with white clouds": "sky: blue; clouds: white",
    "the bus is full of people": "bus: ; people: ",
    "a cat that is not happy": "cat: ",
    "a man in a light blue shirt": "man: ; shirt: light blue",
    "a smiling woman near parked cars and a brick building": "woman: smiling; cars: parked; building: brick",
    "a black haired boy": "boy: ",
    "a hot dog and a teddy bear": "hot dog: ; teddy bear: ",
    "several other people": "people: ",
    "a large slice of pizza": "pizza: ",
    "a group of young children": "children: young",
    "she is tall": "",
    "": "",
}


@pytest.mark.parametrize(("caption", "expected"), CAPTIONS.items())
def test_what_a_caption_says_of_things(read: Read, caption: str, expected: str) -> None:
    found = "; ".join(f"{each.phrase}: {', '.join(each.attributes)}" for each in read(caption))
    assert found == expected


def test_mentions_have_heads_and_the_number_of_their_caption() -> None:
    [_, (_, [mention])] = CaptionParser().read(["a cat", "Two Fire Hydrants."])
    assert mention == Mention("fire hydrants", "hydrant", ("two",), 1)


def test_nothing_is_mentioned_without_the_setting() -> None:
    [(triplets, mentions)] = CaptionParser(ParseConfig(attributes=False)).read(["a red car near two dogs"])
    assert (len(triplets), mentions) == (1, [])
