"""The learned parser: what it ships with, no dependence on the batch, hostile text, and words of the caption."""

import random
from dataclasses import fields

import pytest

from sgpipe.recipe import ParseConfig
from sgpipe.stages.parse.learned.network import FARTHEST, pair_features
from sgpipe.stages.parse.learned.parser import LearnedParser, read_sentences
from sgpipe.stages.parse.stage import CaptionParser, load_parser, parser_identity
from tests.sgpipe.stages.parse.test_parse import CAPTIONS, HOSTILE

RANDOM_WORDS = "man dogs it them his riding covered with to that the , and 's is"


@pytest.fixture(scope="module")
def parser() -> LearnedParser:
    return LearnedParser(ParseConfig())


def stated(parser: LearnedParser, caption: str) -> list[tuple[str, str, str]]:
    return [(t.subject, t.predicate, t.object) for t in parser.parse([caption])[0]]


def test_the_recipe_chooses_it():
    assert isinstance(load_parser(ParseConfig(parser="learned")), LearnedParser)
    caption = CaptionParser(ParseConfig(parser="learned")).parse(["", "a dog on a bed"])[1]
    assert [(t.subject, t.predicate, t.object, t.caption) for t in caption] == [("dog", "on", "bed", 1)]


def test_the_identity_names_its_weights(tmp_path, monkeypatch):
    named = parser_identity(ParseConfig(parser="learned"))
    assert named["learned"].startswith("sha256:")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("sgpipe.stages.parse.stage.WEIGHTS", tmp_path)
    assert parser_identity(ParseConfig(parser="learned"))["learned"] != named["learned"]
    assert isinstance(parser_identity(ParseConfig()), str)


def test_triplets_have_names_heads_and_lemmas(parser):
    (triplet,) = parser.parse(["Two tennis players are sitting on wooden benches"])[0]
    assert (triplet.subject, triplet.predicate, triplet.object) == ("tennis players", "sitting on", "benches")
    assert (triplet.subject_head, triplet.predicate_lemma, triplet.object_head) == ("player", "sit on", "bench")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a bat held by a man", ("man", "holding", "bat")),
        ("a woman is lying on a bed", ("woman", "lying on", "bed")),
        ("the tail of a horse", ("horse", "has", "tail")),
        ("a boat tied to a dock", ("boat", "tied to", "dock")),
    ],
)
def test_predicates_are_worded_as_in_the_caption(parser, caption, expected):
    assert stated(parser, caption) == [expected]


def bits(parser: LearnedParser, captions: list[str]) -> list[list[bytes]]:
    scores = parser._network(list(read_sentences(parser._nlp, captions, 256)))
    return [[getattr(each, field.name).tobytes() for field in fields(each)] for each in scores]


def test_scores_are_the_same_to_the_last_bit_in_any_batch(parser):
    words = " ".join(CAPTIONS).split()
    captions = [*CAPTIONS, "", "dog", *(" ".join(words[start : start + 14]) for start in range(0, 60, 3))]
    alone = [bits(parser, [caption])[0] for caption in captions]
    assert bits(parser, captions) == alone
    order = random.Random(0).sample(range(len(captions)), len(captions))
    for size in (2, 5, 16):
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            assert bits(parser, [captions[k] for k in chosen]) == [alone[k] for k in chosen]


@pytest.mark.parametrize("caption", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_does_not_crash(parser, caption):
    for triplet in parser.parse([caption])[0]:
        assert triplet.subject
        assert triplet.object
        assert triplet.predicate


def test_a_caption_of_many_things_takes_few_pairs(parser):
    [sentence] = read_sentences(parser._nlp, ["dog and " * 200], 1)
    mentions = list(range(0, 100, 2))
    _, pairs, [places] = pair_features([sentence], [mentions], parser._network._tables)
    assert len(pairs) == len(places) < len(mentions) * (2 * FARTHEST + 3)
    assert {(0, 0), (0, 2), (2, 0)} <= {tuple(pair) for pair in pairs[:, :2].tolist()}


def test_things_are_words_of_the_caption(parser):
    choose = random.Random(0)
    made = [" ".join(choose.choices(RANDOM_WORDS.split(), k=choose.randint(3, 20))) for _ in range(50)]
    for caption, found in zip(CAPTIONS + made, parser.parse(CAPTIONS + made), strict=True):
        for triplet in found:
            for phrase in (triplet.subject, triplet.object):
                assert set(phrase.split()) <= {*caption.lower().strip(".").split(), "man", "people"}, caption
