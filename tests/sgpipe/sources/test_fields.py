import math

import pytest

from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError


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
