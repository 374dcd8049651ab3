"""Class names and synonym tables."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.records import Pair, Relation
from sgpipe.sources.vocabulary import (
    Equivalents,
    category_names,
    load_equivalents,
    load_predicate_synonyms,
    load_synonyms,
    official_relation_names,
    relation_names,
)

PACKAGED = load_equivalents(None)
WORDS = [f"to {letter}" for letter in "bcdefg"]
TABLE = st.dictionaries(
    st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=2), max_size=4
)
TABLES = st.fixed_dictionaries({"synonyms": TABLE, "inverses": TABLE})


def test_names_have_the_official_ids() -> None:
    coco = category_names("coco")
    objects365 = category_names("objects365")
    assert list(coco) == sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert (coco[1], coco[13], coco[67], coco[90]) == (
        "person",
        "stop sign",
        "dining table",
        "toothbrush",
    )
    assert list(objects365) == list(range(1, 366))
    # corrected, and in lower case
    assert (objects365[38], objects365[308]) == (
        "monitor/tv",
        "camel",
    )
    assert {name.lower().strip() for name in objects365.values()} == {*objects365.values()}
    hico, vcoco, open_images = map(relation_names, ("hico", "vcoco", "open_images"))
    assert (list(hico), list(vcoco), list(open_images)) == (
        list(range(1, 118)),
        list(range(29)),
        list(range(30)),
    )
    assert (hico[58], vcoco[2], open_images[0]) == ("no interaction", "sit on/at", "at")
    assert official_relation_names("vcoco")["sit_instr"] == "sit on/at"
    assert list(official_relation_names("hico").values()) == list(hico.values())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"cup": ["mug"], "cup": ["glass"]}', "duplicate key cup"), ('{"cup": ["mug"', "neither YAML nor JSON"),
        *((content, "expected {class name") for content in ("[]", "{}")),
        *((f'{{"cup": {texts}}}', "key 'cup': expected") for texts in ('"mug"', "[]", '["mug", 3]', '["!"]')),
        ('{" ": ["mug"]}', "key ' ': expected"), ("1: [upon]", "key 1: expected"),
    ],
)  # fmt: skip
def test_an_invalid_table_is_refused_with_one_line(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^.*{path}.*{re.escape(expected)}.*$"):
        load_synonyms(path)


def test_json_and_yaml_are_read_and_a_predicate_may_have_no_other_text(tmp_path: Path) -> None:
    path = tmp_path / "table"
    for content in ('{\n\t"riding": ["\\ud83d\\ude00"],\n\t"on": []\n}', "riding: [😀]\non: []"):
        path.write_text(content, encoding="utf-8")
        assert load_predicate_synonyms(path) == {"riding": ["😀"], "on": []}


def test_texts_that_say_the_same_and_those_that_do_not():
    equivalents = {
        "near": "next to", "Is Holding": "holds", "on": "on the top of", "to the left of": "left of",
        "sitting_on": "sits on", "inside of": "in", "is being worn by": "worn by",
    }  # fmt: skip
    inverse = {
        "holding": "held by", "left of": "to the right of", "riding": "is ridden by", "near": "next to",
        "in front of": "behind", "above": "beneath", "covering": "covered in", "has": "belonging to",
    }  # fmt: skip
    neither = {"on": "under", "parked by": "next to", "": "on"}
    for first, second in equivalents.items():
        assert PACKAGED.key(3, first, 5) == PACKAGED.key(3, second, 5)
    for first, second in inverse.items():
        assert PACKAGED.key(3, first, 5) == PACKAGED.key(5, second, 3)
    for first, second in neither.items():
        assert PACKAGED.key(3, first, 5) not in (
            PACKAGED.key(5, second, 3),
            PACKAGED.key(3, second, 5),
        )
    for asymmetric in ("holding", "behind"):
        assert PACKAGED.key(3, asymmetric, 5) != PACKAGED.key(5, asymmetric, 3)


def test_pairs_lose_what_is_known():
    known = [Relation(0, 1, "holding"), Relation(2, 1, "next to"), Relation(2, 2, "near")]
    pairs = [
        Pair(0, 1, ["holds", "riding"]), Pair(1, 0, ["held by", "holding"]), Pair(1, 2, ["beside"]), Pair(2, 1, ["on"]),
    ]  # fmt: skip
    left = PACKAGED.without_known(pairs, known)
    assert left == [Pair(0, 1, ["riding"]), Pair(1, 0, ["holding"]), Pair(2, 1, ["on"])]


def reached(table: dict, word: str, swapped: bool = False) -> set[tuple[str, bool]]:
    """Everything that says the same as a word, by walking over the statements of a table."""
    edges = [
        (name, text, kind == "inverses")
        for kind in table
        for name, texts in table[kind].items()
        for text in texts
    ]
    visited = {(word, swapped)}
    waiting = [(word, swapped)]
    while waiting:
        at, turned = waiting.pop()
        for name, text, inverse in edges:
            for start, end in ((name, text), (text, name)):
                if start == at and (step := (end, turned ^ inverse)) not in visited:
                    visited.add(step)
                    waiting.append(step)
    return visited


@given(TABLES)
def test_tables_are_followed_to_their_ends_or_refused(table):
    own_inverse = {name for name, texts in table["inverses"].items() if name in texts}
    stated: dict[str, set[str]] = {}
    for name, texts in table["synonyms"].items():
        for text in texts:
            stated.setdefault(text, set()).add(name)
    without = {
        **table,
        "inverses": {n: [t for t in texts if t != n] for n, texts in table["inverses"].items()},
    }
    contradicts = any(len(names) > 1 for names in stated.values())
    contradicts |= any((word, True) in reached(without, word) for word in WORDS)
    contradicts |= any(swapped for word in own_inverse for _, swapped in reached(without, word))
    if contradicts:
        with pytest.raises(UserError, match="remove one"):
            Equivalents(table)
        return
    equivalents = Equivalents(table)
    for first, second, swapped in product(WORDS, WORDS, (False, True)):
        equal = equivalents.key(3, first, 5) == (
            equivalents.key(5, second, 3) if swapped else equivalents.key(3, second, 5)
        )
        assert equal == ((second, swapped) in reached(table, first))


def test_a_table_of_ones_own_replaces_what_the_packaged_one_says_of_its_texts(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "synonyms: {made by: [by], next to: ['!near']}\ninverses: {left of: [port of]}\n"
    )
    equivalents = load_equivalents(file)
    assert (
        equivalents.key(0, "by", 1)
        == equivalents.key(0, "made by", 1)
        != equivalents.key(0, "next to", 1)
        == equivalents.key(1, "beside", 0)
    )
    assert equivalents.key(0, "near", 1) not in (
        equivalents.key(0, "next to", 1),
        equivalents.key(1, "near", 0),
    )
    assert (
        equivalents.key(0, "right of", 1)
        == equivalents.key(0, "port of", 1)
        == equivalents.key(1, "to the left of", 0)
    )


def test_tables_that_contradict_themselves_are_refused_in_one_line(tmp_path):
    for content, expected in (
        (
            {kind: {"left of": ["right of"]} for kind in ("synonyms", "inverses")},
            "'right of' is both the same",
        ),
        ({"synonyms": {"near": "by"}}, "key 'near': expected predicate: [texts]"),
        ({"near": ["by"]}, "expected {synonyms: {predicate: [texts]}"),
    ):
        (tmp_path / "own.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"^equivalents file .*{re.escape(expected)}"):
            load_equivalents(tmp_path / "own.json")
