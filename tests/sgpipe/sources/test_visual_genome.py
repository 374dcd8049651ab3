import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.scene_graphs import MAX_RELATIONS, VisualGenome, load_aliases, pixel_iou, remove_redundant

GRAPH = {
    "image_id": 7,
    "objects": [
        {"object_id": 1, "x": 0, "y": 0, "w": 9, "h": 9, "names": ["Man"]},
        {"object_id": 2, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["men"]},
        {"object_id": 3, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["man"]},
    ],
    "relationships": [
        {"predicate": "ON", "subject_id": 1, "object_id": 2},
        {"predicate": "on", "subject_id": 1, "object_id": 2},
        {"predicate": "on", "subject_id": 1, "object_id": 3},
        {"predicate": "", "subject_id": 1, "object_id": 3},
    ],
}


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "scene_graphs.json").write_text(json.dumps([GRAPH]))
    (tmp_path / "images").mkdir()

    def make(**options) -> VisualGenome:
        return VisualGenome(tmp_path / "scene_graphs.json", tmp_path / "images", "train", **options)

    return make


def read(genome: VisualGenome):
    problems: Counter[str] = Counter()
    (record,) = genome.source().read(problems)
    return record, +problems


def test_preprocessing_is_the_default_and_can_be_switched_off(genome):
    record, problems = read(genome())
    assert record.relations == [Relation(0, 1, "on"), Relation(0, 2, "on")]
    assert problems == {"repeated_relations": 1, "nameless": 1}
    record, problems = read(genome(preprocess=False))
    assert [relation.predicate for relation in record.relations] == ["ON", "on", "on"]
    assert problems == {"nameless": 1}
    assert record.objects[0].category == "Man"


def test_sizes_come_from_image_data(genome, tmp_path):
    sizes = tmp_path / "image_data.json"
    sizes.write_text(json.dumps([{"image_id": 8, "width": 1, "height": 1}, {"image_id": 7, "width": 80, "height": 60}]))
    record, _ = read(genome(image_data=sizes))
    assert (record.width, record.height) == (80, 60)
    assert read(genome())[0].width == 0
    with pytest.raises(UserError, match=r"scene_graphs\.json is scene graphs .*not Visual Genome's image_data"):
        genome(image_data=tmp_path / "scene_graphs.json").source()


@pytest.mark.parametrize("place", ["7.jpg", "VG_100K/7.jpg", "VG_100K_2/7.jpg"])
def test_images_are_found_in_the_folders_of_the_downloads(genome, place):
    image = genome().images / place
    image.parent.mkdir(exist_ok=True)
    image.touch()
    assert read(genome())[0].file_name == place


def test_real_records_lose_only_counted_relations(oracle, tmp_path):
    """As many relations remain as after the published preprocessing of these records with these aliases."""
    data = oracle / "data/vg"
    (tmp_path / "images").mkdir()
    for suffix, count, left in (("", 41, 35), ("2", 23, 22), ("3", 50, 44)):
        genome = VisualGenome(data / f"vadbeg_relationships{suffix}.json", tmp_path, "train", preprocess=False)
        raw, problems = read(genome)
        assert (len(raw.relations), problems) == (count, {})
        aliases = (data / "danfeix_object_alias.txt", data / "danfeix_predicate_alias.txt")
        record, problems = read(VisualGenome(genome.annotations, tmp_path, "train", None, *aliases))
        assert len(record.relations) == left == count - problems.total()
        facts = [(relation.subject, relation.object, relation.predicate) for relation in record.relations]
        assert len(set(facts)) == len(facts)
        assert problems["repeated_relations"] > 0


def record(objects, relations) -> Record:
    boxes = [Box(name, 0, box) for name, box in objects]
    return Record("1", "d", "val", "1.jpg", 500, 500, objects=boxes, relations=[Relation(*r) for r in relations])


def removed(image: Record, aliases: tuple[dict, dict] = ({}, {})) -> tuple[list, dict]:
    problems: Counter[str] = Counter()
    remove_redundant(image, *aliases, problems)
    return [(r.subject, r.object, r.predicate) for r in image.relations], dict(+problems)


HERE, NEARLY, THERE = (0, 0, 99, 99), (0, 0, 99, 74), (200, 200, 50, 50)


def test_repeated_relations_are_removed_regardless_of_case():
    image = record([("Man", HERE), ("hat", THERE)], [(0, 1, "Wears"), (1, 0, "on"), (0, 1, "wears"), (0, 1, "WEARS")])
    assert removed(image) == ([(0, 1, "wears"), (1, 0, "on")], {"repeated_relations": 2})
    assert [box.category for box in image.objects] == ["man", "hat"]


def test_redundant_relations_of_overlapping_boxes_are_removed():
    image = record([("man", HERE), ("man", NEARLY), ("man", THERE), ("hat", THERE)],
                   [(0, 3, "wears"), (1, 3, "wears"), (2, 3, "wears"), (1, 3, "has")])  # fmt: skip
    assert removed(image) == ([(0, 3, "wears"), (2, 3, "wears"), (1, 3, "has")], {"redundant_relations": 1})


def test_aliases_compare_as_equal_but_keep_their_words():
    objects = [("man", HERE), ("men", NEARLY), ("hat", THERE), ("cap", THERE)]
    aliases = ({"man": "man", "men": "man", "cap": "hat"}, {"wearing": "wears"})
    kept, problems = removed(record(objects, [(1, 3, "wearing"), (0, 2, "wears"), (0, 2, "has")]), aliases)
    assert kept == [(1, 3, "wearing"), (0, 2, "has")]
    assert problems == {"redundant_relations": 1}


def test_at_most_a_hundred_relations_are_kept():
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
        ((0, 0, 9, 9), (9, 0, 9, 9), 0.0),  # one common column of pixels, which the published code ignores
        ((0, 0, 9, 9), (50, 50, 9, 9), 0.0),
    ],
)
def test_pixel_iou(a, b, value):
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


def test_published_alias_tables(oracle):
    objects = load_aliases(oracle / "data/vg/danfeix_object_alias.txt")
    predicates = load_aliases(oracle / "data/vg/danfeix_predicate_alias.txt")
    assert objects["bikes are"] == objects["bikes"] == "bike"
    assert predicates["carrying a kite on a"] == "carrying a kite on"
