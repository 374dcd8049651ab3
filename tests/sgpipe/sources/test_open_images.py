import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.sources.hoi import open_images_source
from sgpipe.sources.vocabulary import category_names, relation_names

NAMES, RELATIONS = category_names("open_images"), relation_names("open_images")
APPLE, SINK = (next(number for number, name in NAMES.items() if name == wanted) for wanted in ("apple", "sink"))
HOIA = {
    "file_name": "003e363ce1f302cd.jpg",
    "annotations": [{"bbox": [1, 2, 11, 22], "category_id": APPLE}, {"bbox": [0, 0, 50, 50], "category_id": SINK}],
    "rel_annotations": [{"subject_id": 0, "object_id": 1, "category_id": 7}],
}
VRD = {
    "img_fn": "003e363ce1f302cd",
    "img_size": [1024, 768],
    "bbox": [[1, 2, 11, 22], [0, 0, 50, 50]],
    "det_labels": [APPLE, SINK],
    "rel": [[0, 1, 7]],
}


def read(folder, items, categories=None):
    path = folder / "oi.json"
    path.write_text(json.dumps(items))
    if categories is not None:
        (folder / "categories.json").write_text(json.dumps(categories))
        categories = folder / "categories.json"
    source = open_images_source(path, "test", categories)
    problems: Counter[str] = Counter()
    return source, list(source.read(problems)), +problems


@pytest.mark.parametrize(("item", "size"), [(HOIA, (0, 0)), (VRD, (1024, 768))])
def test_both_formats_give_the_same_record(tmp_path, item, size):
    source, (record,), problems = read(tmp_path, [item])
    assert not problems
    assert (record.image_id, record.file_name) == ("003e363ce1f302cd", "003e363ce1f302cd.jpg")
    assert (record.width, record.height) == size
    assert record.objects == [Box("apple", APPLE, (1, 2, 10, 20)), Box("sink", SINK, (0, 0, 50, 50))]
    assert record.relations == [Relation(0, 1, "on")]
    assert (len(source.classes.objects), len(source.classes.relations)) == (601, 30)
    assert source.classes.objects[APPLE] == "apple"


@pytest.mark.parametrize("item", [HOIA, VRD])
def test_only_the_given_classes_are_kept(tmp_path, item):
    """The ids of the annotations refer to all 601 classes, not to the given list."""
    categories = {"obj": ["sink", "bird"], "rel": list(RELATIONS.values())}
    source, (record,), problems = read(tmp_path, [item], categories)
    assert source.classes.objects == ("sink", "bird")
    assert record.objects == [Box("sink", SINK, (0, 0, 50, 50))]
    assert record.relations == []
    assert problems == {"unknown_category": 1, "relations_of_dropped_boxes": 1}


@pytest.mark.parametrize(
    "item",
    [
        {**VRD, "det_labels": [APPLE, 601]},
        {**VRD, "det_labels": [APPLE]},
        {**VRD, "det_labels": [APPLE, [1]]},
        {**VRD, "rel": [[0, 2, 7]]},
        {**VRD, "rel": [[0, 1, 30]]},
        {**VRD, "rel": [[0.5, 1, 3]]},
        {**VRD, "rel": [3]},
        {**HOIA, "rel_annotations": [{"subject_id": 0, "object_id": -1, "category_id": 7}]},
        {**HOIA, "annotations": [{"bbox": [1, 2, 11, 22], "category_id": 601}]},
    ],
)
def test_an_invalid_image_is_an_error_row(tmp_path, item):
    good = VRD if "img_fn" in item else HOIA
    _, found, problems = read(tmp_path, [good, item])
    assert not problems
    assert [record.status for record in found] == ["ok", "error"]
    assert not found[1].objects


@pytest.mark.parametrize(
    ("categories", "reason"),
    [
        ({"obj": ["unicorn"], "rel": list(RELATIONS.values())}, "its class 'unicorn' is not one of the 601"),
        ({"obj": ["sink"], "rel": ["on"]}, "its relations are not the 30"),
        ({"obj": ["sink"]}, "expected"),
        ([1], "expected"),
    ],
)
def test_invalid_class_lists_are_refused(tmp_path, categories, reason):
    with pytest.raises(UserError, match=r"categories\.json.*" + reason):
        read(tmp_path, [VRD], categories)


def test_names_equal_the_published_ones(oracle):
    published = json.loads((oracle / "data/openimages/categories_dict.json").read_text())
    assert list(NAMES.values()) == published["obj"]
    assert list(RELATIONS.values()) == published["rel"]
    assert list(NAMES) == list(range(601))
