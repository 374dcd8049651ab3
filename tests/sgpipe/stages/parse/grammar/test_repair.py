"""Known parsing errors, as trees built by hand or as captions."""

import pytest

from sgpipe.stages.parse.grammar.repair import correct_attachments, repair
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


@pytest.mark.parametrize(
    ("caption", "relation"),
    [
        ("a man in a black coat standing on a corner", ("man", "standing on", "corner")),
        ("a woman with long hair sitting on a bus", ("woman", "sitting on", "bus")),
        ("a person on a snowboard jumping over a fence", ("person", "jumping over", "fence")),
        ("some people in a field working with animals", ("people", "working with", "animals")),
        ("a man wearing a white lab coat holding a bone", ("man", "holding", "bone")),
        ("a tower with a flag flying over it", ("flag", "flying over", "tower")),
        ("a man with a hat on his head", ("hat", "on", "head")),
        ("a bathroom with a toilet and a sink", ("bathroom", "with", "sink")),
        ("a table with a lamp standing on it", ("lamp", "standing on", "table")),
    ],
)
def test_attachment(triples, caption, relation):
    assert relation in triples(caption)


@pytest.mark.parametrize(("joined", "head"), [("woman", 0), ("bone", 2)])
def test_people_are_joined_to_people_and_things_to_things(joined, head):
    found = tree("man NN ROOT 0", "with IN prep 0", "dog NN pobj 1", "and CC cc 0", f"{joined} NN conj 0")
    correct_attachments(found)
    assert found.heads[4] == head
