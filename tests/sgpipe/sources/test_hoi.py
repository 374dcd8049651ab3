"""HICO-DET, V-COCO and Open Images, each in its two formats."""

import json
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.hoi import HICO, VCOCO, hico_source, open_images_source, vcoco_source
from sgpipe.sources.vocabulary import category_names, relation_names
from tests.values import values_of

MAN = {"bbox": [10, 20, 30, 60], "category_id": 1}
BIKE = {"bbox": [0, 0, 100, 50], "category_id": 2}
MAN_BOX = [10, 20, 30, 60]
BIKE_BOX = [0, 0, 100, 50]
CUP_BOX = [5, 5, 9, 9]
HICO_PAIRS = {
    "annotation": [
        {
            "boxes_h": [MAN_BOX, MAN_BOX],
            "boxes_o": [BIKE_BOX, CUP_BOX],
            "object": [1, 0],
            "verb": [1, 0],
        },
        {"boxes_h": [], "boxes_o": [], "object": [], "verb": []},
    ],
    "filenames": ["HICO_train2015_00000001.jpg", "HICO_train2015_00000002.jpg"],
    "objects": ["wine_glass", "bicycle"],
    "verbs": ["drink_with", "ride"],
    "size": [[640, 480], [320, 240]],
}
VCOCO_ENDS = {
    "boxes_h": [MAN_BOX, MAN_BOX],
    "boxes_o": [BIKE_BOX, MAN_BOX],
    "objects": [2, 1],
    "actions": [1, 0],
}
VCOCO_PAIRS = {
    "annotations": [VCOCO_ENDS | {"file_name": "COCO_train2014_000000000165.jpg"}],
    "classes": ["talk_on_phone instr", "sit instr"],
    "objects": ["background", "person", "bicycle"],
}

OWN = {"objects": {"1": "person", "37": "kite"}, "relations": ["holding", "flying"]}
NAMES = category_names("open_images")
RELATIONS = relation_names("open_images")
APPLE, SINK = (
    next(number for number, name in NAMES.items() if name == wanted) for wanted in ("apple", "sink")
)
VRD = {
    "img_fn": "003e363ce1f302cd",
    "img_size": [1024, 768],
    "det_labels": [APPLE, SINK],
    "rel": [[0, 1, 7]],
}
VRD |= {"bbox": [[1, 2, 11, 22], [0, 0, 50, 50]]}


BAD_LABELS = ([APPLE, 601], [APPLE], [APPLE, [1]])
BAD_RELATIONS = ([0, 2, 7], [0, 1, 30], [0.5, 1, 3], 3)


def hoi(subject, object_, verb):
    return {"subject_id": subject, "object_id": object_, "category_id": verb}


