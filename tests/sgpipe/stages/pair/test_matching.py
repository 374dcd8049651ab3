"""Matching noun phrases to classes."""

import pytest

from sgpipe.sources.vocabulary import category_names, implied_things, loose_words, packaged_synonyms
from sgpipe.stages.pair import HeadMatcher, SubstringMatcher, split_words

COCO = HeadMatcher(packaged_synonyms("coco"))
OBJECTS365 = HeadMatcher(packaged_synonyms("objects365"))


@pytest.mark.parametrize(
    ("phrase", "head", "expected"),
    [
        ("men", "men", "person"),
        ("people's", "people", "person"),
        ("children", "child", "person"),
        ("knives", "knife", "knife"),
        ("calves", "calf", "cow"),
        ("a pair of skis", "skis", "skis"),
        ("the man 's", "man", "person"),
        ("hot dogs", "dog", "hot dog"),
        ("the dining table", "table", "dining table"),
        ("stop-sign", "stop-sign", "stop sign"),
        ("surf boards", "board", "surfboard"),
        ("hotdogs", "hotdog", "hot dog"),
        ("glasses of wine", "glasses", "wine glass"),
        ("a dirt bike", "bike", "motorcycle"),
        ("jet ski", "ski", "boat"),
    ],
)
def test_phrases_plurals_and_possessives(phrase: str, head: str, expected: str) -> None:
    assert COCO.classes(phrase, head)[0] == expected


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("hair", "hair"),
        ("car seat", "seat"),
        ("a bus stop", "stop"),
        ("orange juice", "juice"),
        ("bushes", "bush"),
        ("a bedroom", "bedroom"),
        ("pineapples", "pineapple"),
        ("a hand", "hand"),
        ("glasses", "glasses"),
        ("a cutting board", "board"),
        ("", ""),
        ("!?", "!?"),
    ],
)
def test_lookalikes_match_no_class(phrase: str, head: str) -> None:
    assert COCO.classes(phrase, head) == ()


@pytest.mark.parametrize(
    ("phrase", "wrong"), [("carrot", "car"), ("woman", "man"), ("chair", "hair"), ("cattle", "cat")]
)
def test_a_class_never_matches_part_of_a_word(phrase: str, wrong: str) -> None:
    names = [phrase, wrong]
    assert HeadMatcher({}, names).classes(phrase) == (phrase,)
    assert HeadMatcher({}, [wrong]).classes(phrase) == ()
    assert wrong in SubstringMatcher({}, [wrong]).classes(phrase)


def test_the_longest_phrase_decides_even_if_its_class_is_absent() -> None:
    assert COCO.choose("hot dog", "dog", {"dog": None}) is None
    assert COCO.choose("hot dog", "dog", {"dog": None, "hot dog": None}) == "hot dog"
    assert OBJECTS365.choose("a license plate", "plate", {"plate": None}) is None
    assert OBJECTS365.choose("a dinner plate", "plate", {"plate": None}) == "plate"


def test_a_word_shared_by_classes_goes_to_one_that_is_present() -> None:
    assert COCO.choose("bike", "bike", {"motorcycle": None}) == "motorcycle"
    assert COCO.choose("bike", "bike", {"motorcycle": None, "bicycle": None}) == "bicycle"
    assert COCO.choose("board", "board", {"person": None, "surfboard": None}) == "surfboard"
    assert COCO.choose("bear", "bear", {"teddy bear": None}) == "teddy bear"
    assert COCO.choose("bear", "bear", {"teddy bear": None, "bear": None}) == "bear"


def test_an_excluded_phrase_is_excluded_for_its_class_only() -> None:
    matcher = HeadMatcher({"plate": ["!license plate"], "number": ["license plate"], "dish": ["plate"]})
    assert matcher.classes("license plates", "plate") == ("number",)
    assert matcher.classes("plates", "plate") == ("plate", "dish")


@pytest.mark.parametrize("dataset", ["coco", "objects365"])
def test_every_synonym_of_the_packaged_tables_reaches_its_class(dataset: str) -> None:
    table = packaged_synonyms(dataset)
    matcher = HeadMatcher(table)
    for name, phrases in table.items():
        assert matcher.classes(name)[0] == name
        for phrase in phrases:
            found = name in matcher.classes(phrase.removeprefix("!"))
            assert found != phrase.startswith("!"), f"{phrase!r} under {name!r}"


@pytest.mark.parametrize("dataset", ["coco", "objects365"])
def test_loose_words_never_change_what_names_and_synonyms_match(dataset: str) -> None:
    table = packaged_synonyms(dataset)
    strict, loose = HeadMatcher(table), HeadMatcher(table, loose=loose_words())
    for phrase in {text.removeprefix("!") for phrases in table.values() for text in phrases}:
        own = strict.classes(phrase)
        assert loose.classes(phrase)[: len(own)] == own, phrase


def test_a_loose_word_stands_for_the_best_class_with_a_box() -> None:
    matcher = HeadMatcher(packaged_synonyms("coco"), loose=loose_words())
    assert matcher.choose("cold beers", "beer", dict.fromkeys(["cup", "bottle"])) == "bottle"
    assert matcher.choose("cold beers", "beer", {"cup": None}) == "cup"
    assert matcher.choose("beer", "beer", {"person": None}) is None
    assert matcher.choose("food truck", "truck", dict.fromkeys(["pizza", "truck"])) == "truck"
    assert HeadMatcher({}, ["box"], {"crate": ("box", "cat")}).classes("crates") == ("box",)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man 's hat", ["the", "man", "hat"]),
        ("a 'stop' sign", ["a", "stop", "sign"]),
        ("Boys' t-shirts", ["boys", "t", "shirts"]),
        ("café_table", ["café", "table"]),
    ],
)
def test_words_of_a_phrase(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected
