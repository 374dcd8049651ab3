"""Trees stay valid under any change; names and heads of noun phrases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.stages.parse.grammar.relations import coordinated, phrase, relations, singular
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Tree, tokenise
from sgpipe.stages.parse.rules import load_model

WORDS = "man dogs a riding standing on in with of it them that covered and to wearing shirt his people 's field each"
TAGS = "NN NNS VB VBG VBN VBZ VBD IN DT JJ RB RP PRP PRP$ WDT TO CC EX"
LABELS = (
    "nsubj nsubjpass dobj pobj prep acl relcl conj cc compound amod npadvmod nmod aux auxpass expl attr agent prt "
    "xcomp ccomp advcl poss det appos pcomp dep"
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    size = draw(st.integers(1, 14))
    order = draw(st.permutations(range(size)))
    heads = list(range(size))
    for place, index in enumerate(order):
        heads[index] = order[draw(st.integers(0, place - 1))] if place and draw(st.integers(0, 9)) else index
    choose = {key: st.sampled_from(text.split()) for key, text in (("w", WORDS), ("t", TAGS), ("l", LABELS))}
    labels = ["ROOT" if heads[index] == index else draw(choose["l"]) for index in range(size)]
    return Tree.build([draw(choose["w"]) for _ in heads], [draw(choose["t"]) for _ in heads], labels, heads)


def is_forest(tree: Tree) -> bool:
    consistent = all(tree.heads[child] == index for index in range(len(tree)) for child in tree.children[index])
    once = sorted(child for children in tree.children for child in children)
    hanging = [index for index in range(len(tree)) if tree.heads[index] != index]
    bounded = all(len(set(zip(range(len(tree) + 1), tree.ancestors(i), strict=False))) <= len(tree) for i in hanging)
    return consistent and once == hanging and bounded


@given(trees())
def test_repair_keeps_a_valid_forest(tree):
    repair(tree)
    assert is_forest(tree)


@given(trees())
def test_relations_of_any_tree_join_two_of_its_words(tree):
    repair(tree)
    for relation in relations(tree):
        assert 0 <= relation.subject < len(tree)
        assert 0 <= relation.object < len(tree)
        assert relation.predicate.strip()


@given(trees(), st.data())
def test_attaching_keeps_a_valid_forest(tree, data):
    index, head = (data.draw(st.integers(0, len(tree) - 1)) for _ in range(2))
    tree.attach(index, head, "dep")
    assert is_forest(tree)


def test_tree_of_a_document_has_its_words_tags_and_heads():
    model = load_model()
    tokens = tokenise("two giraffes next to a tree")
    doc = next(model.pipe([" ".join(token.word for token in tokens)]))
    tree = Tree.of(doc, tokens)
    assert tree.texts == ["two", "giraffes", "next to", "a", "tree"]
    assert tree.tags == [token.tag_ for token in doc]
    assert tree.heads == [token.head.i for token in doc]
    assert tree.deps == [token.dep_ for token in doc]


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
