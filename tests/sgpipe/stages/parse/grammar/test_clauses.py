"""Subjects and objects of verbs on trees built by hand."""

import pytest

from sgpipe.stages.parse.grammar.clauses import governor, is_passive, modified, objects, subjects
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import gerund, verb_lemma


def tree(*rows: str) -> Tree:
    """From rows "word tag label head"."""
    words, tags, deps, heads = zip(*(row.split() for row in rows), strict=True)
    return Tree.build(list(words), list(tags), list(deps), [int(head) for head in heads])


@pytest.mark.parametrize(
    ("form", "lemma", "present_participle"),
    [
        ("riding", "ride", "riding"),
        ("ridden", "ride", "riding"),
        ("sat", "sit", "sitting"),
        ("covered", "cover", "covering"),
        ("worn", "wear", "wearing"),
        ("skiing", "ski", "skiing"),
    ],
)
def test_forms_of_verbs(form, lemma, present_participle):
    assert verb_lemma(form) == lemma
    assert gerund(form) == present_participle


def test_a_coordinated_verb_shares_the_subject():
    found = tree("man NN nsubj 1", "sits VBZ ROOT 1", "and CC cc 1", "reads VBZ conj 1")
    assert subjects(found, 3) == [0]


def test_relative_pronouns_stand_for_their_noun():
    found = tree("dog NN ROOT 0", "that WDT nsubj 2", "eats VBZ relcl 0", "and CC cc 2", "runs VBZ conj 2")
    assert subjects(found, 2) == [0]
    assert subjects(found, 4) == [0]


def test_the_noun_of_a_relative_clause_is_its_object():
    found = tree("hat NN ROOT 0", "he PRP nsubj 2", "wears VBZ relcl 0")
    assert (subjects(found, 2), objects(found, 2)) == ([1], [0])


def test_a_subject_that_is_not_a_thing_is_ignored():
    assert subjects(tree("it PRP nsubj 1", "runs VBZ ROOT 1"), 1) == []


def test_a_phrase_modifies_all_of_a_coordination_without_phrases_between():
    plain = tree("dogs NNS ROOT 0", "and CC cc 0", "cats NNS conj 0", "on IN prep 2", "beds NNS pobj 3")
    assert modified(plain, 2, 3) == [0, 2]
    phrases = tree("mat NN ROOT 0", "on IN prep 0", "floor NN pobj 1", "and CC cc 0", "shelf NN conj 0", "of IN prep 4")
    assert modified(phrases, 4, 5) == [4]


def test_the_subject_of_there_is():
    assert subjects(tree("there EX expl 1", "is VBZ ROOT 1", "dog NN attr 1"), 1) == [2]


def test_for_doing_has_no_subject():
    found = tree("field NN ROOT 0", "for IN prep 0", "playing VBG pcomp 1", "ball NN dobj 2")
    assert subjects(found, 2) == []


def test_active_and_passive():
    assert is_passive(tree("car NN ROOT 0", "parked VBN acl 0"), 1)
    assert not is_passive(tree("man NN nsubj 1", "parked VBD ROOT 1", "cars NNS dobj 1"), 1)


def test_governor_passes_over_adverbs_and_keeps_particles_of_direction():
    high = tree("kite NN ROOT 0", "high RB advmod 0", "in IN prep 1", "sky NN pobj 2")
    assert governor(high, 2) == (["in"], 0)
    up = tree("path NN ROOT 0", "leading VBG acl 0", "up RB advmod 1", "to IN prep 2", "house NN pobj 3")
    assert governor(up, 3) == (["up", "to"], 1)
