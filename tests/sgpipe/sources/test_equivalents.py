"""Which predicates say the same of two boxes."""

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.records import Pair, Relation
from sgpipe.sources.vocabulary import Equivalents, load_equivalents

PACKAGED = load_equivalents(None)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("near", "next to"), ("Is Holding", "holds"), ("on", "on the top of"), ("to the left of", "left of"),
        ("sitting_on", "sits on"), ("inside of", "in"), ("is being worn by", "worn by"),
    ],
)  # fmt: skip
def test_texts_that_say_the_same(first, second):
    assert PACKAGED.key(3, first, 5) == PACKAGED.key(3, second, 5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("holding", "held by"), ("left of", "to the right of"), ("riding", "is ridden by"), ("near", "next to"),
        ("in front of", "behind"), ("above", "beneath"), ("covering", "covered in"), ("has", "belonging to"),
    ],
)  # fmt: skip
def test_texts_that_say_the_same_from_the_other_end(first, second):
    assert PACKAGED.key(3, first, 5) == PACKAGED.key(5, second, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [("holding", "holding"), ("on", "under"), ("behind", "behind"), ("parked by", "next to"), ("", "on")],
)
def test_texts_that_do_not(first, second):
    assert PACKAGED.key(3, first, 5) not in (
        PACKAGED.key(5, second, 3),
        *[PACKAGED.key(3, second, 5)] * (first != second),
    )


def test_pairs_lose_what_is_known():
    known = [Relation(0, 1, "holding"), Relation(2, 1, "next to"), Relation(2, 2, "near")]
    pairs = [
        Pair(0, 1, ["holds", "riding"]), Pair(1, 0, ["held by", "holding"]), Pair(1, 2, ["beside"]), Pair(2, 1, ["on"]),
    ]  # fmt: skip
    left = PACKAGED.without_known(pairs, known)
    assert left == [Pair(0, 1, ["riding"]), Pair(1, 0, ["holding"]), Pair(2, 1, ["on"])]


WORDS = [f"to {letter}" for letter in "bcdefg"]
TABLES = st.fixed_dictionaries(
    {
        kind: st.dictionaries(
            st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=2), max_size=4
        )
        for kind in ("synonyms", "inverses")
    }
)


def reached(table: dict, word: str, swapped: bool = False) -> set[tuple[str, bool]]:
    """Everything that says the same as a word, by walking over the statements of a table."""
    edges = [
        (name, text, kind == "inverses") for kind in table for name, texts in table[kind].items() for text in texts
    ]
    found, waiting = {(word, swapped)}, [(word, swapped)]
    while waiting:
        at, turned = waiting.pop()
        for name, text, inverse in edges:
            for here, there in ((name, text), (text, name)):
                if here == at and (step := (there, turned ^ inverse)) not in found:
                    found.add(step)
                    waiting.append(step)
    return found


@given(TABLES)
def test_tables_are_followed_to_their_ends_or_refused(table):
    own_inverse = {name for name, texts in table["inverses"].items() if name in texts}
    stated: dict[str, set[str]] = {}
    for name, texts in table["synonyms"].items():
        for text in texts:
            stated.setdefault(text, set()).add(name)
    without = {**table, "inverses": {n: [t for t in texts if t != n] for n, texts in table["inverses"].items()}}
    contradicts = any(len(names) > 1 for names in stated.values())
    contradicts |= any((word, True) in reached(without, word) for word in WORDS)
    contradicts |= any(swapped for word in own_inverse for _, swapped in reached(without, word))
    if contradicts:
        with pytest.raises(UserError, match="remove one"):
            Equivalents(table)
        return
    found = Equivalents(table)
    for (first, second), swapped in product(product(WORDS, WORDS), (False, True)):
        ends = (5, 3) if swapped else (3, 5)
        assert (found.key(3, first, 5) == found.key(ends[0], second, ends[1])) == (
            (second, swapped) in reached(table, first)
        )


def test_a_table_of_ones_own_replaces_what_the_packaged_one_says_of_its_texts(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("synonyms: {made by: [by], next to: ['!near']}\ninverses: {left of: [port of]}\n")
    own = load_equivalents(file)
    assert own.key(0, "by", 1) == own.key(0, "made by", 1) != own.key(0, "next to", 1) == own.key(1, "beside", 0)
    assert own.key(0, "near", 1) not in (own.key(0, "next to", 1), own.key(1, "near", 0))
    assert own.key(0, "right of", 1) == own.key(0, "port of", 1) == own.key(1, "to the left of", 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {kind: {"left of": ["right of"]} for kind in ("synonyms", "inverses")},
            "'right of' is both the same as 'left of' and its inverse",
        ),
        ({"synonyms": {"near": ["by"], "of": ["by"]}}, "'by' is a synonym of both 'near' and 'of'"),
        ({"inverses": {"near": ["far from"]}}, "its own inverse, and 'far from' another one"),
        ({"synonyms": {"holding": ["held by"]}}, "'held by' is both"),
        ({"synonyms": {"near": "by"}}, "key 'near': expected predicate: [texts]"),
        ({"near": ["by"]}, "expected {synonyms: {predicate: [texts]}"),
        ([], "expected {synonyms"),
    ],
)
def test_tables_that_contradict_themselves_are_refused_in_one_line(tmp_path, content, expected):
    (tmp_path / "own.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_equivalents(tmp_path / "own.json")
    assert expected in str(error.value)
    assert str(error.value).startswith("equivalents file")
    assert "\n" not in str(error.value)
