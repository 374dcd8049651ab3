from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.visual_genome import MAX_RELATIONS, AliasTables, load_aliases, pixel_iou, remove_redundant


def record(objects, relations) -> Record:
    boxes = [Box(name, 0, box) for name, box in objects]
    return Record("1", "d", "val", "1.jpg", 500, 500, objects=boxes, relations=[Relation(*r) for r in relations])


def removed(image: Record, aliases: AliasTables | None = None) -> tuple[list, dict]:
    problems: Counter[str] = Counter()
    remove_redundant(image, aliases or AliasTables(), problems)
    return [(r.subject, r.object, r.predicate) for r in image.relations], dict(+problems)


HERE, NEARLY, THERE = (0, 0, 99, 99), (0, 0, 99, 74), (200, 200, 50, 50)


def test_repeated_relations_count_once_whatever_their_case():
    image = record([("Man", HERE), ("hat", THERE)], [(0, 1, "Wears"), (1, 0, "on"), (0, 1, "wears"), (0, 1, "WEARS")])
    assert removed(image) == ([(0, 1, "wears"), (1, 0, "on")], {"repeated_relations": 2})
    assert [box.category for box in image.objects] == ["man", "hat"]


def test_the_same_fact_about_overlapping_boxes_counts_once():
    image = record([("man", HERE), ("man", NEARLY), ("man", THERE), ("hat", THERE)],
                   [(0, 3, "wears"), (1, 3, "wears"), (2, 3, "wears"), (1, 3, "has")])  # fmt: skip
    assert removed(image) == ([(0, 3, "wears"), (2, 3, "wears"), (1, 3, "has")], {"redundant_relations": 1})


def test_both_boxes_must_overlap_and_both_classes_agree():
    objects = [("man", HERE), ("man", NEARLY), ("boy", HERE), ("hat", THERE), ("hat", HERE), ("cap", THERE)]
    relations = [(0, 3, "wears"), (1, 4, "wears"), (2, 3, "wears"), (0, 5, "wears")]
    assert removed(record(objects, relations)) == (relations, {})


def test_aliases_make_words_the_same_but_keep_them():
    objects = [("man", HERE), ("men", NEARLY), ("hat", THERE), ("cap", THERE)]
    aliases = AliasTables({"man": "man", "men": "man", "cap": "hat"}, {"wearing": "wears"})
    kept, problems = removed(record(objects, [(1, 3, "wearing"), (0, 2, "wears"), (0, 2, "has")]), aliases)
    assert kept == [(1, 3, "wearing"), (0, 2, "has")]
    assert problems == {"redundant_relations": 1}


def test_what_was_removed_removes_nothing():
    """Boxes a, b, c in a row, each overlapping the next: b goes because of a, c stays."""
    a, b, c = (0, 0, 99, 99), (0, 15, 99, 99), (0, 30, 99, 99)
    image = record([("man", a), ("man", b), ("man", c), ("hat", THERE)], [(i, 3, "wears") for i in range(3)])
    assert [relation[0] for relation in removed(image)[0]] == [0, 2]


def test_no_more_than_a_hundred_after_the_others_are_gone():
    objects = [("man", HERE), ("hat", THERE)]
    relations = [(0, 1, f"p{i // 2}") for i in range(230)]
    kept, problems = removed(record(objects, relations))
    assert kept == [(0, 1, f"p{i}") for i in range(MAX_RELATIONS)]
    assert problems == {"repeated_relations": 115, "relations_beyond_100": 15}


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (0, 0, 9, 4), 0.5),  # 10 x 10 pixels and 10 x 5
        ((0, 0, 9, 9), (5, 0, 9, 9), 50 / 150),
        ((0, 0, 9, 9), (9, 0, 9, 9), 0.0),  # one column of pixels in common, which the published code ignores
        ((0, 0, 9, 9), (50, 50, 9, 9), 0.0),
    ],
)
def test_overlap_counts_whole_pixels(a, b, value):
    assert pixel_iou(Box("x", 0, a), Box("x", 0, b)) == pytest.approx(value)
    assert pixel_iou(Box("x", 0, b), Box("x", 0, a)) == pytest.approx(value)


def test_alias_tables(tmp_path):
    path = tmp_path / "alias.txt"
    path.write_text("tree,trees,tree is\nbush\nplant,trees\n")
    assert load_aliases(path) == {"tree": "tree", "trees": "plant", "tree is": "tree", "bush": "bush", "plant": "plant"}
    assert load_aliases(None) == {}
    path.write_text("tree\nbush\n")
    with pytest.raises(UserError, match="found no comma"):
        load_aliases(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_aliases(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        load_aliases(path)


def test_published_alias_tables(oracle):
    objects = load_aliases(oracle / "data/vg/danfeix_object_alias.txt")
    predicates = load_aliases(oracle / "data/vg/danfeix_predicate_alias.txt")
    assert objects["bikes are"] == objects["bikes"] == "bike"
    assert predicates["carrying a kite on a"] == "carrying a kite on"
