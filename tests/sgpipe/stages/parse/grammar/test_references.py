"""Pronouns and the nouns they refer to."""

import pytest


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a plate with a knife on it", [("knife", "on", "plate")]),
        ("the couch has a blanket on it", [("blanket", "on", "couch")]),
        ("pots with flowers in them", [("flowers", "in", "pots")]),
        ("a pole with a sign attached to it", [("sign", "attached to", "pole")]),
        (
            "girls posing with donuts with bites in them",
            [("bites", "in", "donuts"), ("girls", "posing with", "donuts")],
        ),
        ("he is riding a horse", [("man", "riding", "horse")]),
        ("she is on a bus", [("woman", "on", "bus")]),
        ("they are playing baseball", [("people", "playing", "baseball")]),
        ("a girl smiling while she eats a donut", [("girl", "eats", "donut")]),
        ("a bird with a fish in its beak", [("bird", "has", "beak"), ("bird", "with", "fish"), ("fish", "in", "beak")]),
        ("it is on the table", []),
    ],
)
def test_pronouns(triples, caption, expected):
    assert triples(caption) == expected
