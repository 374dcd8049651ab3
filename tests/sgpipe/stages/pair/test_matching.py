"""Matching noun phrases to classes."""

import pytest

from sgpipe.sources.vocabulary import category_names, implied_things, loose_words, packaged_synonyms
from sgpipe.stages.pair import HeadMatcher, SubstringMatcher, split_words

COCO = HeadMatcher(packaged_synonyms("coco"))
OBJECTS365 = HeadMatcher(packaged_synonyms("objects365"))
LOOSE = HeadMatcher(packaged_synonyms("coco"), loose=loose_words())


@pytest.mark.parametrize(("phrase", "head", "expected"), [
    ("men", "men", "person"), ("people's", "people", "person"), ("children", "child", "person"),
    ("knives", "knife", "knife"), ("calves", "calf", "cow"), ("a pair of skis", "skis", "skis"),
    ("the man 's", "man", "person"), ("hot dogs", "dog", "hot dog"), ("the dining table", "table", "dining table"),
    ("stop-sign", "stop-sign", "stop sign"), ("surf boards", "board", "surfboard"), ("hotdogs", "hotdog", "hot dog"),
    ("glasses of wine", "glasses", "wine glass"), ("a dirt bike", "bike", "motorcycle"), ("jet ski", "ski", "boat"),
])  # fmt: skip
def test_phrases_plurals_and_possessives(phrase: str, head: str, expected: str) -> None:
    assert COCO.classes(phrase, head)[0] == expected


@pytest.mark.parametrize(("phrase", "head"), [
    ("hair", "hair"), ("car seat", "seat"), ("a bus stop", "stop"), ("orange juice", "juice"), ("bushes", "bush"),
    ("a bedroom", "bedroom"), ("pineapples", "pineapple"), ("a hand", "hand"), ("glasses", "glasses"),
    ("a cutting board", "board"), ("", ""), ("!?", "!?"),
])  # fmt: skip
def test_lookalikes_match_no_class(phrase: str, head: str) -> None:
    assert COCO.classes(phrase, head) == ()


def test_a_class_never_matches_part_of_a_word() -> None:
    for phrase, wrong in (("carrot", "car"), ("woman", "man"), ("chair", "hair"), ("cattle", "cat")):
        assert HeadMatcher({}, [phrase, wrong]).classes(phrase) == (phrase,)
        assert HeadMatcher({}, [wrong]).classes(phrase) == ()
        assert wrong in SubstringMatcher({}, [wrong]).classes(phrase)


@pytest.mark.parametrize(("matcher", "phrase", "present", "expected"), [
    # the longest phrase decides even if its class is absent
    (COCO, "hot dog", ("dog",), None), (COCO, "hot dog", ("dog", "hot dog"), "hot dog"),
    (OBJECTS365, "a license plate", ("plate",), None), (OBJECTS365, "a dinner plate", ("plate",), "plate"),
    # a word shared by classes goes to one that is present
    (COCO, "bike", ("motorcycle",), "motorcycle"), (COCO, "bike", ("motorcycle", "bicycle"), "bicycle"),
    (COCO, "board", ("person", "surfboard"), "surfboard"),
    (COCO, "bear", ("teddy bear",), "teddy bear"), (COCO, "bear", ("teddy bear", "bear"), "bear"),
    # a loose word stands for the best class with a box
    (LOOSE, "cold beer", ("cup", "bottle"), "bottle"), (LOOSE, "cold beer", ("cup",), "cup"),
    (LOOSE, "beer", ("person",), None), (LOOSE, "food truck", ("pizza", "truck"), "truck"),
])  # fmt: skip
def test_a_phrase_stands_for_a_class_of_the_image(
    matcher: HeadMatcher, phrase: str, present: tuple[str, ...], expected: str | None
) -> None:
    assert matcher.choose(phrase, phrase.split()[-1], dict.fromkeys(present)) == expected


def test_phrases_are_excluded_for_their_class_only_and_loose_ones_are_of_known_classes() -> None:
    matcher = HeadMatcher({"plate": ["!license plate"], "number": ["license plate"], "dish": ["plate"]})
    assert matcher.classes("license plates", "plate") == ("number",)
    assert matcher.classes("plates", "plate") == ("plate", "dish")
    assert HeadMatcher({}, ["box"], {"crate": ("box", "cat")}).classes("crates") == ("box",)


@pytest.mark.parametrize("dataset", ["coco", "objects365"])
def test_every_synonym_of_the_packaged_tables_reaches_its_class_whatever_loose_words_there_are(dataset: str) -> None:
    table = packaged_synonyms(dataset)
    strict, loose = HeadMatcher(table), HeadMatcher(table, loose=loose_words())
    for name, phrases in table.items():
        assert strict.classes(name)[0] == name
        for phrase in phrases:
            own = strict.classes(phrase.removeprefix("!"))
            assert (name in own) != phrase.startswith("!"), f"{phrase!r} under {name!r}"
            assert loose.classes(phrase.removeprefix("!"))[: len(own)] == own, phrase


def test_loose_words_and_implied_things_are_of_known_classes() -> None:
    known = {name for dataset in ("coco", "objects365") for name in category_names(dataset).values()}
    pattern, implied = implied_things()
    assert pattern.groups == len(implied)  # the number of a group is that of its row
    listed = [*loose_words().values(), *(classes for _, classes in implied)]
    assert all(classes and known.issuperset(classes) for classes in listed)


def test_substrings_count_and_the_last_class_of_the_image_wins() -> None:
    matcher = SubstringMatcher({"person": ["man", "hair"], "car": ["car"], "chair": ["chair"]})
    present = dict.fromkeys(["chair", "person", "car"])
    assert matcher.choose("A Chair", "", present) == "person"
    assert matcher.choose("a CARROT", "", present) == "car"
    assert matcher.choose("a chair", "", {"chair": None}) == "chair"
    assert matcher.choose("a cat", "", present) is None


def test_words_of_a_phrase() -> None:
    assert split_words("The man 's hat, a 'stop' sign") == ["the", "man", "hat", "a", "stop", "sign"]
    assert split_words("Boys' t-shirts on café_table") == ["boys", "t", "shirts", "on", "café", "table"]
