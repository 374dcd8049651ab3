import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.sources.hoi import HICO, VCOCO, hico_source, vcoco_source

MAN = {"bbox": [10, 20, 30, 60], "category_id": 1}
BIKE = {"bbox": [0, 0, 100, 50], "category_id": 2}


@pytest.fixture(scope="module")
def hico_test(oracle):
    """All test images of HICO-DET, from box pairs."""
    return list(hico_source(oracle / "data/hicodet/instances_test2015.json", "test").read(Counter()))


def hoi(subject, object_, verb):
    return {"subject_id": subject, "object_id": object_, "category_id": verb}


def write(folder, *items, prefix="HICO_test2015_"):
    path = folder / "hoi.json"
    content = [
        {"file_name": f"{prefix}{number:08d}.jpg", "annotations": boxes, "hoi_annotation": relations}
        for number, (boxes, relations) in enumerate(items, 1)
    ]
    path.write_text(json.dumps(content))
    return path


def records(source) -> tuple[list, Counter]:
    problems: Counter[str] = Counter()
    return list(source.read(problems)), +problems


def test_boxes_become_objects_and_ids_become_names(tmp_path):
    source = hico_source(write(tmp_path, ([MAN, BIKE], [hoi(0, 1, 77), hoi(0, 1, 88)])), "test")
    (record,), problems = records(source)
    assert not problems
    assert (record.image_id, record.file_name) == ("HICO_test2015_00000001", "HICO_test2015_00000001.jpg")
    assert (record.dataset, record.split, record.width) == ("hico", "test", 0)
    assert record.objects == [Box("person", 1, (10, 20, 20, 40)), Box("bicycle", 2, (0, 0, 100, 50))]
    assert record.relations == [Relation(0, 1, "ride"), Relation(0, 1, "sit on")]


@pytest.mark.parametrize(
    ("boxes", "relations", "reason"),
    [
        ([MAN], [hoi(0, 1, 77)], "object_id 1 of a relation is out of range: the image has 1 object"),
        ([MAN], [hoi(-1, 0, 77)], "subject_id -1 of a relation is out of range"),
        ([MAN], [hoi(0, -1, 77)], "object_id -1 of a relation is out of range"),
        ([MAN, BIKE], [hoi(0, 1, 0)], "category_id 0 of a relation is not a category of the dataset"),
        ([MAN, BIKE], [hoi(0, 1, 118)], "category_id 118 of a relation"),
        ([MAN, {**BIKE, "category_id": 12}], [], "category_id 12 of an object"),
        ([MAN, {**BIKE, "bbox": [1, 2, 3]}], [], "expected 4 numbers"),
        ([MAN, BIKE], [{"subject_id": 0, "object_id": 1}], "'category_id' is missing"),
        ({}, [], "'annotations' is not a list"),
    ],
)
def test_an_invalid_image_is_an_error_row(tmp_path, boxes, relations, reason):
    good = ([MAN, BIKE], [hoi(0, 1, 77)])
    found, problems = records(hico_source(write(tmp_path, good, (boxes, relations), good), "train"))
    assert not problems
    assert [record.status for record in found] == ["ok", "error", "ok"]
    assert found[1].error.startswith("import: ")
    assert reason in found[1].error
    assert (found[1].objects, found[1].relations) == ([], [])


def test_relations_without_object_share_a_box(tmp_path):
    path = write(tmp_path, ([MAN, BIKE], [hoi(0, -1, 23), hoi(0, 1, 3), hoi(0, -1, 1)]), prefix="COCO_val2014_")
    (record,), _ = records(vcoco_source(path, "val"))
    assert record.image_id == "1"
    assert record.objects[2:] == [Box(NO_OBJECT, -1, (0, 0, 0, 0))]
    assert record.objects[2].is_nothing
    assert record.relations == [Relation(0, 2, "smile"), Relation(0, 1, "ride on"), Relation(0, 2, "stand")]


def test_the_other_dataset_is_refused_if_names_show_it(tmp_path):
    items = ([MAN, BIKE], [hoi(0, 1, 5)])
    with pytest.raises(UserError, match=r"is HICO-DET .*for `sgpipe import hico`"):
        vcoco_source(write(tmp_path, items), "train")
    with pytest.raises(UserError, match=r"is V-COCO .*for `sgpipe import vcoco`"):
        hico_source(write(tmp_path, items, prefix="COCO_train2014_"), "train")
    path = write(tmp_path, items, prefix="renamed_")
    (as_hico,), _ = records(hico_source(path, "train"))
    (as_vcoco,), _ = records(vcoco_source(path, "train"))
    assert (as_hico.relations[0].predicate, as_vcoco.relations[0].predicate) == ("board", "look at")


def test_class_lists_are_the_official_ones(oracle):
    data = oracle / "data"
    objects = tuple(json.loads((data / "hicodet/hico_object_names.txt").read_text()))
    verbs = [line.split()[-1] for line in (data / "hicodet/hico_verb_names.txt").read_text().splitlines()]
    assert HICO.classes.objects == objects
    assert HICO.classes.relations == tuple(verb.replace("_", " ") for verb in verbs)
    names = json.loads((data / "vcoco/vcoco_names_v3.json").read_text())
    assert list(VCOCO.classes.objects) == names["object_names"]
    assert list(VCOCO.classes.relations) == names["verb_names"]
    assert (len(objects), len(verbs), len(VCOCO.classes.objects), len(VCOCO.classes.relations)) == (80, 117, 81, 29)


def test_both_formats_have_the_same_relations(oracle, hico_test):
    """300 test images of HICO-DET in HOIA format, and all 9,658 as box pairs."""
    hoia, _ = records(hico_source(oracle / "data/hicodet/test_hico_sample300.qpic_format.json", "test"))
    by_id = {record.image_id: record for record in hico_test}
    assert len(hoia) == 300
    assert all(record.ok for record in hoia)
    assert [_facts(record) for record in hoia] == [_facts(by_id[record.image_id]) for record in hoia]


def _facts(record) -> Counter:
    return Counter(
        (record.objects[r.subject].bbox, r.predicate, record.objects[r.object].category, record.objects[r.object].bbox)
        for r in record.relations
    )


MAN_BOX, BIKE_BOX, CUP_BOX = [10, 20, 30, 60], [0, 0, 100, 50], [5, 5, 9, 9]
HICO_PAIRS = {
    "annotation": [
        {
            "boxes_h": [MAN_BOX, MAN_BOX],
            "boxes_o": [BIKE_BOX, CUP_BOX],
            "object": [1, 0],
            "verb": [1, 0],
            "hoi": [0, 0],
        },
        {"boxes_h": [], "boxes_o": [], "object": [], "verb": [], "hoi": []},
    ],
    "filenames": ["HICO_train2015_00000001.jpg", "HICO_train2015_00000002.jpg"],
    "objects": ["wine_glass", "bicycle"],
    "verbs": ["drink_with", "ride"],
    "size": [[640, 480], [320, 240]],
}
VCOCO_PAIRS = {
    "annotations": [
        {
            "boxes_h": [MAN_BOX, MAN_BOX],
            "boxes_o": [BIKE_BOX, MAN_BOX],
            "objects": [2, 1],
            "actions": [1, 0],
            "file_name": "COCO_train2014_000000000165.jpg",
        }
    ],
    "classes": ["talk_on_phone instr", "sit instr"],
    "objects": ["background", "person", "bicycle"],
}


def read_pairs(folder, content, open_source):
    path = folder / "pairs.json"
    path.write_text(json.dumps(content))
    return list(open_source(path, "train").read(Counter()))


def test_equal_boxes_of_hico_pairs_are_one_object(tmp_path):
    record, empty = read_pairs(tmp_path, HICO_PAIRS, hico_source)
    assert (record.image_id, record.width, record.height) == ("HICO_train2015_00000001", 640, 480)
    assert record.objects == [
        Box("person", 1, (10, 20, 20, 40)), Box("bicycle", 2, (0, 0, 100, 50)), Box("wine glass", 46, (5, 5, 4, 4))
    ]  # fmt: skip
    assert record.relations == [Relation(0, 1, "ride"), Relation(0, 2, "drink with")]
    assert (empty.ok, empty.objects, empty.relations, empty.width) == (True, [], [], 320)


def test_vcoco_pairs_get_the_names_of_sgpipe(tmp_path):
    (record,) = read_pairs(tmp_path, VCOCO_PAIRS, vcoco_source)
    assert (record.image_id, record.width) == ("165", 0)
    assert [box.category for box in record.objects] == ["person", "bicycle"]
    assert record.relations == [Relation(0, 1, "sit on/at"), Relation(0, 0, "talk on phone")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"object": [1]}, "differ in length"),
        ({"object": [1, 9]}, "'object' contains 9"),
        ({"verb": [1, None]}, "'verb' contains None"),
        ({"boxes_h": [MAN_BOX, [1, 2]]}, "expected 4 numbers"),
        ({"boxes_h": None}, "differ in length"),
    ],
)
def test_invalid_pairs_are_an_error_row(tmp_path, change, reason):
    content = {**HICO_PAIRS, "annotation": [HICO_PAIRS["annotation"][0] | change, HICO_PAIRS["annotation"][1]]}
    broken, good = read_pairs(tmp_path, content, hico_source)
    assert good.ok
    assert reason in broken.error
    assert not broken.objects


