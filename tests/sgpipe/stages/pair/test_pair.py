"""The pair stage: nouns and classes, candidate pairs of boxes, priors of Visual Genome, and whose
attributes are.
"""

import copy
import json
import tracemalloc
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, ParseConfig
from sgpipe.records import Attribute, Box, Caption, Pair, Record, Triplet
from sgpipe.sources.vocabulary import loose_words, packaged_synonyms
from sgpipe.stages import pair as pairing
from sgpipe.stages.matching import HeadMatcher, SubstringMatcher
from sgpipe.stages.pair import PairStage, candidate_pairs, collect_prior, read_prior
from sgpipe.stages.parse.stage import ParseStage
from tests.values import values_of

COCO = HeadMatcher(packaged_synonyms("coco"))
OBJECTS365 = HeadMatcher(packaged_synonyms("objects365"))
LOOSE = HeadMatcher(packaged_synonyms("coco"), loose=loose_words())
NAMES = st.sampled_from(["person", "dog", "kite"])
SIDES = st.integers(1, 12).map(float)
CROWD = st.sampled_from([False] * 4 + [True])
OBJECTS = st.lists(st.builds(Box, NAMES, st.just(1), st.tuples(*[SIDES] * 4), CROWD), max_size=12)
OF_PAIR = st.lists(st.sampled_from(["on", "near", "holding"]), max_size=3, unique=True)
PREDICATES = st.dictionaries(st.tuples(NAMES, NAMES), OF_PAIR)
TABLE = {"person": ["man", "woman"], "horse": ["pony"], "dog": []}


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
    for phrase, wrong in (
        ("carrot", "car"),
        ("woman", "man"),
        ("chair", "hair"),
        ("cattle", "cat"),
    ):
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
    matcher = HeadMatcher(
        {"plate": ["!license plate"], "number": ["license plate"], "dish": ["plate"]}
    )
    assert matcher.classes("license plates", "plate") == ("number",)
    assert matcher.classes("plates", "plate") == ("plate", "dish")
    assert HeadMatcher({}, ["box"], {"crate": ("box", "cat")}).classes("crates") == ("box",)


@pytest.mark.parametrize("dataset", ["coco", "objects365"])
def test_every_synonym_of_the_packaged_tables_reaches_its_class_whatever_loose_words_there_are(
    dataset: str,
) -> None:
    table = packaged_synonyms(dataset)
    strict = HeadMatcher(table)
    loose = HeadMatcher(table, loose=loose_words())
    for name, phrases in table.items():
        assert strict.classes(name)[0] == name
        for phrase in phrases:
            strict_classes = strict.classes(phrase.removeprefix("!"))
            assert (name in strict_classes) != phrase.startswith("!"), f"{phrase!r} under {name!r}"
            assert (
                loose.classes(phrase.removeprefix("!"))[: len(strict_classes)] == strict_classes
            ), phrase


def overlap(first: Box, second: Box) -> bool:
    return all(
        first.bbox[side] < second.bbox[side] + second.bbox[side + 2]
        and second.bbox[side] < first.bbox[side] + first.bbox[side + 2]
        for side in (0, 1)
    )


def by_hand(
    objects: list[Box], predicates: dict[tuple[str, str], list[str]], overlaps: bool
) -> list[Pair]:
    """A loop over every ordered pair, as in RLIPv2."""
    usable = [index for index, box in enumerate(objects) if not box.iscrowd]
    pairs = [
        (i, j, predicates.get((objects[i].category, objects[j].category)))
        for i, j in permutations(usable, 2)
    ]
    return [
        Pair(i, j, texts)
        for i, j, texts in pairs
        if texts and (not overlaps or overlap(objects[i], objects[j]))
    ]


@given(OBJECTS, PREDICATES, st.booleans())
def test_equals_a_loop_over_all_pairs(objects: list[Box], predicates: dict, overlaps: bool) -> None:
    candidates = candidate_pairs(objects, predicates, require_overlap=overlaps)
    assert candidates == (by_hand(objects, predicates, overlaps), 0)


@given(OBJECTS, PREDICATES, st.booleans(), st.integers(1, 40))
def test_limit_keeps_pairs_of_the_largest_boxes_and_counts_the_others(
    objects: list[Box], predicates: dict, overlaps: bool, limit: int
) -> None:
    every = by_hand(objects, predicates, overlaps)
    candidates, beyond = candidate_pairs(objects, predicates, require_overlap=overlaps, limit=limit)
    order = sorted(range(len(objects)), key=lambda i: objects[i].rank)
    rank = {index: position for position, index in enumerate(order)}

    def smaller_box(pair: Pair) -> tuple[int, int, int]:
        first = rank[pair.subject]
        second = rank[pair.object]
        return max(first, second), min(first, second), first

    largest = sorted(every, key=smaller_box)[:limit]
    assert candidates == sorted(largest, key=lambda pair: (pair.subject, pair.object))
    assert beyond == len(every) - len(largest) or (
        overlaps and len(largest) == limit and beyond > len(every) - limit
    )


