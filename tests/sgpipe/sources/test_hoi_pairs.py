import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.sources.hoi import hico_source, vcoco_source

MAN, BIKE, CUP = [10, 20, 30, 60], [0, 0, 100, 50], [5, 5, 9, 9]
HICO = {
    "annotation": [
        {"boxes_h": [MAN, MAN], "boxes_o": [BIKE, CUP], "object": [1, 0], "verb": [1, 0], "hoi": [0, 0]},
        {"boxes_h": [], "boxes_o": [], "object": [], "verb": [], "hoi": []},
    ],
    "filenames": ["HICO_train2015_00000001.jpg", "HICO_train2015_00000002.jpg"],
    "objects": ["wine_glass", "bicycle"],
    "verbs": ["drink_with", "ride"],
    "size": [[640, 480], [320, 240]],
}
VCOCO = {
    "annotations": [
        {
            "boxes_h": [MAN, MAN],
            "boxes_o": [BIKE, MAN],
            "objects": [2, 1],
            "actions": [1, 0],
            "file_name": "COCO_train2014_000000000165.jpg",
        },
    ],
    "classes": ["talk_on_phone instr", "sit instr"],
    "objects": ["background", "person", "bicycle"],
}


def read(folder, content, open_source):
    path = folder / "pairs.json"
    path.write_text(json.dumps(content))
    return list(open_source(path, "train").read(Counter()))


def test_equal_boxes_of_hico_pairs_are_one_object(tmp_path):
    record, empty = read(tmp_path, HICO, hico_source)
    assert (record.image_id, record.width, record.height) == ("HICO_train2015_00000001", 640, 480)
    assert record.objects == [
        Box("person", 1, (10, 20, 20, 40)), Box("bicycle", 2, (0, 0, 100, 50)), Box("wine glass", 46, (5, 5, 4, 4))
    ]  # fmt: skip
    assert record.relations == [Relation(0, 1, "ride"), Relation(0, 2, "drink with")]
    assert (empty.ok, empty.objects, empty.relations, empty.width) == (True, [], [], 320)


def test_vcoco_pairs_get_our_names(tmp_path):
    (record,) = read(tmp_path, VCOCO, vcoco_source)
    assert (record.image_id, record.width) == ("165", 0)
    assert [box.category for box in record.objects] == ["person", "bicycle"]
    assert record.relations == [Relation(0, 1, "sit on/at"), Relation(0, 0, "talk on phone")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"object": [1]}, "differ in length"),
        ({"object": [1, 9]}, "'object' contains 9"),
        ({"verb": [1, None]}, "'verb' contains None"),
        ({"boxes_h": [MAN, [1, 2]]}, "expected 4 numbers"),
        ({"boxes_h": None}, "differ in length"),
    ],
)
def test_an_image_out_of_order_is_an_error_row(tmp_path, change, reason):
    content = {**HICO, "annotation": [HICO["annotation"][0] | change, HICO["annotation"][1]]}
    broken, good = read(tmp_path, content, hico_source)
    assert good.ok
    assert reason in broken.error
    assert not broken.objects


def test_background_is_no_object(tmp_path):
    annotation = VCOCO["annotations"][0] | {"objects": [2, 0]}
    (record,) = read(tmp_path, {**VCOCO, "annotations": [annotation]}, vcoco_source)
    assert "'objects' contains 0" in record.error


@pytest.mark.parametrize(
    ("content", "open_source", "reason"),
    [
        ({**HICO, "objects": ["unicorn"]}, hico_source, "its list 'objects' contains 'unicorn'"),
        ({**HICO, "verbs": ["levitate"]}, hico_source, "its list 'verbs' contains 'levitate'"),
        ({**HICO, "verbs": []}, hico_source, "no list 'verbs'"),
        ({**HICO, "filenames": ["1.jpg"]}, hico_source, "differ in length"),
        ({**VCOCO, "classes": ["sit"]}, vcoco_source, "its list 'classes' contains 'sit'"),
        ({**VCOCO, "objects": []}, vcoco_source, "no list 'objects'"),
    ],
)
def test_names_of_another_dataset_are_refused(tmp_path, content, open_source, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, content, open_source)
    assert "pairs.json" in str(caught.value)


def test_counts_of_the_real_files(oracle):
    images = list(hico_source(oracle / "data/hicodet/instances_test2015.json", "test").read(Counter()))
    assert all(record.ok for record in images)
    counts = [len(record.relations) for record in images]
    assert (len(images), counts.count(0), sum(counts)) == (9658, 112, 33405)
    for split, count in (("train", 2533), ("val", 2867), ("test", 4946)):
        path = oracle / f"data/vcoco/fredzzhang_instances_vcoco_{split}.json"
        images = list(vcoco_source(path, split).read(Counter()))
        assert len(images) == count
        pairs = [len(image["actions"]) for image in json.loads(path.read_text())["annotations"]]
        assert [len(record.relations) for record in images] == pairs
