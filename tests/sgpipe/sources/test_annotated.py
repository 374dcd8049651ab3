import math
from collections import Counter

import pytest

from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources import fields
from sgpipe.sources.annotated import clip_objects
from sgpipe.sources.fields import FieldError


def record(*boxes, relations=()) -> Record:
    objects = [Box("dog", 1, box) for box in boxes]
    return Record("1", "d", "val", "1.jpg", 100, 50, objects=objects, relations=[Relation(*r) for r in relations])


def test_relations_follow_their_boxes():
    ends = [(0, 1, "a"), (0, 2, "b"), (1, 2, "c"), (2, 2, "d")]
    image = record((0, 0, 5, 5), (200, 0, 5, 5), (1, 1, 5, 5), relations=ends)
    problems: Counter[str] = Counter()
    clip_objects(image, problems)
    assert image.relations == [Relation(0, 1, "b"), Relation(1, 1, "d")]
    assert +problems == {"degenerate": 1, "relations_of_dropped_boxes": 2}


def test_the_box_of_a_missing_object_is_kept():
    image = record((0, 0, 5, 5), relations=[(0, 1, "smile")])
    image.objects.append(Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0)))
    clip_objects(image, Counter())
    assert image.objects[1].is_nothing
    assert image.relations == [Relation(0, 1, "smile")]


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("a7", "a7"), (7.5, None), (None, None), ([7], None)]
)
def test_ids_are_texts(value, text):
    assert fields.identifier(value) == text


def test_errors_name_the_field():
    assert fields.integer({"n": "12"}, "n") == 12
    assert fields.text({"t": "a \ud800"}, "t") == "a ?"
    assert fields.corners([1, 2, 4, 8.5]) == (1, 2, 3, 6.5)
    for item in ({}, None, ["n"], "n"):
        with pytest.raises(FieldError, match="'n' is missing"):
            fields.required(item, "n")
    for value in (1.5, "x", None, 2**40, math.inf):
        with pytest.raises(FieldError, match="'n' is"):
            fields.integer({"n": value}, "n")
    with pytest.raises(FieldError, match="'t' is 3"):
        fields.text({"t": 3}, "t")
    for value in ([1, 2, 3], [1, 2, 3, "x"], "1234", None, [1, 2, 3, 10**400]):
        with pytest.raises(FieldError, match="expected 4 numbers"):
            fields.numbers(value, 4)
