"""Visual Genome's scene graphs with RLIPv2's preprocessing, and RLIPv2's pseudo-labels."""

import gzip
import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource, read_records
from sgpipe.sources.pseudo_labels import pseudo_label_source
from sgpipe.sources.visual_genome import (
    MAX_RELATIONS,
    add_graph,
    graph_record,
    iter_graphs,
    load_aliases,
    remove_redundant,
    visual_genome_source,
)
from tests.values import values_of

# the IoU of pixels is 0.7, not 69 / 99
HERE = (0, 0, 99, 99)
NEARLY = (0, 0, 99, 69)
THERE = (200, 200, 50, 50)
MAN = ("man", HERE)
HAT = ("hat", THERE)
REDUNDANT = {"redundant_relations": 1}


def thing(number, **more):
    return {"object_id": number, "x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"], **more}


def read(item) -> tuple[Record | None, Counter]:
    problems: Counter[str] = Counter()

    def start(item: object) -> Record:
        return graph_record(item, "d", "val")

    def fill(record: Record, item: object) -> None:
        add_graph(record, item, problems)

    records = list(read_records([item], start, fill, problems))
    return records[0] if records else None, +problems


def related(subject, object_, predicate="on", **more):
    return {"predicate": predicate, "subject_id": subject, "object_id": object_, **more}


def test_relations_by_id_and_inline_and_all_kinds_of_names():
    """The last of several objects with the same id replaces the first."""
    inline = {"subject": thing(9, names="Cat"), "object": {**thing(5), "names": ["man", "person"]}}
    person = {"object_id": 5, "x": 0, "y": 0, "w": 1, "h": 1, "name": "person"}
    relationships = [related(5, 7, "ON"), {"predicate": "by", **inline}]
    record, problems = read(
        {"image_id": 3, "objects": [person, thing(7, names="hat")], "relationships": relationships}
    )
    assert not problems
    assert (record.image_id, record.file_name, record.width) == ("3", "3.jpg", 0)
    assert values_of(record.objects, "category") == ["man", "hat", "Cat"]
    assert record.objects[0] == Box("man", 0, (1, 2, 3, 4))
    assert record.relations == [Relation(0, 1, "ON"), Relation(2, 0, "by")]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"relationships": [related(1, 99)]}, "unknown_object"),
        ({"relationships": [related("x", 2)]}, "malformed"),
        ({"relationships": [related(1, 2, None)]}, "malformed"),
        *(
            ({"relationships": [related(1, 2, confidence=value)]}, "malformed")
            for value in (1.5, float("nan"))
        ),
        ({"relationships": {"a": 1}}, "malformed"),
        *(
            ({"objects": [thing(1), thing(2), other]}, "malformed")
            for other in (thing(3, w="wide"), thing(3, names=[]), thing(None))
        ),
    ],
)
def test_malformed_items_are_dropped_and_counted(broken, problem):
    record, problems = read(
        {"image_id": 1, "objects": [thing(1), thing(2)], "relationships": [], **broken}
    )
    assert problems == {problem: 1}
    assert len(record.objects) == 2
    assert not record.relations


def test_attributes_are_kept_without_repetitions_and_objects_whatever_they_are():
    attribute_lists = (
        ["Shiny", " red ", "red", ""],
        ["red", 3, None, ["x"]],
        "red",
        {"a": 1},
        None,
    )
    things = [
        thing(number, attributes=attributes) for number, attributes in enumerate(attribute_lists)
    ]
    record, problems = read({"image_id": 1, "objects": things, "relationships": []})
    names = [values_of(box.attributes, "name") for box in record.objects]
    assert names == [["Shiny", "red"], ["red"], [], [], []]
    assert problems == {"malformed": 5}


def test_real_records_become_the_published_scene_graphs(oracle):
    """Visual Genome's images 1 to 3, with inline objects, equal the published scene graphs."""
    with gzip.open(oracle / "golden/candidates/inputs_vg_preprocessed.json.gz") as file:
        published = {graph["image_id"]: graph for graph in json.load(file)}
    for suffix, count in (("", 41), ("2", 23), ("3", 50)):
        (item,) = iter_graphs(oracle / f"data/vg/vadbeg_relationships{suffix}.json")
        (record, problems), (expected, _) = read(item), read(published[item["image_id"]])
        assert not problems
        assert len(record.relations) == count
        assert record == expected


