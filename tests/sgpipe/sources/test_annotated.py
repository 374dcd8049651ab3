import math
from collections import Counter

import pytest

from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import (
    FieldError,
    clip_objects,
    integer_field,
    parse_id,
    parse_integer,
    parse_numbers,
    replace_surrogates,
    required_field,
    text_field,
    xyxy_to_xywh,
)


def record(*boxes, relations=()) -> Record:
    objects = [Box("dog", 1, box) for box in boxes]
    return Record("1", "d", "val", "1.jpg", 100, 50, objects=objects, relations=[Relation(*r) for r in relations])


def test_relations_follow_their_boxes():
    image = record(
        (0, 0, 5, 5), (200, 0, 5, 5), (1, 1, 5, 5), relations=[(0, 1, "a"), (0, 2, "b"), (1, 2, "c"), (2, 2, "d")]
    )
    problems: Counter[str] = Counter()
    clip_objects(image, problems)
    assert image.relations == [Relation(0, 1, "b"), Relation(1, 1, "d")]
    assert problems == {"degenerate": 1, "relations_of_dropped_boxes": 2}


def test_the_box_of_a_missing_object_is_kept():
    image = record((0, 0, 5, 5), relations=[(0, 1, "smile")])
    image.objects.append(Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0)))
    clip_objects(image, Counter())
    assert image.objects[1].is_nothing
    assert image.relations == [Relation(0, 1, "smile")]
    assert not image.objects[0].is_nothing


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("a7", "a7"), (7.5, None), (None, None), ([7], None)]
)
def test_parse_id(value, text):
    assert parse_id(value) == text


@pytest.mark.parametrize("value", [1.5, "x", None, 2**40, math.inf])
def test_values_that_are_not_integers_are_refused(value):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        parse_integer(value)
    with pytest.raises(FieldError, match=r"'n' is .*expected an integer"):
        integer_field({"n": value}, "n")


def test_errors_name_the_field():
    assert integer_field({"n": "12"}, "n") == 12
    assert text_field({"t": "a \ud800"}, "t") == replace_surrogates("a \ud800") == "a ?"
    assert xyxy_to_xywh([1, 2, 4, 8.5]) == (1, 2, 3, 6.5)
    for item in ({}, None, ["n"], "n"):
        with pytest.raises(FieldError, match="'n' is missing"):
            required_field(item, "n")
    with pytest.raises(FieldError, match="expected text"):
        text_field({"t": 3}, "t")
    for value in ([1, 2, 3], [1, 2, 3, "x"], "1234", None, [1, 2, 3, 10**400]):
        with pytest.raises(FieldError, match="expected 4 numbers"):
            parse_numbers(value, 4)
