"""The parsers by rules and by the packaged network: batches, caching, hostile text, and missing
models.
"""

import random
from dataclasses import fields

import pytest
import spacy

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Caption, Record
from sgpipe.stages.parse import rules
from sgpipe.stages.parse.learned.parser import (
    FARTHEST,
    LearnedParser,
    pair_features,
    read_sentences,
)
from sgpipe.stages.parse.rules import RuleParser, load_model
from sgpipe.stages.parse.stage import CaptionParser, ParseStage, parse_lines, parser_identity
from tests.values import values_of

CAPTIONS = [
    "a man riding a horse next to a dog on the beach", "a cat", "Two zebras standing in a grassy field.",
    "a woman wearing a hat standing on grass", "there is a plate with a sandwich and french fries on it",
    "the eyeglasses the man is wearing", "people sitting in front of a building",
    "a man in a white shirt playing tennis", "a horse is being ridden by two people through a river",
    "car parked on the side of the road", "a dog with a ball in its mouth",
]  # fmt: skip

HOSTILE = [
    "", " \t ", ".", "...!?", "'s", "n't n't", "\x00\x07\x1b[31m", "\u202e\u200b\ufeff", "😀" * 1500, "中文 字幕",
    "ＡＢＣ man ｏｎ ａ bed", "dog and " * 300, "of a dog " * 300, "man riding " * 300, "x" * 5000, "," * 5000,
    "a man that " * 300, "it it it on it with it", "each other next to each other",
]  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> CaptionParser:
    return CaptionParser()


@pytest.fixture(scope="module")
def learned() -> LearnedParser:
    return LearnedParser(ParseConfig())


def stated(parser: rules.Parser, caption: str) -> list[tuple[str, str, str]]:
    return values_of(parser.parse([caption])[0], "subject", "predicate", "object")


def record(*texts: str, **columns: object) -> Record:
    captions = list(map(Caption, texts))
    return Record("1", "coco", "val", "1.jpg", 10, 10, captions=captions, **columns)


@pytest.mark.parametrize("kind", ["parser", "learned"])
def test_triplet_has_surface_lemma_and_heads(kind, request):
    (triplet,) = request.getfixturevalue(kind).parse(
        ["Two tennis players are sitting on wooden benches"]
    )[0]
    assert (triplet.subject, triplet.predicate, triplet.object) == (
        "tennis players",
        "sitting on",
        "benches",
    )
    assert (triplet.subject_head, triplet.predicate_lemma, triplet.object_head) == (
        "player",
        "sit on",
        "bench",
    )


def test_triplets_do_not_depend_on_the_batch(parser):
    alone = {caption: stated(parser, caption) for caption in CAPTIONS}
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    other = CaptionParser(ParseConfig(batch_size=7))
    together = [
        values_of(triplets, "subject", "predicate", "object") for triplets in other.parse(shuffled)
    ]
    assert together == [alone[caption] for caption in shuffled]


def test_analysis_is_the_same_to_the_last_bit_in_any_batch():
    """Labels do not depend on batches because the parser's matrix product computes every row
    independently.
    """
    model = load_model()
    captions = [*CAPTIONS, *(" ".join(CAPTIONS[0].split()[:words]) for words in range(1, 6))]
    alone = [next(model.pipe([caption])).tensor.tobytes() for caption in captions]
    together = [doc.tensor.tobytes() for doc in model.pipe(captions, batch_size=len(captions))]
    assert alone == together


