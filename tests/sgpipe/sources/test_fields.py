import math

import pytest

from sgpipe.sources.annotated import (
    FieldError,
    integer_field,
    parse_id,
    parse_integer,
    parse_numbers,
    parse_side,
    replace_surrogates,
    required_field,
    text_field,
    xyxy_to_xywh,
)


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("a7", "a7"), (7.5, None), (None, None), ([7], None)]
)
def test_ids(value, text):
    assert parse_id(value) == text


@pytest.mark.parametrize(("value", "length"), [(640, 640), ("640", 640), (0, 0), (-3, 0), (math.nan, 0), (None, 0)])
def test_sides(value, length):
    assert parse_side(value) == length


@pytest.mark.parametrize("value", [1.5, "x", None, 2**40, math.inf])
def test_no_whole_number(value):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        parse_integer(value)
    with pytest.raises(FieldError, match=r"'n' is .*expected an integer"):
        integer_field({"n": value}, "n")


def test_fields_are_named_in_errors():
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