@pytest.mark.parametrize(
    ("content", "open_source", "reason"),
    [
        ({**HICO_PAIRS, "objects": ["unicorn"]}, hico_source, "its list 'objects' contains 'unicorn'"),
        ({**HICO_PAIRS, "verbs": ["levitate"]}, hico_source, "its list 'verbs' contains 'levitate'"),
        ({**HICO_PAIRS, "verbs": []}, hico_source, "no list 'verbs'"),
        ({**HICO_PAIRS, "filenames": ["1.jpg"]}, hico_source, "differ in length"),
        ({**VCOCO_PAIRS, "classes": ["sit"]}, vcoco_source, "its list 'classes' contains 'sit'"),
        ({**VCOCO_PAIRS, "objects": []}, vcoco_source, "no list 'objects'"),
    ],
)
def test_names_of_another_dataset_are_refused(tmp_path, content, open_source, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_pairs(tmp_path, content, open_source)
    assert "pairs.json" in str(caught.value)


def test_counts_of_the_real_files(oracle, hico_test):
    assert all(record.ok for record in hico_test)
    counts = [len(record.relations) for record in hico_test]
    assert (len(hico_test), counts.count(0), sum(counts)) == (9658, 112, 33405)
    for split, count in (("train", 2533), ("val", 2867), ("test", 4946)):
        path = oracle / f"data/vcoco/fredzzhang_instances_vcoco_{split}.json"
        images = list(vcoco_source(path, split).read(Counter()))
        assert len(images) == count
        pairs = [len(image["actions"]) for image in json.loads(path.read_text())["annotations"]]
        assert [len(record.relations) for record in images] == pairs


def drawn(tmp_path, relations, objects=(1, 37)):
    """A file in HOIA format with four images."""
    boxes = [{"bbox": [0, 0, 9, 9], "category_id": category} for category in objects]
    items = [{"subject_id": 0, "object_id": 1, "category_id": verb} for verb in relations]
    images = [
        {"file_name": f"{n}.jpg", "width": 9, "height": 9, "annotations": boxes, "hoi_annotation": items}
        for n in range(4)
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(images))
    return path


OWN = {"objects": {"1": "person", "37": "kite"}, "relations": ["holding", "flying"]}


@pytest.mark.parametrize(
    ("relations", "objects", "reason"),
    [
        ((1, 3), (1, 38), "is not an interaction"),
        ((150, 200), (1, 38), "relation 150 does not exist"),
        ((0,), (1, 38), "relation 0 does not exist"),
        ((37,), (1, 200), "object class 200 does not exist"),
    ],
)
def test_a_file_of_other_classes_than_hico_det_is_refused(tmp_path, relations, objects, reason):
    with pytest.raises(UserError, match=rf"are not those of HICO-DET: .*({reason}).*pass --classes FILE"):
        hico_source(drawn(tmp_path, relations, objects), "train")


def test_a_class_list_beside_the_file_is_named(tmp_path):
    path = drawn(tmp_path, (37,), (1, 38))
    hico_source(path, "train")
    (tmp_path / "own_classes.json").write_text(json.dumps(OWN))
    with pytest.raises(UserError, match=r"pass --classes .*own_classes\.json"):
        hico_source(path, "train")


def test_a_file_of_other_classes_is_read_with_their_list(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(OWN))
    source = hico_source(drawn(tmp_path, (1, 2)), "train", tmp_path / "list.json")
    records = list(source.read(Counter()))
    assert source.dataset == "hoia"
    assert set(source.files) == {"annotations", "classes"}
    assert source.classes.relations == ("holding", "flying")
    assert [[relation.predicate for relation in record.relations] for record in records] == [["holding", "flying"]] * 4
    assert {box.category for box in records[0].objects} == {"person", "kite"}
    with pytest.raises(UserError, match=r"are not those of .*list\.json.*relation 9 does not exist"):
        hico_source(drawn(tmp_path, (9,)), "train", tmp_path / "list.json")
    vcoco = vcoco_source(drawn(tmp_path, (1,)), "train", tmp_path / "list.json")
    assert next(iter(vcoco.read(Counter()))).relations[0].predicate == "holding"
