"""Known parsing errors, as trees built by hand or as captions."""

import pytest

from sgpipe.stages.parse.grammar.repair import correct_attachments
from sgpipe.stages.parse.grammar.tree import Tree


def tree(*rows: str) -> Tree:
    """From rows "word tag label head"."""
    words, tags, deps, heads = zip(*(row.split() for row in rows), strict=True)
    return Tree.build(list(words), list(tags), list(deps), [int(head) for head in heads])


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
