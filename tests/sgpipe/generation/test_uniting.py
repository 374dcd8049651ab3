"""The labels of one image in several runs, united."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.generation import merging
from sgpipe.generation.uniting import are_synonyms, unite
from sgpipe.records import NO_OBJECT, Attribute, Box, Caption, Pair, Record, Relation, Triplet
from tests.sgpipe.generation.merged_scenes import detected, person, scene

IOU = 0.6
# A coarse grid, so that many boxes overlap by about the least.
sides = st.sampled_from([10.0, 11.0, 13.0, 20.0])
boxes = st.builds(
    Box, st.sampled_from(["person", "man", "woman", "Dog", "dogs", "ufo"]), st.just(1),
    st.tuples(st.sampled_from([0.0, 1.0, 4.0, 30.0]), st.sampled_from([0.0, 2.0]), sides, sides),
    st.sampled_from([False, False, False, True]), st.sampled_from(["annotation", "detector", "grounded"]),
    st.sampled_from([None, 0.25, 0.5]), st.sampled_from([None, "a phrase"]), st.just([]),
    st.sampled_from([None, "[[1,2,3,4,5,6]]"]),
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn, name: str = "0") -> Record:
    objects = draw(st.lists(boxes, max_size=5))
    record = scene(
        name, *(replace(box, attributes=[Attribute(f"of {n}")]) for n, box in enumerate(objects))
    )
    record.captions = list(
        map(Caption, draw(st.lists(st.sampled_from(["a man", "a dog"]), max_size=2)))
    )
    if record.captions:
        matched = draw(st.sampled_from([None, "person"]))
        record.triplets = [
            Triplet("man", "on", "dog", "man", "dog", "on", len(record.captions) - 1, matched)
        ]
    if objects:
        ends = st.integers(0, len(objects) - 1)
        record.captions.append(Caption("a man", "box", [draw(ends)]))
        record.objects[0].attributes.append(Attribute("red", len(record.captions) - 1))
        predicates, origins = map(
            st.sampled_from, (["on", "On", "left of", "right of"], ["tagger", "annotated"])
        )
        scores = st.sampled_from([None, 0.25, 0.75])
        record.relations = draw(
            st.lists(st.builds(Relation, ends, ends, predicates, scores, origins), max_size=4)
        )
        record.pairs = [
            Pair(relation.subject, relation.object, [relation.predicate])
            for relation in record.relations[:2]
        ]
    if draw(st.integers(0, 9)) == 0:
        record.relations = []
        record.fail("load", "missing")
    return record


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4))
def test_everything_is_there_once(inputs):
    """An object's members are told by their attributes."""
    inputs = [replace(record, status="ok", error=None) for record in inputs]
    for run, record in enumerate(inputs):
        for box in record.objects:
            box.attributes[0].name = f"{run} {box.attributes[0].name}"
    united, counts = unite(inputs, IOU)
    united_object = {
        attribute.name: number
        for number, box in enumerate(united.objects)
        for attribute in box.attributes
        if "of" in attribute.name
    }
    check_objects(inputs, united, united_object, counts["united_objects"])
    check_relations(inputs, united, united_object)
    check_captions(inputs, united)


def check_objects(inputs, united, united_object, united_count):
    """Each box is a member of one object, and objects are as large as they can be."""
    all_boxes = {
        box.attributes[0].name: (run, box)
        for run, record in enumerate(inputs)
        for box in record.objects
    }
    assert united_object.keys() == all_boxes.keys()
    groups = [[] for _ in united.objects]
    for name, number in united_object.items():
        groups[number].append(all_boxes[name])
    assert all(joinable(*pair) for group in groups for pair in combinations(group, 2))
    for first, second in combinations(groups, 2):  # nothing more can be united
        assert not all(joinable(*pair) for pair in product(first, second))
    for box, group in zip(united.objects, groups, strict=True):
        check_object(box, [member for _, member in group])
    assert united_count == sum(len(group) > 1 for group in groups)


def check_object(united, members):
    """An object has the box and the class of its strongest member, and all that any member has."""
    strongest = min(
        members,
        key=lambda box: ("adg".index(box.origin[0]), -(box.score or 0), box.rank),
    )
    assert united.bbox == strongest.bbox
    assert united.category == strongest.category
    assert united.score == strongest.score
    for name in ("phrase", "segmentation"):
        is_missing = all(getattr(box, name) is None for box in members)
        assert (getattr(united, name) is None) == is_missing


