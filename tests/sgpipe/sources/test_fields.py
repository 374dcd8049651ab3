import math

import pytest

from sgpipe.sources.annotated import (
    FieldError,
    as_id,
    clean,
    integer,
    numbers,
    required,
    side,
    whole,
    word,
    xyxy_to_xywh,
)


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("a7", "a7"), (7.5, None), (None, None), ([7], None)]
)
def test_ids(value, text):
    assert as_id(value) == text


@pytest.mark.parametrize(("value", "length"), [(640, 640), ("640", 640), (0, 0), (-3, 0), (math.nan, 0), (None, 0)])
def test_sides(value, length):
    assert side(value) == length


@pytest.mark.parametrize("value", [1.5, "x", None, 2**40, math.inf])
def test_no_whole_number(value):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        integer(value)
    with pytest.raises(FieldError, match=r"'n' is .*expected a whole number"):
        whole({"n": value}, "n")


def test_fields_are_named_in_errors():
    assert whole({"n": "12"}, "n") == 12
    assert word({"t": "a \ud800"}, "t") == clean("a \ud800") == "a ?"
    assert xyxy_to_xywh([1, 2, 4, 8.5]) == (1, 2, 3, 6.5)
    for item in ({}, None, ["n"], "n"):
        with pytest.raises(FieldError, match="there is no 'n'"):
            required(item, "n")
    with pytest.raises(FieldError, match="expected a text"):
        word({"t": 3}, "t")
    for value in ([1, 2, 3], [1, 2, 3, "x"], "1234", None, [1, 2, 3, 10**400]):
        with pytest.raises(FieldError, match="are not 4 numbers"):
            numbers(value, 4)
