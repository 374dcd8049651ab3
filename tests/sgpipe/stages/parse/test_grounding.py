"""Texts of a model become triplets as the rules make them."""

from __future__ import annotations

import pytest
from spacy.language import Language

from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.stages.parse.rules import Texts, analyse, ground, load_model
from sgpipe.stages.parse.seq2seq import read_graph


@pytest.fixture(scope="module")
def model() -> Language:
    return load_model()


def grounded(model: Language, caption: str, *texts: Texts) -> list[str]:
    (tokens, doc), *_ = analyse(model, [caption], 1)
    triplets = ground(Tree.of(doc, tokens), texts)
    return [
        f"{t.subject} {t.subject_head} | {t.predicate} | {t.predicate_lemma} | {t.object} {t.object_head}"
        for t in triplets
    ]


@pytest.mark.parametrize(
    ("caption", "texts", "expected"),
    [
        (
            "Two young women are sitting on a wooden bench.",
            ("2 young women", "are sitting on", "a wooden bench"),
            "women woman | sitting on | sit on | bench bench",
        ),
        (
            "a red fire hydrant next to a parked car",
            ("Fire hydrant", "next to", "car"),
            "fire hydrant hydrant | next to | next to | car car",
        ),
        ("pigs flying on the sky", ("pig", "fly on", "sky"), "pigs pig | flying on | fly on | sky sky"),
        ("a man eating a hot dog", ("man", "eat", "hot dog"), "man man | eating | eat | hot dog dog"),
        ("he holds an umbrella", ("he", "holds", "umbrella"), "man man | holds | hold | umbrella umbrella"),
        ("a dog on the left of a cat", ("dog", "left of", "cat"), "dog dog | left of | left of | cat cat"),
        ("a surfer in the sea", ("surfer", "riding", "big waves"), "surfer surfer | riding | ride | big waves wave"),
        ("🐕 on 🛋", ("dog", "on", "sofa"), "dog dog | on | on | sofa sofa"),
    ],
)
def test_texts_as_the_caption_has_them(model: Language, caption: str, texts: Texts, expected: str) -> None:
    assert grounded(model, caption, texts) == [expected]


def test_attributes_repetitions_and_empty_parts_are_left_out(model: Language) -> None:
    texts = [
        ("dog", "is", "black"),
        ("dog", "on", "sofa"),
        ("the dog", "on", "a sofa"),
        ("dog", "on", "!"),
        ("", "on", "sofa"),
    ]
    assert len(grounded(model, "a black dog on a sofa", *texts)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("( pigs , is , 2 ) , ( pigs , fly on , sky )", [("pigs", "is", "2"), ("pigs", "fly on", "sky")]),
        ("( dog , on , sofa ) , ( cat , under", [("dog", "on", "sofa")]),
        ("( dog , on ) , ( dog , on , sofa ) ) , ( a , b , c , d )", [("dog", "on", "sofa")]),
        ("( ( dog , on , sofa )", [("dog", "on", "sofa")]),
        ("(dog,on,sofa),( , on , sofa )", [("dog", "on", "sofa")]),
        ("no relations", []),
    ],
)
def test_graphs_are_read_piece_by_piece(text: str, expected: list[Texts]) -> None:
    assert read_graph(text) == expected
