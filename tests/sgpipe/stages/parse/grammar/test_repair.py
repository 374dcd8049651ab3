"""Known parsing errors, as trees built by hand or as captions."""

import pytest

from sgpipe.stages.parse.grammar.repair import repair
from tests.sgpipe.stages.parse.grammar.test_clauses import tree


def test_a_participle_inside_a_name_splits_it():
    found = tree("a DT det 4", "white JJ amod 2", "shirt NN compound 4", "playing NN compound 4", "tennis NN ROOT 4")
    repair(found)
    assert (found.heads, found.deps[3:]) == ([2, 2, 2, 2, 3], ["acl", "dobj"])
    assert found.tags[3] == "VBG"


def test_kinds_of_things_are_not_split():
    found = tree("a DT det 3", "kitchen NN compound 2", "cutting NN compound 3", "board NN ROOT 3")
    repair(found)
    assert found.deps[2] == "compound"


def test_a_final_verb_is_not_part_of_the_name():
    found = tree("a DT det 2", "dog NN compound 2", "sleep NN ROOT 2", "on IN prep 2", "bed NN pobj 3")
    repair(found)
    assert (found.tags[2], found.deps[2], found.heads[2], found.heads[0]) == ("VBP", "acl", 1, 1)


def test_an_initial_verb_is_a_noun():
    found = tree("shadow VB ROOT 0", "on IN prep 0", "carpet NN pobj 1")
    repair(found)
    assert found.tags[0] == "NN"


def test_clauses_keep_their_verb():
    found = tree("dogs NNS nsubj 1", "walk VBP ROOT 1", "on IN prep 1", "grass NN pobj 2")
    repair(found)
    assert found.tags[1] == "VBP"


def test_unknown_words_after_a_preposition_are_nouns_but_colours_are_not():
    found = tree("chain NN ROOT 0", "from IN prep 0", "hydrant JJ pobj 1", "in IN prep 0", "red JJ pobj 3")
    repair(found)
    assert (found.tags[2], found.tags[4]) == ("NN", "JJ")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man in a white shirt playing tennis", [("man", "playing", "tennis"), ("man", "wearing", "shirt")]),
        ("a dog sleep on a bed", [("dog", "sleep on", "bed")]),
        ("metal fence surrounding sheep", [("fence", "surrounding", "sheep")]),
        ("pillows on the couches", [("pillows", "on", "couches")]),
        ("planes pulled up to a terminal", [("planes", "pulled up to", "terminal")]),
        ("giraffe standing between bushes", [("giraffe", "standing between", "bushes")]),
        ("garbage can filled with garbage", [("garbage can", "filled with", "garbage")]),
        ("a train traveling down train tracks", [("train", "traveling down", "train tracks")]),
        ("four people out in the snow", [("people", "in", "snow")]),
    ],
)
def test_captions_with_known_parsing_errors(triples, caption, expected):
    assert triples(caption) == expected
