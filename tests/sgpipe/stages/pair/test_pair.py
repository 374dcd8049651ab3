"""The pair stage, run in a plain loop; priors of Visual Genome; and whose the attributes of captions are."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, ParseConfig
from sgpipe.records import Attribute, Box, Caption, Record, Triplet
from sgpipe.stages.pair import HeadMatcher, PairStage, collect_prior, implied_triplets, read_prior
from sgpipe.stages.parse.stage import ParseStage


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
        ("two men", "Riding", "brown horses"), ("a dog", "near", "the man"), ("man", "riding", "a horse"),
        ("woman", "on", "horse"), ("a man", "wearing", "hat"),
    ]  # fmt: skip
    [found] = stage()([record(["horse", "person", "person", "dog", "cat"], statements)])
    assert pairs(found) == [(1, 0, ["riding", "on"]), (2, 0, ["riding", "on"]), (3, 1, ["near"]), (3, 2, ["near"])]
    named = [(triplet.subject_category, triplet.object_category) for triplet in found.triplets]
    assert named == [("person", "horse"), ("dog", "person"), *[("person", "horse")] * 2, ("person", None)]


def test_classes_are_of_the_annotations_beside_the_packaged_table_or_a_custom_one(tmp_path: Path) -> None:
    balls = record(["red ball", "wooden box"], [("red balls", "in", "a wooden box")])
    assert pairs(stage(("red ball", "wooden box"), dataset="miniworld")([balls])[0]) == [(0, 1, ["in"])]
    helmet = record(["person", "helmet"], [("a rider", "with", "a helmet")])
    assert pairs(stage(("helmet", "person"))([helmet])[0]) == [(0, 1, ["with"])]
    table = tmp_path / "table.json"
    table.write_text('{"person": ["gondolier"]}')
    boat = record(["person", "boat"], [("gondolier", "in", "boat"), ("man", "on", "boat")])
    assert pairs(stage(synonyms=table)([boat])[0]) == [(0, 1, ["in"])]


def captioned(classes: list[str], *texts: str | Caption) -> Record:
    made = record(classes, [])
    made.captions = [each if isinstance(each, Caption) else Caption(each) for each in texts]
    return made


@pytest.mark.parametrize(("text", "classes", "expected"), [
    ("Two SKIERS go downhill.", ["person", "skis"], ["skiing on skis"]),
    ("a snow-boarder", ["person", "snowboard", "skis"], ["snowboarding on snowboard"]),
    ("a man rides a big blue wave", ["person", "surfboard"], ["surfing on surfboard"]),
    ("a man rides a horse", ["person", "surfboard"], []),
    ("a boy sitting at a table", ["person", "couch", "chair"], ["sitting on chair"]),
    ("a boy sitting on a bench", ["person", "chair"], []),
    ("a boy sitting down in the grass", ["person", "chair"], []),
    ("a batter swings at a ball", ["person", "baseball bat"], ["holding baseball bat", "swinging baseball bat"]),
    ("a skier", ["skis"], []), ("a skier", ["person"], []),
    ("skiers and a skier skiing", ["person", "skis"], ["skiing on skis"]),
])  # fmt: skip
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
STATEMENTS = st.lists(st.tuples(WORDS, TEXTS, WORDS), max_size=8)
CROWDS = st.sets(st.integers(0, 7), max_size=2).map(tuple)
RECORDS = st.lists(st.builds(record, st.lists(CLASSES, max_size=8), STATEMENTS, CROWDS), max_size=4)


@cache
def _stage_of(match: str) -> PairStage:
    return stage(match=match)


@pytest.mark.parametrize("match", ["head", "substring"])
@given(data=st.data())
def test_invariants_of_pairs(match: str, data: st.DataObject) -> None:
    made = _stage_of(match)
    records = data.draw(RECORDS)
    alone = [pairs(made([copy.deepcopy(each)])[0]) for each in records]
    assert [pairs(found) for found in made(records)] == alone
    for found in records:
        order = [(pair.subject, pair.object) for pair in found.pairs]
        assert order == sorted(set(order))
        for pair in found.pairs:
            subject, object_ = found.objects[pair.subject], found.objects[pair.object]
            assert pair.subject != pair.object
            assert not subject.iscrowd | object_.iscrowd
            stated = [
                triplet.predicate if match == "substring" else triplet.predicate.lower().strip()
                for triplet in found.triplets
                if (triplet.subject_category, triplet.object_category) == (subject.category, object_.category)
            ]
            assert pair.predicates == list(dict.fromkeys(stated))


TABLE = {"person": ["man", "woman"], "horse": ["pony"], "dog": []}


def test_predicates_are_distinct_and_in_order_of_appearance() -> None:
    stated = "young man,Riding,a pony;woman,ON ,horse;man,riding,horse;man,near,horse;horse,near,fence;dog,,man"
    parts = [relation.split(",") for relation in stated.split(";")]
    relations = [{"subject": {"name": s}, "predicate": text, "object": {"name": o}} for s, text, o in parts]
    graphs = [{"image_id": at, "relationships": part} for at, part in enumerate((relations[:3], relations[3:]))]
    assert collect_prior(graphs, HeadMatcher(TABLE)) == {("person", "horse"): ["riding", "on", "near"]}


@pytest.mark.parametrize("named", [{"name": "man"}, {"names": ["man", "guy"]}, {"names": "man"}])
def test_all_layouts_of_visual_genome(tmp_path: Path, named: dict[str, Any]) -> None:
    inline = {"predicate": "ON ", "subject": named, "object": {"names": ["horse"]}}
    path = tmp_path / "relationships.json"
    path.write_text(json.dumps([{"image_id": 1, "relationships": [inline]}, {"image_id": 2, "relationships": []}]))
    made = stage(candidates="prior", prior=path)
    assert pairs(made([record(["horse", "person", "person"], [], crowds=(2,))])[0]) == [(1, 0, ["on"])]


@pytest.mark.parametrize("content", [
    '[{"image_id": 1, "relationships": [', '{"images": [{"id": 1}]}', "[3]",
    '[{"image_id": 7, "relationships": [{"subject_id": 1}]}]', '[{"image_id": 7, "relationships": []}]',
    '[{"image_id": 7, "relationships": [{"predicate": "on", "subject": {"name": 3}}]}]',
])  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prior.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_prior(path, HeadMatcher(TABLE))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


PARSE, PLAIN = ParseStage(ParseConfig()), ParseStage(ParseConfig(attributes=False))


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    for each in (PARSE, PLAIN):
        each.setup()


def described(made: Record, parse: ParseStage = PARSE) -> list[list[tuple[str, int | None]]]:
    [found] = _stage_of("head")(parse([made]))
    assert found.mentions is None
    return [[(each.name, each.caption) for each in box.attributes] for box in found.objects]


@pytest.mark.parametrize(("classes", "captions", "expected"), [
    (["car", "dog"], ["a car", "a red car near a dog"], [[("red", 1)], []]),
    (["dog", "dog"], ["two brown dogs"], [[("two", 0), ("brown", 0)]] * 2),
    (["dog", "dog", "dog"], ["two brown dogs"], [[], [], []]),
    (["dog", "dog"], ["three dogs", "a brown dog", "brown dogs"], [[], []]),
    (["person"], ["a tall man and a young woman", "an old man"], [[("old", 1)]]),
    (["person", "cup"], ["a man with a cold beer", "a white mug"], [[], [("white", 1)]]),
    (["car"], ["a red truck"], [[]]), (["car"], ["a red car", "a red car"], [[("red", 0), ("red", 1)]]),
    ([], ["a red car"], []),
])  # fmt: skip
def test_attributes_are_of_the_only_objects_that_a_caption_can_mean(
    classes: list[str], captions: list[str], expected: list[list[tuple[str, int]]]
) -> None:
    assert described(captioned(classes, *captions)) == expected
    crowd = captioned(["sheep"], "white sheep")
    crowd.objects[0].iscrowd = True
    assert described(crowd) == [[]]


def test_a_grounded_box_is_described_by_its_phrase_and_a_region_by_its_caption() -> None:
    made = captioned(["dog", "dog", "bicycle"], "a small puppy and a big dog", "three wet puppies")
    made.objects[1] = replace(made.objects[1], origin="grounded", phrase="puppy, pup")
    assert described(made) == [[], [("small", 0)], []]
    made = captioned(["bottle", "beer"], "a cold beer")
    assert described(made) == [[], []]
    made.objects[1] = replace(made.objects[1], origin="grounded", phrase="beer")
    assert described(made) == [[], [("cold", 0)]]
    made = captioned(["car", "car"], Caption("a red car", "box", [1]), Caption("a blue car", "box", [0]))
    assert described(made) == [[("blue", 1)], [("red", 0)]]


def test_annotated_attributes_stay_and_those_of_captions_are_replaced_where_these_are_parsed() -> None:
    made = captioned(["car"], "a red car")
    made.objects[0].attributes = own = [Attribute("shiny"), Attribute("green", 3)]
    [taken_over] = stage()([copy.deepcopy(made)])
    assert taken_over.objects[0].attributes == own
    assert described(made) == [[("shiny", None), ("red", 0)]]


CAPTIONS = ("a red car next to two dogs", "two brown dogs", "a big dog", "a tall man with a small dog", "a skier", "")


@given(
    st.lists(st.sampled_from(["car", "dog", "person", "skis"]), max_size=6),
    st.lists(st.sampled_from(CAPTIONS), max_size=4),
)
def test_attributes_change_nothing_else(classes: list[str], captions: list[str]) -> None:
    with_attributes, without = captioned(classes, *captions), captioned(classes, *captions)
    given_names = described(with_attributes)
    assert described(without, PLAIN) == [[]] * len(classes)
    assert (with_attributes.triplets, with_attributes.pairs) == (without.triplets, without.pairs)
    for names, name in zip(given_names, classes, strict=True):
        assert not names or classes.count(name) == 1 or (name, classes.count(name)) == ("dog", 2)
