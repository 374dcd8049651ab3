import gzip
import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import clip_objects, drop_nameless
from sgpipe.sources.scene_graphs import graph_record, iter_graphs, pseudo_label_source, remove_redundant


def thing(number, **more):
    return {"object_id": number, "x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"], **more}


def read(item) -> tuple[Record | None, Counter]:
    problems: Counter[str] = Counter()
    return graph_record(item, "d", "val", problems), +problems


def test_relations_by_id_and_inline_and_all_kinds_of_names():
    """The last of several objects with the same id replaces the first."""
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


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 99}]}, "unknown_object"),
        ({"relationships": [{"predicate": "on", "subject_id": "x", "object_id": 2}]}, "malformed"),
        ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 2, "confidence": 1.5}]}, "malformed"),
        ({"relationships": ["on"]}, "malformed"),
        ({"relationships": {"a": 1}}, "malformed"),
        ({"objects": [thing(1), thing(2), thing(3, w="wide")]}, "malformed"),
        ({"objects": [thing(1), thing(2), thing(None)]}, "malformed"),
    ],
)
def test_malformed_items_are_dropped_and_counted(broken, problem):
    record, problems = read({"image_id": 1, "objects": [thing(1), thing(2)], "relationships": [], **broken})
    assert problems == {problem: 1}
    assert len(record.objects) == 2
    assert not record.relations


def test_annotated_attributes_are_kept_without_repetitions():
    objects = [thing(1, attributes=["Shiny", " red ", "red", ""]), thing(2, attributes=[]), thing(3)]
    record, problems = read({"image_id": 1, "objects": objects, "relationships": []})
    assert not problems
    assert [[(each.name, each.caption) for each in box.attributes] for box in record.objects] == [
        [("Shiny", None), ("red", None)],
        [],
        [],
    ]
    remove_redundant(record, {}, {}, problems)
    assert [each.name for each in record.objects[0].attributes] == ["shiny", "red"]


@pytest.mark.parametrize(("attributes", "number"), [("red", 1), ({"a": 1}, 1), (["red", 3, None, ["x"]], 3), (7, 1)])
def test_an_object_stays_if_its_attributes_are_unreadable(attributes, number):
    record, problems = read({"image_id": 1, "objects": [thing(1, attributes=attributes)], "relationships": []})
    assert problems == {"malformed": number}
    assert [each.name for each in record.objects[0].attributes] == ["red"] * isinstance(attributes, list)


def test_nameless_objects_and_relations_are_dropped():
    record = Record("1", "d", "val", "1.jpg", 9, 9, objects=[Box(name, 0, (0, 0, 1, 1)) for name in ("a", " ", "b")])
    record.relations = [Relation(0, 2, "on"), Relation(0, 2, " "), Relation(0, 1, "by")]
    problems: Counter[str] = Counter()
    drop_nameless(record, problems)
    assert ([box.category for box in record.objects], record.relations) == (["a", "b"], [Relation(0, 1, "on")])
    assert problems == {"nameless": 2, "relations_of_dropped_boxes": 1}


def test_a_file_may_be_a_single_graph(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"relationships": [{"predicate": "on"}], "image_id": 7}))
    assert list(iter_graphs(path)) == [{"image_id": 7, "relationships": [{"predicate": "on"}]}]
    path.write_text('[{"image_id": 1}, {"image_id"')
    with pytest.raises(UserError, match="cut short"):
        list(iter_graphs(path))


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


COCO = {
    "image_id": 4242,
    "dataset": "coco2017",
    "data_split": "val2017",
    "objects": [{"object_id": 10000000, "x": 1.5, "y": 2.5, "w": 3.5, "h": 4.5, "names": "Person"}],
    "relationships": [
        {"predicate": "Near", "subject_id": 10000000, "object_id": 10000000, "confidence": 0.25},
        {"predicate": "Near", "subject_id": 10000000, "object_id": 10000000, "confidence": 0.06},
    ],
}
O365 = {**COCO, "image_id": 420917, "dataset": "o365", "data_split": "train"}


def read_labels(folder, items, paths=None):
    path = folder / "labels.json"
    path.write_text(json.dumps(items))
    if paths is not None:
        (folder / "paths.json").write_text(json.dumps(paths))
        paths = folder / "paths.json"
    (folder / "images").mkdir(exist_ok=True)
    return list(pseudo_label_source(path, folder / "images", "train", paths).read(Counter()))


def test_pseudo_labels_are_not_changed(tmp_path):
    (record,) = read_labels(tmp_path, [COCO])
    assert (record.image_id, record.dataset, record.split) == ("4242", "coco2017", "train")
    assert record.objects == [Box("Person", 0, (1.5, 2.5, 3.5, 4.5))]
    assert record.relations == [Relation(0, 0, "Near", 0.25), Relation(0, 0, "Near", 0.06)]


def test_coco_images_are_found_with_and_without_a_folder_of_their_split(tmp_path):
    name = "000000004242.jpg"
    assert read_labels(tmp_path, [COCO])[0].file_name == name
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "images/val2017" / name).touch()
    assert read_labels(tmp_path, [COCO])[0].file_name == f"val2017/{name}"


def test_objects365_images_need_image_paths(tmp_path):
    with pytest.raises(UserError, match=r"image 420917 is of Objects365.*--image-paths"):
        read_labels(tmp_path, [O365])
    known, unknown = read_labels(tmp_path, [O365, {**O365, "image_id": 1}], {"420917": "train/patch8/a.jpg"})
    assert known.file_name == "train/patch8/a.jpg"
    assert "has no path for the image" in unknown.error
    for wrong in ({"1": 2}, ["a"], {"1": ["a"]}):
        with pytest.raises(UserError, match=r"paths\.json is not an image_id_to_filepath"):
            read_labels(tmp_path, [O365], wrong)


@pytest.mark.parametrize("tagger", ["tagger_glip", "tagger_vxac"])
def test_published_pseudo_labels_are_read_completely(oracle, tmp_path, tagger):
    golden = json.loads((oracle / f"golden/model/{tagger}/small/generation.json").read_text())
    for case in golden["cases"].values():
        annotations = case["annotation"]
        records = read_labels(tmp_path, annotations)
        assert len(records) == len(annotations) > 0
        for record, item in zip(records, annotations, strict=True):
            confidences = [relation["confidence"] for relation in item["relationships"]]
            assert confidences == [relation.confidence for relation in record.relations]
            assert [box.bbox for box in record.objects] == [tuple(o[k] for k in "xywh") for o in item["objects"]]