COCO = {
    "image_id": 4242, "dataset": "coco2017", "data_split": "val2017",
    "objects": [{"object_id": 10000000, "x": 1.5, "y": 2.5, "w": 3.5, "h": 4.5, "names": "Person"}],
    "relationships": [related(10000000, 10000000, "Near", confidence=score) for score in (0.25, 0.06)],
}  # fmt: skip
O365 = {**COCO, "image_id": 420917, "dataset": "o365", "data_split": "train"}


def read_labels(folder, items, paths=None):
    (folder / "labels.json").write_text(json.dumps(items))
    if paths is not None:
        (folder / "paths.json").write_text(json.dumps(paths))
        paths = folder / "paths.json"
    (folder / "images").mkdir(exist_ok=True)
    return list(
        pseudo_label_source(folder / "labels.json", folder / "images", "train", paths).read(
            Counter()
        )
    )


def test_pseudo_labels_are_not_changed_and_their_images_found(tmp_path):
    (record,) = read_labels(tmp_path, [COCO])
    assert (record.image_id, record.dataset, record.split) == ("4242", "coco2017", "train")
    assert record.objects == [Box("Person", 0, (1.5, 2.5, 3.5, 4.5))]
    assert record.relations == [Relation(0, 0, "Near", 0.25), Relation(0, 0, "Near", 0.06)]
    assert record.file_name == "000000004242.jpg"
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "images/val2017/000000004242.jpg").touch()
    assert read_labels(tmp_path, [COCO])[0].file_name == "val2017/000000004242.jpg"


def test_objects365_images_need_image_paths(tmp_path):
    with pytest.raises(UserError, match=r"image 420917 is of Objects365.*--image-paths"):
        read_labels(tmp_path, [O365])
    known, unknown = read_labels(
        tmp_path, [O365, {**O365, "image_id": 1}], {"420917": "train/patch8/a.jpg"}
    )
    assert known.file_name == "train/patch8/a.jpg"
    assert "paths.json has no path for the image" in unknown.error
    with pytest.raises(UserError, match=r"image 420917 is of Objects365.*--image-paths"):
        read_labels(tmp_path, [O365], [])


GRAPH = {
    "image_id": 7,
    "objects": [
        {"object_id": 1, "x": 0, "y": 0, "w": 9, "h": 9, "names": ["Man"]},
        {"object_id": 2, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["men"]},
        {"object_id": 3, "x": 5, "y": 5, "w": 9, "h": 9, "names": ["man"]},
    ],
    "relationships": [related(1, 2, "ON"), related(1, 2), related(1, 3), related(1, 3, "")],
}


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "scene_graphs.json").write_text(json.dumps(GRAPH))  # a file may be a single graph
    (tmp_path / "images").mkdir()

    def make(**options) -> AnnotationSource:
        return visual_genome_source(
            tmp_path / "scene_graphs.json", tmp_path / "images", "train", **options
        )

    return make


def only(source: AnnotationSource) -> tuple[Record, Counter]:
    problems: Counter[str] = Counter()
    (record,) = source.read(problems)
    return record, +problems


def test_preprocessing_is_the_default_and_can_be_switched_off(genome, tmp_path):
    record, problems = only(genome())
    assert record.relations == [Relation(0, 1, "on"), Relation(0, 2, "on")]
    assert problems == {"repeated_relations": 1, "nameless": 1}
    record, problems = only(genome(preprocess=False))
    assert values_of(record.relations, "predicate") == ["ON", "on", "on"]
    assert problems == {"nameless": 1}
    assert record.objects[0].category == "Man"
    (tmp_path / "aliases.txt").write_text("man,men\n")
    record, problems = only(genome(object_aliases=tmp_path / "aliases.txt"))
    assert (record.relations, problems["redundant_relations"]) == ([Relation(0, 1, "on")], 1)


