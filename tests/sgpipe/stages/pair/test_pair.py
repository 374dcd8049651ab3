"""The pair stage, run in a plain loop."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.recipe import PairConfig
from sgpipe.records import Box, Caption, Record, Triplet
from sgpipe.stages.pair import PairStage, implied_triplets


def stage(categories: tuple[str, ...] = (), dataset: str = "coco", **settings: Any) -> PairStage:
    made = PairStage(PairConfig(**settings), dataset, categories)
    made.setup()
    return made


def record(classes: list[str], statements: list[tuple[str, str, str]], crowds: tuple[int, ...] = ()) -> Record:
    boxes = [Box(name, 1, (10.0 * i, 0.0, 8.0, 8.0), i in crowds) for i, name in enumerate(classes)]
    triplets = [
        Triplet(subject, text, object_, subject.split()[-1], object_.split()[-1], text, 0)
        for subject, text, object_ in statements
    ]
    return Record("1", "coco", "val", "1.jpg", 640, 480, boxes, triplets=triplets)


def pairs(result: Record) -> list[tuple[int, int, list[str]]]:
    return [(pair.subject, pair.object, pair.predicates) for pair in result.pairs]


def test_triplets_become_pairs_of_matching_boxes() -> None:
    statements = [
        ("two men", "Riding", "brown horses"),
        ("a dog", "near", "the man"),
        ("man", "riding", "a horse"),
        ("woman", "on", "horse"),
        ("a man", "wearing", "hat"),
    ]
    [found] = stage()([record(["horse", "person", "person", "dog", "cat"], statements)])
    assert pairs(found) == [(1, 0, ["riding", "on"]), (2, 0, ["riding", "on"]), (3, 1, ["near"]), (3, 2, ["near"])]
    named = [(triplet.subject_category, triplet.object_category) for triplet in found.triplets]
    assert named == [("person", "horse"), ("dog", "person"), *[("person", "horse")] * 2, ("person", None)]


def test_other_datasets_match_by_class_name() -> None:
    found = stage(("red ball", "wooden box"), dataset="miniworld")(
        [record(["red ball", "wooden box"], [("red balls", "in", "a wooden box")])]
    )
    assert pairs(found[0]) == [(0, 1, ["in"])]


def test_classes_of_the_annotations_extend_the_packaged_table() -> None:
    statement = [("a rider", "with", "a helmet")]
    [found] = stage(("helmet", "person"))([record(["person", "helmet"], statement)])
    assert pairs(found) == [(0, 1, ["with"])]


def test_a_custom_synonym_table(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text('{"person": ["gondolier"]}')
    [found] = stage(synonyms=table)([record(["person", "boat"], [("gondolier", "in", "boat"), ("man", "on", "boat")])])
    assert pairs(found) == [(0, 1, ["in"])]


def captioned(classes: list[str], *texts: str) -> Record:
    made = record(classes, [])
    made.captions = [Caption(text) for text in texts]
    return made


@pytest.mark.parametrize(
    ("text", "classes", "expected"),
    [
        ("Two SKIERS go downhill.", ["person", "skis"], ["skiing on skis"]),
        ("a snow-boarder", ["person", "snowboard", "skis"], ["snowboarding on snowboard"]),
        ("a man rides a big blue wave", ["person", "surfboard"], ["surfing on surfboard"]),
        ("a man rides a horse", ["person", "surfboard"], []),
        ("a boy sitting at a table", ["person", "couch", "chair"], ["sitting on chair"]),
        ("a boy sitting on a bench", ["person", "chair"], []),
        ("a boy sitting down in the grass", ["person", "chair"], []),
        ("a batter swings at a ball", ["person", "baseball bat"], ["holding baseball bat", "swinging baseball bat"]),
        ("a skier", ["skis"], []),
        ("a skier", ["person"], []),
        ("skiers and a skier skiing", ["person", "skis"], ["skiing on skis"]),
    ],
)
def test_a_caption_implies_things_that_have_a_box(text: str, classes: list[str], expected: list[str]) -> None:
    found = implied_triplets(captioned(classes, "a photograph", text))
    assert [f"{each.predicate} {each.object_category}" for each in found] == expected
    assert all((each.subject_category, each.caption) == ("person", 1) for each in found)


def test_implied_things_are_candidates_after_what_is_stated_unless_the_recipe_is_strict() -> None:
    made = captioned(["person", "skis"], "a skier on skis")
    made.triplets = record([], [("skier", "on", "skis")]).triplets
    assert pairs(stage()([made])[0]) == [(0, 1, ["on", "skiing on"])]
    assert len(made.triplets) == 1
    for settings in ({"loose": False}, {"match": "substring"}):
        assert pairs(stage(**settings)([made])[0]) == [(0, 1, ["on"])]


def test_a_loose_word_never_relates_a_class_to_itself() -> None:
    statements = [("pizza", "with", "crust"), ("woman", "eating", "crust"), ("pizza", "next to", "pizza")]
    [found] = stage()([record(["pizza", "pizza", "person"], statements)])
    assert pairs(found) == [(0, 1, ["next to"]), (1, 0, ["next to"]), (2, 0, ["eating"]), (2, 1, ["eating"])]


def test_a_prior_needs_no_captions(tmp_path: Path) -> None:
    prior = tmp_path / "vg.json"
    relation = {"predicate": "RIDES", "subject": {"name": "old man"}, "object": {"name": "horse"}}
    prior.write_text(json.dumps([{"image_id": 1, "relationships": [relation]}]))
    [found] = stage(candidates="prior", prior=prior)([record(["horse", "person", "person"], [], crowds=(2,))])
    assert pairs(found) == [(1, 0, ["rides"])]


def test_any_pair_of_the_image_may_have_what_its_captions_state() -> None:
    statements = [("cat", "Riding", "skateboard"), ("dog", "near", "tree"), ("cat", "riding", "board")]
    [found] = stage(("dog", "skateboard"), candidates="image")([record(["dog", "skateboard", "dog"], statements)])
    assert pairs(found) == [(s, o, ["riding", "near"]) for s in range(3) for o in range(3) if s != o]
    assert found.triplets[1].object_category is None
    [silent] = stage(("dog",), candidates="image")([record(["dog", "dog"], [])])
    assert silent.pairs == []


WORDS = st.sampled_from(["man", "women", "hot dogs", "dog", "car seat", "bike", "bears", "glass", "hand", "tables"])
CLASSES = st.sampled_from(["person", "dog", "hot dog", "bicycle", "motorcycle", "bear", "cup", "dining table"])
TEXTS = st.sampled_from(["on", "ON", " near", "near"])
RECORDS = st.lists(
    st.builds(
        record,
        st.lists(CLASSES, max_size=8),
        st.lists(st.tuples(WORDS, TEXTS, WORDS), max_size=8),
        st.sets(st.integers(0, 7), max_size=2).map(tuple),
    ),
    max_size=4,
)


@cache
def _stage_of(match: str) -> PairStage:
    return stage(match=match)


@pytest.mark.parametrize("match", ["head", "substring"])
@given(data=st.data())
def test_invariants_of_pairs(match: str, data: st.DataObject) -> None:
    made = _stage_of(match)
    records = data.draw(RECORDS)
    for found in made(records):
        order = [(pair.subject, pair.object) for pair in found.pairs]
        assert order == sorted(set(order))
        for pair in found.pairs:
            subject, object_ = found.objects[pair.subject], found.objects[pair.object]
            assert pair.subject != pair.object
            assert not subject.iscrowd
            assert not object_.iscrowd
            stated = [
                triplet.predicate if match == "substring" else triplet.predicate.lower().strip()
                for triplet in found.triplets
                if (triplet.subject_category, triplet.object_category) == (subject.category, object_.category)
            ]
            assert pair.predicates == list(dict.fromkeys(stated))


@pytest.fixture(scope="module")
def two_stages() -> tuple[PairStage, PairStage]:
    return stage(), stage()


@given(records=RECORDS)
def test_a_record_does_not_depend_on_its_neighbours(
    two_stages: tuple[PairStage, PairStage], records: list[Record]
) -> None:
    first, second = two_stages
    together = [pairs(found) for found in first(records)]
    alone = [pairs(second([item])[0]) for item in records[::-1]][::-1]
    assert together == alone
