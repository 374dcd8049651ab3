"""The parse stage and `CaptionParser`: order, batches, caching, hostile text, and missing models."""

import random

import pytest
import spacy

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Caption, Record
from sgpipe.stages.parse import rules
from sgpipe.stages.parse.rules import DEFAULT_MODELS, RuleParser, load_model
from sgpipe.stages.parse.stage import CaptionParser, ParseStage, parse_lines

CAPTIONS = [
    "a man riding a horse next to a dog on the beach",
    "a cat",
    "Two zebras standing in a grassy field.",
    "a woman wearing a hat standing on grass",
    "there is a plate with a sandwich and french fries on it",
    "the eyeglasses the man is wearing",
    "people sitting in front of a building",
    "a man in a white shirt playing tennis",
    "a horse is being ridden by two people through a river",
    "car parked on the side of the road",
    "a dog with a ball in its mouth",
]


@pytest.fixture(scope="module")
def parser() -> CaptionParser:
    return CaptionParser()


def stated(parser: CaptionParser, caption: str) -> list[tuple[str, str, str]]:
    return [(t.subject, t.predicate, t.object) for t in parser.parse([caption])[0]]


def record(*texts: str, **columns: object) -> Record:
    captions = [Caption(text) for text in texts]
    return Record("1", "coco", "val", "1.jpg", 10, 10, captions=captions, **columns)


def test_triplet_has_surface_lemma_and_heads(parser):
    (triplet,) = parser.parse(["Two men are lying on tennis courts"])[0]
    assert (triplet.subject, triplet.predicate, triplet.object) == ("men", "lying on", "tennis courts")
    assert (triplet.subject_head, triplet.predicate_lemma, triplet.object_head) == ("man", "lie on", "court")


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_triplets_do_not_depend_on_the_batch(parser, batch_size):
    alone = [parser.parse([caption])[0] for caption in CAPTIONS]
    other = CaptionParser(ParseConfig(batch_size=batch_size))
    for seed in range(3):
        shuffled = random.Random(seed).sample(CAPTIONS, len(CAPTIONS))
        other._cache.clear()
        for caption, found in zip(shuffled, other.parse(shuffled), strict=True):
            assert [t.predicate for t in found] == [t.predicate for t in alone[CAPTIONS.index(caption)]]
            assert [(t.subject, t.object) for t in found] == [
                (t.subject, t.object) for t in alone[CAPTIONS.index(caption)]
            ]


def test_analysis_is_the_same_to_the_last_bit_in_any_batch():
    """Labels do not depend on batches because the parser's matrix product computes every row independently."""
    model = load_model()
    captions = [*CAPTIONS, *(" ".join(CAPTIONS[0].split()[:words]) for words in range(1, 6))]
    alone = [next(model.pipe([caption])).tensor.tobytes() for caption in captions]
    together = [doc.tensor.tobytes() for doc in model.pipe(captions, batch_size=len(captions))]
    assert alone == together


def test_the_cache_returns_copies(parser):
    first = parser.parse(["a dog on a bed"])[0][0]
    first.subject_category = "dog"
    again = parser.parse(["a cat", "a dog on a bed"])[1][0]
    assert again.subject_category is None
    assert again.caption == 1


def test_each_distinct_caption_is_analysed_once(parser, monkeypatch):
    seen: list[str] = []
    read = RuleParser.read

    def spy(self, captions):
        seen.extend(captions)
        return read(self, captions)

    monkeypatch.setattr(RuleParser, "read", spy)
    parser._cache.clear()
    parser.parse(["a dog on a bed"] * 3 + ["a cat on a bed"])
    parser.parse(["a cat on a bed", "a bird on a bed"])
    assert seen == ["a dog on a bed", "a cat on a bed", "a bird on a bed"]


HOSTILE = [
    "",
    " \t ",
    ".",
    "...!?",
    "'s",
    "n't n't",
    "\x00\x07\x1b[31m",
    "\u202e\u200b\ufeff",
    "😀" * 1500,
    "中文 字幕",
    "ＡＢＣ man ｏｎ ａ bed",
    "dog and " * 300,
    "of a dog " * 300,
    "man riding " * 300,
    "x" * 5000,
    "," * 5000,
    "a man that " * 300,
    "it it it on it with it",
    "each other next to each other",
]


@pytest.mark.parametrize("caption", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_does_not_crash(parser, caption):
    for triplet in parser.parse([caption])[0]:
        assert triplet.subject
        assert triplet.object
        assert triplet.predicate


def test_case_spacing_and_symbols_do_not_matter(parser):
    expected = [("dog", "on", "bed")]
    for caption in (
        "a dog on a bed",
        "A DOG ON A BED",
        " a dog\ton  a bed . ",
        "a 🐕 dog on a\x00 bed",
        "A dog on a bed!",
    ):
        assert stated(parser, caption) == expected, caption


def test_stage_fills_good_records_only():
    stage = ParseStage(ParseConfig())
    stage.setup()
    broken = record("a dog on a bed", status="error", error="load: broken")
    records = [record("a cat", "a dog on a bed"), broken, record(), record("a dog on a bed", "a dog on a bed")]
    assert stage(records) == records
    assert [[(t.subject, t.object, t.caption) for t in r.triplets] for r in records] == [
        [("dog", "bed", 1)],
        [],
        [],
        [("dog", "bed", 0), ("dog", "bed", 1)],
    ]


def test_lines_keep_their_order_over_batches(parser):
    lines = [f"a dog on a {thing}\n" for thing in ("bed", "sofa", "chair", "rug", "mat")] + ["\n"]
    results = list(parse_lines(lines, parser, batch_size=2))
    assert [result["caption"] for result in results] == [line.strip() for line in lines]
    assert [t["object"] for result in results for t in result["triplets"]] == ["bed", "sofa", "chair", "rug", "mat"]
    assert results[-1] == {"caption": "", "triplets": []}
    assert results[0]["triplets"] == [
        {
            "subject": "dog",
            "predicate": "on",
            "object": "bed",
            "subject_head": "dog",
            "object_head": "bed",
            "predicate_lemma": "on",
        }
    ]


def test_missing_model_says_what_to_install():
    with pytest.raises(UserError, match=r"'no_such_model'.*pip install no-such-model"):
        CaptionParser(ParseConfig(model="no_such_model"))


def test_spacys_own_model_comes_first(monkeypatch):
    loaded: list[str] = []
    real = next(name for name in DEFAULT_MODELS if spacy.util.is_package(name))
    load = spacy.load
    monkeypatch.setattr(rules, "_package_version", lambda name: "1")
    monkeypatch.setattr(spacy, "load", lambda name, **options: loaded.append(name) or load(real, **options))
    load_model()
    assert loaded == ["en_core_web_sm"]


def test_model_without_parser_is_refused(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="no tagger and no parser"):
        load_model(str(tmp_path / "blank"))


def test_model_may_be_a_folder(tmp_path, parser):
    load_model().to_disk(tmp_path / "model")
    other = CaptionParser(ParseConfig(model=str(tmp_path / "model")))
    assert stated(other, CAPTIONS[0]) == stated(parser, CAPTIONS[0])