def test_each_distinct_caption_is_analysed_once_and_the_cache_returns_copies(parser, monkeypatch):
    seen: list[str] = []
    read = RuleParser.read
    monkeypatch.setattr(
        RuleParser, "read", lambda self, captions: seen.extend(captions) or read(self, captions)
    )
    parser._cache.clear()
    parser.parse(["a dog on a bed"] * 3 + ["a cat on a bed"])[3][0].subject_category = "cat"
    _, [copied] = parser.parse(["a bird on a bed", "a cat on a bed"])
    assert seen == ["a dog on a bed", "a cat on a bed", "a bird on a bed"]
    assert (copied.subject_category, copied.caption) == (None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parser", "learned"])
@pytest.mark.parametrize("caption", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_does_not_crash(kind, caption, request):
    for triplet in request.getfixturevalue(kind).parse([caption])[0]:
        assert all((triplet.subject, triplet.object, triplet.predicate))


def test_stage_fills_good_records_only():
    stage = ParseStage(ParseConfig())
    stage.setup()
    broken = record("a dog on a bed", status="error", error="load: broken")
    records = [
        record("a cat", "a dog on a bed"),
        broken,
        record(),
        record("a dog on a bed", "a dog on a bed"),
    ]
    assert stage(records) == records
    assert all((t.subject, t.object) == ("dog", "bed") for r in records for t in r.triplets)
    assert [values_of(r.triplets, "caption") for r in records] == [[1], [], [], [0, 1]]


def test_lines_keep_their_order_over_batches(parser):
    lines = [f"a dog on a {thing}\n" for thing in ("bed", "sofa", "chair")] + ["\n"]
    results = list(parse_lines(lines, parser, batch_size=2))
    assert values_of(results, "caption") == [line.strip() for line in lines]
    assert results[-1] == {"caption": "", "triplets": []}
    texts = {"subject": "dog", "predicate": "on", "object": "bed"}
    assert results[0]["triplets"] == [
        {**texts, "subject_head": "dog", "object_head": "bed", "predicate_lemma": "on"}
    ]


def test_a_model_may_be_a_folder_and_those_that_cannot_parse_are_refused(tmp_path, parser):
    load_model().to_disk(tmp_path / "model")
    other = CaptionParser(ParseConfig(model=str(tmp_path / "model")))
    assert stated(other, CAPTIONS[0]) == stated(parser, CAPTIONS[0])
    with pytest.raises(UserError, match=r"'no_such_model'.*pip install no-such-model"):
        CaptionParser(ParseConfig(model="no_such_model"))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="no tagger and no parser"):
        load_model(str(tmp_path / "blank"))


def test_spacys_own_model_comes_first(monkeypatch):
    monkeypatch.setattr(rules, "_package_version", lambda name: "1")
    assert rules.default_model() == "en_core_web_sm"


def test_the_identity_of_the_learned_parser_names_its_weights(tmp_path, monkeypatch):
    named = parser_identity(ParseConfig(parser="learned"))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("sgpipe.stages.parse.stage.WEIGHTS", tmp_path)
    assert parser_identity(ParseConfig(parser="learned"))["learned"] != named["learned"]
    assert isinstance(parser_identity(ParseConfig()), str)


def test_learned_predicates_are_worded_as_in_the_caption(learned):
    assert stated(learned, "a bat held by a man") == [("man", "holding", "bat")]
    assert stated(learned, "a woman is lying on a bed") == [("woman", "lying on", "bed")]


def bits(parser: LearnedParser, captions: list[str]) -> list[list[bytes]]:
    scores = parser._network(list(read_sentences(parser._nlp, captions, 256)))
    return [[getattr(score, field.name).tobytes() for field in fields(score)] for score in scores]


def test_learned_scores_are_the_same_to_the_last_bit_in_any_batch(learned):
    words = " ".join(CAPTIONS).split()
    captions = [
        *CAPTIONS,
        "",
        "dog",
        *(" ".join(words[start : start + 14]) for start in range(0, 60, 3)),
    ]
    alone = [bits(learned, [caption])[0] for caption in captions]
    assert bits(learned, captions) == alone
    order = random.Random(0).sample(range(len(captions)), len(captions))
    for size in (2, 5, 16):
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            assert bits(learned, [captions[k] for k in chosen]) == [alone[k] for k in chosen]


def test_a_caption_of_many_things_takes_few_pairs(learned):
    [sentence] = read_sentences(learned._nlp, ["dog and " * 200], 1)
    mentions = list(range(0, 100, 2))
    _, pairs, [places] = pair_features([sentence], [mentions], learned._network._tables)
    assert len(pairs) == len(places) < len(mentions) * (2 * FARTHEST + 3)
    assert {(0, 0), (0, 2), (2, 0)} <= set(map(tuple, pairs[:, :2].tolist()))
