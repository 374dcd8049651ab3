import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.sources.hoi import HICO, VCOCO, hico_source, vcoco_source

MAN = {"bbox": [10, 20, 30, 60], "category_id": 1}
BIKE = {"bbox": [0, 0, 100, 50], "category_id": 2}


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


def test_boxes_become_objects_and_numbers_names(tmp_path):
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
def test_an_image_out_of_order_is_an_error_row(tmp_path, boxes, relations, reason):
    good = ([MAN, BIKE], [hoi(0, 1, 77)])
    found, problems = records(hico_source(write(tmp_path, good, (boxes, relations), good), "train"))
    assert not problems
    assert [record.status for record in found] == ["ok", "error", "ok"]
    assert found[1].error.startswith("import: ")
    assert reason in found[1].error
    assert (found[1].objects, found[1].relations) == ([], [])


def test_items_that_are_no_images_are_counted(tmp_path):
    path = write(tmp_path, ([MAN], []))
    path.write_text(json.dumps([*json.loads(path.read_text()), None, {"annotations": []}]))
    found, problems = records(hico_source(path, "train"))
    assert (len(found), problems) == (1, {"malformed": 2})


def test_relations_without_object_share_one_that_is_not_there(tmp_path):
    path = write(tmp_path, ([MAN, BIKE], [hoi(0, -1, 23), hoi(0, 1, 3), hoi(0, -1, 1)]), prefix="COCO_val2014_")
    (record,), _ = records(vcoco_source(path, "val"))
    assert record.image_id == "1"
    assert record.objects[2:] == [Box(NO_OBJECT, -1, (0, 0, 0, 0))]
    assert record.objects[2].is_nothing
    assert record.relations == [Relation(0, 2, "smile"), Relation(0, 1, "ride on"), Relation(0, 2, "stand")]


def test_a_dataset_is_not_taken_for_the_other(tmp_path):
    items = ([MAN, BIKE], [hoi(0, 1, 5)])
    with pytest.raises(UserError, match=r"is HICO-DET .*use `sgpipe import hico`"):
        vcoco_source(write(tmp_path, items), "train")
    with pytest.raises(UserError, match=r"is V-COCO .*use `sgpipe import vcoco`"):
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


def test_the_same_images_in_both_forms_hold_the_same_relations(oracle):
    """300 test images of HICO-DET in HOIA form, and all 9,658 as pairs."""
    data = oracle / "data/hicodet"
    hoia, _ = records(hico_source(data / "test_hico_sample300.qpic_format.json", "test"))
    pairs, _ = records(hico_source(data / "instances_test2015.json", "test"))
    by_id = {record.image_id: record for record in pairs}
    assert len(hoia) == 300
    assert all(record.ok for record in hoia)
    assert [_facts(record) for record in hoia] == [_facts(by_id[record.image_id]) for record in hoia]


def _facts(record) -> Counter:
    return Counter(
        (record.objects[r.subject].bbox, r.predicate, record.objects[r.object].category, record.objects[r.object].bbox)
        for r in record.relations
    )
