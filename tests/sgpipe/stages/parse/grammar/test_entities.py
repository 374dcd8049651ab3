"""Names and heads of noun phrases."""

import pytest

from sgpipe.stages.parse.grammar.relations import coordinated, phrase, singular
from sgpipe.stages.parse.grammar.tree import Tree


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("men", "man"),
        ("knives", "knife"),
        ("leaves", "leaf"),
        ("buses", "bus"),
        ("bus", "bus"),
        ("dress", "dress"),
        ("glass", "glass"),
        ("pants", "pants"),
        ("sunglasses", "sunglasses"),
        ("scissors", "scissors"),
        ("shoes", "shoe"),
        ("tennis", "tennis"),
        ("cookies", "cookie"),
        ("people", "people"),
        ("skis", "ski"),
        ("dresses", "dress"),
    ],
)
def test_singular(plural, expected):
    assert singular(plural) == expected


def named(*words: str, tags: str = "", deps: str = "") -> Tree:
    """A noun phrase whose last word is the head."""
    last = len(words) - 1
    labels = deps.split() or ["compound"] * last
    return Tree.build(list(words), tags.split() or ["NN"] * len(words), [*labels, "ROOT"], [last] * len(words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fire", "hydrants"), "fire hydrants"),
        (("stop", "sign"), "stop sign"),
        (("dining", "room", "table"), "dining room table"),
        (("wood", "chair"), "chair"),
        (("metal", "stop", "sign"), "stop sign"),
        (("hot", "dogs"), "hot dogs"),
        (("left", "hand"), "left hand"),
        (("left", "wall"), "left wall"),
        (("orange", "cat"), "cat"),
    ],
)
def test_names_keep_compounds_and_drop_attributes(words, expected):
    tree = named(*words)
    assert phrase(tree, len(words) - 1) == expected


def test_a_long_coordination_needs_no_recursion():
    size = 3000
    heads = [max(0, index - 1) for index in range(size)]
    tree = Tree.build(["dog"] * size, ["NN"] * size, ["ROOT"] + ["conj"] * (size - 1), heads)
    assert coordinated(tree, 0) == list(range(size))