def test_a_hundred_thousand_boxes_need_little_memory() -> None:
    random = np.random.default_rng(0)
    sides = random.uniform(1, 60, (100_000, 2))
    corners = random.uniform(0, 600, (100_000, 2))
    boxes = enumerate(np.hstack([corners, sides]).tolist())
    objects = [Box("person" if index % 5 else "dog", 1, tuple(box)) for index, box in boxes]
    tracemalloc.start()
    predicates = {("person", "person"): ["near"], ("person", "dog"): ["walking"]}
    pairs, beyond = candidate_pairs(objects, predicates, limit=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(values_of(pairs, "subject", "object"))) == len(pairs) == 10_000
    assert beyond == 80_000 * 79_999 + 80_000 * 20_000 - 10_000
    assert peak < 300 << 20


def stage(categories: tuple[str, ...] = (), dataset: str = "coco", **settings: object) -> PairStage:
    pair_stage = PairStage(PairConfig(**settings), dataset, categories)
    pair_stage.setup()
    return pair_stage


def record(
    classes: list[str], statements: list[tuple[str, str, str]], crowds: tuple[int, ...] = ()
) -> Record:
    boxes = [Box(name, 1, (10.0 * i, 0.0, 8.0, 8.0), i in crowds) for i, name in enumerate(classes)]
    triplets = [
        Triplet(s, text, o, s.split()[-1], o.split()[-1], text, 0) for s, text, o in statements
    ]
    return Record("1", "coco", "val", "1.jpg", 640, 480, boxes, triplets=triplets)


def pairs(result: Record) -> list[tuple[int, int, list[str]]]:
    return values_of(result.pairs, "subject", "object", "predicates")


def test_triplets_become_pairs_of_matching_boxes() -> None:
    statements = [
        ("two men", "Riding", "brown horses"), ("a dog", "near", "the man"), ("man", "riding", "a horse"),
        ("woman", "on", "horse"), ("a man", "wearing", "hat"),
    ]  # fmt: skip
    [paired] = stage()([record(["horse", "person", "person", "dog", "cat"], statements)])
    assert pairs(paired) == [
        (1, 0, ["riding", "on"]),
        (2, 0, ["riding", "on"]),
        (3, 1, ["near"]),
        (3, 2, ["near"]),
    ]
    named = values_of(paired.triplets, "subject_category", "object_category")
    assert named == [
        ("person", "horse"),
        ("dog", "person"),
        *[("person", "horse")] * 2,
        ("person", None),
    ]
    [as_in_rlipv2] = stage(match="substring")(
        [record(["dog", "person"], [("craftsman", "Near ", "dog")])]
    )
    assert pairs(as_in_rlipv2) == [(1, 0, ["Near "])]


def test_classes_are_of_the_annotations_beside_the_packaged_table_or_a_custom_one(
    tmp_path: Path,
) -> None:
    balls = record(["red ball", "wooden box"], [("red balls", "in", "a wooden box")])
    assert pairs(stage(("red ball", "wooden box"), dataset="miniworld")([balls])[0]) == [
        (0, 1, ["in"])
    ]
    helmet = record(["person", "helmet"], [("a rider", "with", "a helmet")])
    assert pairs(stage(("helmet", "person"))([helmet])[0]) == [(0, 1, ["with"])]
    table = tmp_path / "table.json"
    table.write_text('{"person": ["gondolier"]}')
    boat = record(["person", "boat"], [("gondolier", "in", "boat"), ("man", "on", "boat")])
    assert pairs(stage(synonyms=table)([boat])[0]) == [(0, 1, ["in"])]


def captioned(classes: list[str], *texts: str | Caption) -> Record:
    described_record = record(classes, [])
    described_record.captions = [
        text if isinstance(text, Caption) else Caption(text) for text in texts
    ]
    return described_record


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
def test_a_caption_implies_things_that_have_a_box(
    text: str, classes: list[str], expected: list[str]
) -> None:
    implied = pairing.implied_triplets(captioned(classes, "a photograph", text))
    assert [f"{triplet.predicate} {triplet.object_category}" for triplet in implied] == expected
    assert all((triplet.subject_category, triplet.caption) == ("person", 1) for triplet in implied)


def test_implied_things_are_candidates_after_what_is_stated_unless_the_recipe_is_strict() -> None:
    skier = captioned(["person", "skis"], "a skier on skis")
    skier.triplets = record([], [("skier", "on", "skis")]).triplets
    assert pairs(stage()([skier])[0]) == [(0, 1, ["on", "skiing on"])]
    assert len(skier.triplets) == 1
    for settings in ({"loose": False}, {"match": "substring"}):
        assert pairs(stage(**settings)([skier])[0]) == [(0, 1, ["on"])]


