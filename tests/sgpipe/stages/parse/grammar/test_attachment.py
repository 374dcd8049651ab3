"""Attachments that syntax alone leaves ambiguous."""

import pytest

from sgpipe.stages.parse.grammar.attachment import correct_attachments
from tests.sgpipe.stages.parse.grammar.test_clauses import tree


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