def test_sizes_come_from_image_data(genome, tmp_path):
    sizes = tmp_path / "image_data.json"
    sizes.write_text(
        json.dumps(
            [{"image_id": 8, "width": 1, "height": 1}, {"image_id": 7, "width": 80, "height": 60}]
        )
    )
    record, _ = only(genome(image_data=sizes))
    assert (record.width, record.height) == (80, 60)
    with pytest.raises(
        UserError, match=r"scene_graphs\.json has the format 'vg', not 'image data'"
    ):
        genome(image_data=tmp_path / "scene_graphs.json")


def test_images_are_found_in_the_folders_of_the_downloads(genome, tmp_path):
    for place in ("VG_100K_2/7.jpg", "VG_100K/7.jpg", "7.jpg"):
        image = tmp_path / "images" / place
        image.parent.mkdir(exist_ok=True)
        image.touch()
        assert only(genome())[0].file_name == place
        image.unlink()


def test_real_records_lose_only_counted_relations(oracle, tmp_path):
    """As many relations remain as after the published preprocessing of these records with these
    aliases.
    """
    data = oracle / "data/vg"
    aliases = {
        "object_aliases": data / "danfeix_object_alias.txt",
        "predicate_aliases": data / "danfeix_predicate_alias.txt",
    }
    for suffix, count, left in (("", 41, 35), ("2", 23, 22), ("3", 50, 44)):
        file = data / f"vadbeg_relationships{suffix}.json"
        record, problems = only(visual_genome_source(file, tmp_path, "train", **aliases))
        assert len(record.relations) == left == count - problems.total()
        facts = values_of(record.relations, "subject", "object", "predicate")
        assert len(set(facts)) == len(facts)
        assert problems["repeated_relations"] > 0


def relations(text: str) -> list[Relation]:
    """Of lines such as "0 wears 1"."""
    return [
        Relation(int(s), int(o), predicate) for s, predicate, o in map(str.split, text.split(", "))
    ]


def many(count: int, times: int) -> str:
    return ", ".join(f"0 p{number} 1" for number in range(count) for _ in range(times))


@pytest.mark.parametrize(
    ("objects", "stated", "expected", "problems"),
    [
        (
            [MAN, HAT],
            "0 Wears 1, 1 on 0, 0 wears 1, 0 WEARS 1",
            "0 wears 1, 1 on 0",
            {"repeated_relations": 2},
        ),
        (  # of overlapping boxes
            [MAN, ("man", NEARLY), ("man", THERE), HAT],
            "0 wears 3, 1 wears 3, 2 wears 3, 1 has 3",
            "0 wears 3, 2 wears 3, 1 has 3",
            REDUNDANT,
        ),
        (  # of aliases, which keep their words
            [MAN, ("men", NEARLY), HAT, ("cap", THERE)],
            "1 wearing 3, 0 wears 2, 0 has 2",
            "1 wearing 3, 0 has 2",
            REDUNDANT,
        ),
        (
            [MAN, HAT],
            many(115, 2),
            many(MAX_RELATIONS, 1),
            {"repeated_relations": 115, "relations_beyond_100": 15},
        ),
    ],
)
def test_redundant_relations_are_removed(objects, stated, expected, problems):
    boxes = [Box(name.title(), 0, box) for name, box in objects]
    image = Record("1", "d", "val", "1.jpg", 500, 500, objects=boxes, relations=relations(stated))
    removed: Counter[str] = Counter()
    remove_redundant(
        image, {"man": "man", "men": "man", "cap": "hat"}, {"wearing": "wears"}, removed
    )
    assert image.relations == relations(expected)
    assert +removed == problems
    assert image.objects[0].category == "man"


def test_alias_tables(tmp_path, oracle):
    path = tmp_path / "alias.txt"
    path.write_text("tree,trees,tree is\nbush\nplant,trees\n")
    assert load_aliases(path) == {
        "tree": "tree",
        "trees": "plant",
        "tree is": "tree",
        "bush": "bush",
        "plant": "plant",
    }
    path.write_text("tree\nbush\n")
    with pytest.raises(UserError, match="found no comma"):
        load_aliases(path)
    objects = load_aliases(oracle / "data/vg/danfeix_object_alias.txt")
    assert objects["bikes are"] == objects["bikes"] == "bike"