def check_relations(inputs, united, united_object):
    """A relation is there as often as in the run that has it most often."""
    wanted = Counter()
    for record in inputs:
        of_run = Counter()
        places = [united_object[box.attributes[0].name] for box in record.objects]
        for relation in record.relations:
            ends = (places[relation.subject], places[relation.object])
            of_run[*ends, relation.predicate.lower()] += 1
        wanted |= of_run
    assert wanted == Counter(
        (relation.subject, relation.object, relation.predicate.lower())
        for relation in united.relations
    )


def check_captions(inputs, united):
    """So is a caption of the image; all captions, and attributes out of them, name what there is."""
    wanted = Counter()
    for record in inputs:
        wanted |= image_captions(record)
    assert image_captions(united) == wanted
    for box in united.objects:
        for attribute in box.attributes:
            if attribute.caption is not None:
                assert united.captions[attribute.caption].text in ("a man", "a dog")
    for caption in united.captions:
        assert all(0 <= box < len(united.objects) for box in caption.boxes)


def image_captions(record):
    return Counter(caption.text for caption in record.captions if caption.scope == "image")


def joinable(first: tuple[int, Box], second: tuple[int, Box]) -> bool:
    (run, one), (other_run, other) = first, second
    (x, y, w, h), (a, b, c, d) = one.bbox, other.bbox
    shared = max(0.0, min(x + w, a + c) - max(x, a)) * max(0.0, min(y + h, b + d) - max(y, b))
    near = max(abs(x - a), abs(y - b), abs(x + w - a - c), abs(y + h - b - d)) <= 1
    overlaps = near or shared / (w * h + c * d - shared) >= IOU
    return (
        run != other_run
        and one.iscrowd == other.iscrowd
        and overlaps
        and are_synonyms(one.category, other.category)
    )


@pytest.mark.parametrize(
    ("first", "second", "objects"),
    [
        (person(), person(11, 9, 20, 40), 1),
        (person(1, 1, 3, 3), person(2, 2, 3, 3), 1),  # a pixel is much for a small box
        (person(), person(10, 10, 20, 20), 2),  # half of the area
        (person(), person(10, 10, 40, 80), 2), (person(), person(10, 10, 20, 32), 1),
        (person(), person(category="man"), 1), (person(category="man"), person(category="woman"), 2),
        (person(category="window"), person(category="Windows "), 1),
        (person(category="ufo"), person(category="person"), 2), (person(), person(iscrowd=True), 2),
        (Box(NO_OBJECT, -1, (0, 0, 0, 0)), Box(NO_OBJECT, -1, (0, 0, 0, 0)), 1),
    ],
)  # fmt: skip
def test_boxes_of_one_object(first, second, objects):
    united, counts = unite([scene("0", first), scene("0", second)], IOU)
    assert len(united.objects) == objects
    # a run's own objects stay apart
    assert len(unite([scene("0", first, second)], IOU)[0].objects) == 2
    assert counts["contradictory_classes"] == (
        objects == 2 and first.bbox == second.bbox and not second.iscrowd
    )


def test_of_boxes_that_overlap_those_are_united_that_overlap_most():
    near = [person(10), person(13)]
    united, _ = unite(
        [scene("0", *near), scene("0", *(detected(box.bbox[0] + 1, 10, 20, 40) for box in near))],
        IOU,
    )
    assert united.objects == near


def test_relations_keep_the_strongest_confidence_and_all_origins_and_contradictions_are_counted():
    two = (person(), person(50, category="dog"))
    scenes = [
        scene(
            "0",
            *two,
            relations=[Relation(0, 1, "Left of", 0.4, "clip"), Relation(1, 0, "on", 0.9, "robot")],
        ),
        scene(
            "0",
            *reversed(two),
            relations=[Relation(1, 0, "left of"), Relation(1, 0, "under", 0.2, "clip+vlm")],
        ),
        scene(
            "0",
            *two,
            relations=[
                Relation(1, 0, "left of", 0.9, "tagger"),
                Relation(1, 0, "on", 0.8, "tagger"),
            ],
        ),
    ]
    united, counts = unite(scenes, IOU)
    assert united.relations == [
        Relation(0, 1, "left of", None, "annotated+clip"), Relation(1, 0, "on", 0.8, "tagger+robot"),
        Relation(0, 1, "under", 0.2, "clip+vlm"), Relation(1, 0, "left of", 0.9, "tagger"),
    ]  # fmt: skip
    assert united.relations[0].origins == ["annotated", "clip"]
    assert [counts[name] for name in merging.UNITED] == [2, 2, 0, 1, 0, 0]