def save(folder: Path, content, name: str = "hoi.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def write(folder, *items, prefix="HICO_test2015_"):
    content = [
        {
            "file_name": f"{prefix}{number:08d}.jpg",
            "annotations": boxes,
            "hoi_annotation": relations,
        }
        for number, (boxes, relations) in enumerate(items, 1)
    ]
    return save(folder, content)


def records(source: AnnotationSource) -> list[Record]:
    problems: Counter[str] = Counter()
    read = list(source.read(problems))
    assert not +problems
    return read


@pytest.fixture(scope="module")
def hico_test(oracle):
    """All test images of HICO-DET, from box pairs."""
    return records(hico_source(oracle / "data/hicodet/instances_test2015.json", "test"))


def test_boxes_become_objects_and_ids_become_names(tmp_path):
    (record,) = records(
        hico_source(write(tmp_path, ([MAN, BIKE], [hoi(0, 1, 77), hoi(0, 1, 88)])), "test")
    )
    assert (record.image_id, record.file_name) == (
        "HICO_test2015_00000001",
        "HICO_test2015_00000001.jpg",
    )
    assert (record.dataset, record.split, record.width) == ("hico", "test", 0)
    assert record.objects == [
        Box("person", 1, (10, 20, 20, 40)),
        Box("bicycle", 2, (0, 0, 100, 50)),
    ]
    assert record.relations == [Relation(0, 1, "ride"), Relation(0, 1, "sit on")]


@pytest.mark.parametrize(
    ("boxes", "relations", "reason"),
    [
        ([MAN], [hoi(0, 1, 77)], "object 1 of a relation"),
        ([MAN], [hoi(-1, 0, 77)], "object -1 of a relation"),
        ([MAN], [hoi(0, -1, 77)], "object -1 of a relation"),
        ([MAN, {**BIKE, "category_id": 12}], [], "category_id 12 of an object"),
        ([MAN, BIKE], [hoi(0, 1, 118)], "label 118 of a relation"),
        ([MAN, {**BIKE, "bbox": [1, 2, 3]}], [], "expected 4 numbers"),
        ([MAN, BIKE], [{"subject_id": 0, "object_id": 1}], "'category_id'"),
        ({}, [], "'annotations'"),
    ],
)
def test_an_invalid_image_is_an_error_row(tmp_path, boxes, relations, reason):
    good = ([MAN, BIKE], [hoi(0, 1, 77)])
    imported = records(hico_source(write(tmp_path, good, (boxes, relations), good), "train"))
    assert values_of(imported, "status") == ["ok", "error", "ok"]
    assert reason in imported[1].error
    assert (imported[1].objects, imported[1].relations) == ([], [])


def test_relations_without_object_share_a_box(tmp_path):
    path = write(
        tmp_path,
        ([MAN, BIKE], [hoi(0, -1, 23), hoi(0, 1, 3), hoi(0, -1, 1)]),
        prefix="COCO_val2014_",
    )
    (record,) = records(vcoco_source(path, "val"))
    assert record.image_id == "1"
    assert record.objects[2:] == [Box(NO_OBJECT, -1, (0, 0, 0, 0))]
    assert record.relations == [
        Relation(0, 2, "smile"),
        Relation(0, 1, "ride on"),
        Relation(0, 2, "stand"),
    ]


def test_files_whose_names_show_no_dataset_may_be_of_both(tmp_path):
    path = write(tmp_path, ([MAN, BIKE], [hoi(0, 1, 5)]), prefix="renamed_")
    (as_hico,), (as_vcoco,) = (
        records(hico_source(path, "train")),
        records(vcoco_source(path, "train")),
    )
    assert (as_hico.relations[0].predicate, as_vcoco.relations[0].predicate) == ("board", "look at")


def test_class_lists_are_the_official_ones(oracle):
    data = oracle / "data"
    objects = tuple(json.loads((data / "hicodet/hico_object_names.txt").read_text()))
    verbs = [
        line.split()[-1] for line in (data / "hicodet/hico_verb_names.txt").read_text().splitlines()
    ]
    assert HICO.classes.objects == objects
    assert HICO.classes.relations == tuple(verb.replace("_", " ") for verb in verbs)
    names = json.loads((data / "vcoco/vcoco_names_v3.json").read_text())
    assert list(VCOCO.classes.objects) == names["object_names"]
    assert list(VCOCO.classes.relations) == names["verb_names"]
    published = json.loads((data / "openimages/categories_dict.json").read_text())
    assert list(NAMES.values()) == published["obj"]
    assert list(RELATIONS.values()) == published["rel"]
    assert list(NAMES) == list(range(601))


def test_both_formats_have_the_same_relations(oracle, hico_test):
    """300 test images of HICO-DET in HOIA format, and all 9,658 as box pairs."""
    hoia = records(
        hico_source(oracle / "data/hicodet/test_hico_sample300.qpic_format.json", "test")
    )
    by_id = {record.image_id: record for record in hico_test}
    assert len(hoia) == 300
    assert all(values_of(hoia, "ok"))
    assert list(map(_facts, hoia)) == [_facts(by_id[record.image_id]) for record in hoia]


def _facts(record) -> Counter:
    return Counter(
        (
            record.objects[r.subject].bbox,
            r.predicate,
            record.objects[r.object].category,
            record.objects[r.object].bbox,
        )
        for r in record.relations
    )


def test_equal_boxes_of_hico_pairs_are_one_object(tmp_path):
    record, empty = records(hico_source(save(tmp_path, HICO_PAIRS), "train"))
    assert (record.image_id, record.width, record.height) == ("HICO_train2015_00000001", 640, 480)
    assert record.objects == [
        Box("person", 1, (10, 20, 20, 40)), Box("bicycle", 2, (0, 0, 100, 50)), Box("wine glass", 46, (5, 5, 4, 4))
    ]  # fmt: skip
    assert record.relations == [Relation(0, 1, "ride"), Relation(0, 2, "drink with")]
    assert (empty.ok, empty.objects, empty.relations, empty.width) == (True, [], [], 320)


def test_vcoco_pairs_get_the_names_of_sgpipe(tmp_path):
    (record,) = records(vcoco_source(save(tmp_path, VCOCO_PAIRS), "train"))
    assert (record.image_id, record.width) == ("165", 0)
    assert values_of(record.objects, "category") == ["person", "bicycle"]
    assert record.relations == [Relation(0, 1, "sit on/at"), Relation(0, 0, "talk on phone")]


@pytest.mark.parametrize(
    "change",
    [
        {"object": [1]},
        {"object": [1, 9]},
        {"verb": [1, None]},
        {"boxes_h": [MAN_BOX, [1, 2]]},
        {"boxes_h": None},
    ],
)
def test_invalid_pairs_are_an_error_row(tmp_path, change):
    content = {
        **HICO_PAIRS,
        "annotation": [HICO_PAIRS["annotation"][0] | change, HICO_PAIRS["annotation"][1]],
    }
    broken, good = records(hico_source(save(tmp_path, content), "train"))
    assert good.ok
    assert broken.error
    assert not broken.objects


@pytest.mark.parametrize(
    ("content", "open_source"),
    [
        *(
            ({**HICO_PAIRS, **odd}, hico_source)
            for odd in ({"objects": ["unicorn"]}, {"verbs": ["levitate"]})
        ),
        *(
            ({**HICO_PAIRS, **odd}, hico_source)
            for odd in ({"verbs": []}, {"filenames": ["1.jpg"]})
        ),
        *(
            ({**VCOCO_PAIRS, **odd}, vcoco_source)
            for odd in ({"classes": ["sit"]}, {"objects": []})
        ),
    ],
)
def test_names_of_another_dataset_are_refused(tmp_path, content, open_source):
    with pytest.raises(UserError, match=r"pairs\.json"):
        records(open_source(save(tmp_path, content, "pairs.json"), "train"))


def test_counts_of_the_real_files(oracle, hico_test):
    assert all(values_of(hico_test, "ok"))
    counts = [len(record.relations) for record in hico_test]
    assert (len(hico_test), counts.count(0), sum(counts)) == (9658, 112, 33405)
    path = oracle / "data/vcoco/fredzzhang_instances_vcoco_train.json"
    images = records(vcoco_source(path, "train"))
    pairs = [len(image["actions"]) for image in json.loads(path.read_text())["annotations"]]
    assert [len(record.relations) for record in images] == pairs
    assert len(images) == 2533


def drawn(tmp_path, relations, objects=(1, 37)):
    """A file in HOIA format with four images."""
    boxes = [{"bbox": [0, 0, 9, 9], "category_id": category} for category in objects]
    return write(tmp_path, *[(boxes, [hoi(0, 1, verb) for verb in relations])] * 4, prefix="")


@pytest.mark.parametrize(
    ("relations", "objects"),
    [((1, 3), (1, 38)), ((150, 200), (1, 38)), ((0,), (1, 38)), ((37,), (1, 200))],
)
def test_a_file_of_other_classes_than_hico_det_is_refused(tmp_path, relations, objects):
    with pytest.raises(UserError, match=r"are not those of HICO-DET: .*pass --classes FILE"):
        hico_source(drawn(tmp_path, relations, objects), "train")


def test_a_file_of_other_classes_is_read_with_their_list(tmp_path):
    hico_source(drawn(tmp_path, (37,), (1, 38)), "train")
    classes = save(tmp_path, OWN, "hoi_classes.json")
    source = hico_source(drawn(tmp_path, (1, 2)), "train", classes)
    imported = records(source)
    assert (source.dataset, set(source.files)) == ("hoia", {"annotations", "classes"})
    assert source.classes.relations == ("holding", "flying")
    assert [values_of(record.relations, "predicate") for record in imported] == [
        ["holding", "flying"]
    ] * 4
    assert set(values_of(imported[0].objects, "category")) == {"person", "kite"}
    with pytest.raises(UserError, match=r"are not those of .*hoi_classes\.json"):
        hico_source(drawn(tmp_path, (9,)), "train", classes)
    vcoco = vcoco_source(drawn(tmp_path, (1,)), "train", classes)
    assert records(vcoco)[0].relations[0].predicate == "holding"


HOIA = {
    "file_name": "003e363ce1f302cd.jpg",
    "annotations": [
        {"bbox": [1, 2, 11, 22], "category_id": APPLE},
        {"bbox": [0, 0, 50, 50], "category_id": SINK},
    ],
    "rel_annotations": [hoi(0, 1, 7)],
}


@pytest.mark.parametrize(("item", "size"), [(HOIA, (0, 0)), (VRD, (1024, 768))])
def test_both_formats_of_open_images_give_the_same_record(tmp_path, item, size):
    source = open_images_source(save(tmp_path, [item]), "test")
    (record,) = records(source)
    assert (record.image_id, record.file_name) == ("003e363ce1f302cd", "003e363ce1f302cd.jpg")
    assert (record.width, record.height) == size
    assert record.objects == [
        Box("apple", APPLE, (1, 2, 10, 20)),
        Box("sink", SINK, (0, 0, 50, 50)),
    ]
    assert record.relations == [Relation(0, 1, "on")]
    assert (len(source.classes.objects), source.classes.objects[APPLE]) == (601, "apple")


def test_only_the_given_classes_of_open_images_are_kept(tmp_path):
    """The ids of the annotations refer to all 601 classes, not to the given list."""
    categories = save(
        tmp_path, {"obj": ["sink", "bird"], "rel": list(RELATIONS.values())}, "categories.json"
    )
    source = open_images_source(save(tmp_path, [VRD]), "test", categories)
    problems = Counter()
    (record,) = source.read(problems)
    assert source.classes.objects == ("sink", "bird")
    assert (record.objects, record.relations) == ([Box("sink", SINK, (0, 0, 50, 50))], [])
    assert +problems == {"unknown_category": 1, "relations_of_dropped_boxes": 1}
    for wrong in (
        {"obj": ["unicorn"], "rel": list(RELATIONS.values())},
        {"obj": ["sink"], "rel": ["on"]},
        [1],
    ):
        with pytest.raises(UserError, match=r"categories\.json.*expected"):
            open_images_source(
                tmp_path / "hoi.json", "test", save(tmp_path, wrong, "categories.json")
            )


@pytest.mark.parametrize(
    "change",
    [
        *({"det_labels": labels} for labels in BAD_LABELS),
        *({"rel": [bad_relation]} for bad_relation in BAD_RELATIONS),
    ],
)
def test_an_invalid_image_of_open_images_is_an_error_row(tmp_path, change):
    imported = records(open_images_source(save(tmp_path, [VRD, VRD | change]), "test"))
    assert values_of(imported, "status") == ["ok", "error"]
    assert not imported[1].objects
