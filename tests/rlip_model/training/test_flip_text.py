"""Left and right in texts of flipped images."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.training.flip_text import flip_text

SWAPPED = [
    ("left", "right"),
    ("left of", "right of"),
    ("to the left of", "to the right of"),
    ("to left of", "to right of"),
    ("left to", "right to"),
    ("on left", "on right"),
    ("on left side of", "on right side of"),
    ("on the left of", "on the right of"),
    ("on far left has", "on far right has"),
    ("on the left in front of", "on the right in front of"),
    ("on left wearing", "on right wearing"),
    ("left side of", "right side of"),
    ("is left of", "is right of"),
    ("upper left corner of", "upper right corner of"),
    ("turning left at", "turning right at"),
    ("facing left in", "facing right in"),
    ("has left hand on", "has right hand on"),
    ("left hand", "right hand"),
    ("right front wheel", "left front wheel"),
    ("man's left shoe", "man's right shoe"),
    ("Left-hand glove", "Right-hand glove"),
    ("LEFT_OF", "RIGHT_OF"),
    ("leftmost  zebra", "rightmost  zebra"),
    ("between left and right", "between right and left"),
]

UNCHANGED = [
    "right next to",
    "standing right next to",
    "right behind",
    "right above",
    "right in front of",
    "right on edge of",
    "ends right by",
    "left behind",
    "left out on",
    "left on",
    "left a",
    "left by",
    "has left",
    "has left the",
    "has just left",
    "brightly lit",
    "copyright",
    "missing objects",
    "",
]


@pytest.mark.parametrize(("text", "expected"), SWAPPED)
def test_sides_are_swapped_both_ways(text: str, expected: str) -> None:
    assert flip_text(text) == expected
    assert flip_text(expected) == text


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_is_no_side_stays(text: str) -> None:
    assert flip_text(text) == text


WORDS = sorted({word for text in (*UNCHANGED, *(pair[0] for pair in SWAPPED)) for word in text.split()})


@given(st.lists(st.sampled_from([*WORDS, "right", "Left"])).map(" ".join) | st.text())
def test_the_mirror_of_the_mirror_is_the_text(text: str) -> None:
    assert flip_text(flip_text(text)) == text