def test_a_loose_word_never_relates_a_class_to_itself() -> None:
    statements = [
        ("pizza", "with", "crust"),
        ("woman", "eating", "crust"),
        ("pizza", "next to", "pizza"),
    ]
    [paired] = stage()([record(["pizza", "pizza", "person"], statements)])
    assert pairs(paired) == [
        (0, 1, ["next to"]),
        (1, 0, ["next to"]),
        (2, 0, ["eating"]),
        (2, 1, ["eating"]),
    ]


def test_any_pair_of_the_image_may_have_what_its_captions_state() -> None:
    statements = [
        ("cat", "Riding", "skateboard"),
        ("dog", "near", "tree"),
        ("cat", "riding", "board"),
    ]
    [paired] = stage(("dog", "skateboard"), candidates="image")(
        [record(["dog", "skateboard", "dog"], statements)]
    )
    assert pairs(paired) == [
        (s, o, ["riding", "near"]) for s in range(3) for o in range(3) if s != o
    ]
    assert paired.triplets[1].object_category is None
    [silent] = stage(("dog",), candidates="image")([record(["dog", "dog"], [])])
    assert silent.pairs == []


def test_predicates_are_distinct_and_in_order_of_appearance() -> None:
    stated = (
        "young man,Riding,a pony;woman,ON"
        " ,horse;man,riding,horse;man,near,horse;horse,near,fence;dog,,man"
    )
    parts = [relation.split(",") for relation in stated.split(";")]
    relations = [
        {"subject": {"name": s}, "predicate": text, "object": {"name": o}} for s, text, o in parts
    ]
    graphs = [
        {"image_id": at, "relationships": part}
        for at, part in enumerate((relations[:3], relations[3:]))
    ]
    assert collect_prior(graphs, HeadMatcher(TABLE)) == {
        ("person", "horse"): ["riding", "on", "near"]
    }


@pytest.mark.parametrize("named", [{"name": "man"}, {"names": ["man", "guy"]}, {"names": "man"}])
def test_all_layouts_of_visual_genome(tmp_path: Path, named: dict[str, Any]) -> None:
    inline = {"predicate": "ON ", "subject": named, "object": {"names": ["horse"]}}
    path = tmp_path / "relationships.json"
    path.write_text(
        json.dumps(
            [{"image_id": 1, "relationships": [inline]}, {"image_id": 2, "relationships": []}]
        )
    )
    pairing_stage = stage(candidates="prior", prior=path)
    assert pairs(pairing_stage([record(["horse", "person", "person"], [], crowds=(2,))])[0]) == [
        (1, 0, ["on"])
    ]


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


@cache
def ready(attributes: bool) -> tuple[ParseStage, PairStage]:
    parse = ParseStage(ParseConfig(attributes=attributes))
    parse.setup()
    return parse, stage()


def described(source: Record, attributes: bool = True) -> list[list[tuple[str, int | None]]]:
    parse, pair = ready(attributes)
    [paired] = pair(parse([source]))
    assert paired.mentions is None
    return [values_of(box.attributes, "name", "caption") for box in paired.objects]


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
    source = captioned(
        ["dog", "dog", "bicycle"], "a small puppy and a big dog", "three wet puppies"
    )
    source.objects[1] = replace(source.objects[1], origin="grounded", phrase="puppy, pup")
    assert described(source) == [[], [("small", 0)], []]
    source = captioned(["bottle", "beer"], "a cold beer")
    assert described(source) == [[], []]
    source.objects[1] = replace(source.objects[1], origin="grounded", phrase="beer")
    assert described(source) == [[], [("cold", 0)]]
    source = captioned(
        ["car", "car"], Caption("a red car", "box", [1]), Caption("a blue car", "box", [0])
    )
    assert described(source) == [[("blue", 1)], [("red", 0)]]


def test_annotated_attributes_stay_and_those_of_captions_are_replaced_where_these_are_parsed() -> (
    None
):
    source = captioned(["car"], "a red car")
    source.objects[0].attributes = annotated = [Attribute("shiny"), Attribute("green", 3)]
    [taken_over] = stage()([copy.deepcopy(source)])
    assert taken_over.objects[0].attributes == annotated
    assert described(source) == [[("shiny", None), ("red", 0)]]


def test_attributes_change_no_triplet_and_no_pair() -> None:
    texts = ("a red car next to two dogs", "a tall man with a small dog on big skis", "a skier")
    attributed, without = (captioned(["car", "dog", "person", "skis"], *texts) for _ in range(2))
    assert any(described(attributed))
    assert described(without, attributes=False) == [[]] * 4
    assert (attributed.triplets, attributed.pairs) == (without.triplets, without.pairs)
    assert len(attributed.pairs) > 2
