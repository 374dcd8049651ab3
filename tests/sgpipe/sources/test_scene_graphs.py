import gzip
import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import clip_objects
from sgpipe.sources.scene_graphs import drop_nameless, graph_record, iter_graphs


def thing(number, **more):
    return {"object_id": number, "x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"], **more}


def read(item) -> tuple[Record | None, Counter]:
    problems: Counter[str] = Counter()
    return graph_record(item, "d", "val", problems), +problems


def test_both_forms_of_relations_and_all_forms_of_names():
    """The last of several objects with the same id counts, in the place of the first."""
    relationships = [
        {"predicate": "ON", "subject_id": 5, "object_id": 7},
        {"predicate": "by", "subject": thing(9, names="Cat"), "object": {**thing(5), "names": ["man", "person"]}},
    ]
    person = {"object_id": 5, "x": 0, "y": 0, "w": 1, "h": 1, "name": "person"}
    item = {"image_id": 3, "objects": [person, thing(7, names="hat")], "relationships": relationships}
    record, problems = read(item)
    assert not problems
    assert (record.image_id, record.file_name, record.width) == ("3", "3.jpg", 0)
    assert [box.category for box in record.objects] == ["man", "hat", "Cat"]
    assert record.objects[0] == Box("man", 0, (1, 2, 3, 4))
    assert record.relations == [Relation(0, 1, "ON"), Relation(2, 0, "by")]


def test_sizes_names_and_confidences_are_taken_where_there_are_any():
    relationships = [{"predicate": "on", "subject_id": 1, "object_id": 1, "confidence": 0.25}]
    item = {"image_id": 3.0, "file_name": "a/b.png", "width": 8, "height": 6, "objects": [thing(1)]}
    record, _ = read({**item, "relationships": relationships})
    assert (record.image_id, record.file_name, record.width, record.height) == ("3", "a/b.png", 8, 6)
    assert record.relations == [Relation(0, 0, "on", 0.25)]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 99}]}, "unknown_object"),
        ({"relationships": [{"subject_id": 1, "object_id": 2}]}, "malformed"),
        ({"relationships": [{"predicate": "on", "subject_id": 1}]}, "malformed"),
        ({"relationships": [{"predicate": "on", "subject_id": "x", "object_id": 2}]}, "malformed"),
        ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 2, "confidence": 1.5}]}, "malformed"),
        ({"relationships": ["on"]}, "malformed"),
        ({"relationships": {"a": 1}}, "malformed"),
        ({"objects": [thing(1), thing(2), thing(3, names=[])]}, "malformed"),
        ({"objects": [thing(1), thing(2), thing(3, w="wide")]}, "malformed"),
        ({"objects": [thing(1), thing(2), {"object_id": 3}]}, "malformed"),
        ({"objects": [thing(1), thing(2), None]}, "malformed"),
        ({"objects": [thing(1), thing(2), thing(None)]}, "malformed"),
    ],
)
def test_what_cannot_be_understood_is_counted_and_left_out(broken, problem):
    record, problems = read({"image_id": 1, "objects": [thing(1), thing(2)], "relationships": [], **broken})
    assert problems == {problem: 1}
    assert len(record.objects) == 2
    assert not record.relations


@pytest.mark.parametrize("item", [None, [], "x", {}, {"image_id": None}, {"image_id": [1]}])
def test_without_an_id_there_is_no_record(item):
    assert read(item) == (None, {"malformed": 1})


def test_what_has_no_name_is_dropped():
    record = Record("1", "d", "val", "1.jpg", 9, 9, objects=[Box(name, 0, (0, 0, 1, 1)) for name in ("a", " ", "b")])
    record.relations = [Relation(0, 2, "on"), Relation(0, 2, " "), Relation(0, 1, "by")]
    problems: Counter[str] = Counter()
    drop_nameless(record, problems)
    assert ([box.category for box in record.objects], record.relations) == (["a", "b"], [Relation(0, 1, "on")])
    assert problems == {"nameless": 2, "relations_of_dropped_boxes": 1}


def test_a_file_may_hold_one_graph(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"relationships": [{"predicate": "on"}], "image_id": 7}))
    assert list(iter_graphs(path)) == [{"image_id": 7, "relationships": [{"predicate": "on"}]}]
    path.write_text('[{"image_id": 1}, {"image_id"')
    with pytest.raises(UserError, match="cut short"):
        list(iter_graphs(path))


def test_real_records_become_the_published_scene_graphs(oracle):
    """Visual Genome's images 1 to 3: relations with the objects inside, and the same as a scene graph."""
    with gzip.open(oracle / "golden/candidates/inputs_vg_preprocessed.json.gz") as file:
        published = {graph["image_id"]: graph for graph in json.load(file)}
    for suffix, count in (("", 41), ("2", 23), ("3", 50)):
        (item,) = iter_graphs(oracle / f"data/vg/vadbeg_relationships{suffix}.json")
        (record, problems), (expected, _) = read(item), read(published[item["image_id"]])
        assert not problems
        assert len(record.relations) == count
        assert record == expected


def test_targets_agree_with_the_published_ones(oracle):
    golden = json.loads((oracle / "golden/model/misc/vg_annotation_to_target.json").read_text())
    record, problems = read(golden["annotation"][0])
    width, height = record.width, record.height = golden["image_size_wh"]
    clip_objects(record, problems)
    target = golden["cases"]["all"]["target"]
    normalised = [
        ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        for x, y, w, h in (box.bbox for box in record.objects)
    ]
    assert normalised == [pytest.approx(box, abs=1e-6) for box in target["boxes"]]
    kept = [relation for relation in record.relations if relation.confidence is None or relation.confidence >= 0.2]
    assert list(dict.fromkeys(relation.predicate for relation in kept)) == target["verb_classes"]
    pairs = dict.fromkeys((relation.subject, relation.object) for relation in kept)
    assert [normalised[subject] for subject, _ in pairs] == [pytest.approx(b, abs=1e-6) for b in target["sub_boxes"]]
    assert [normalised[object_] for _, object_ in pairs] == [pytest.approx(b, abs=1e-6) for b in target["obj_boxes"]]
