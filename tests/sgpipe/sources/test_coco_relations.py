import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.sources.coco import coco_relations_source, coco_source, read_coco

IMAGES = [
    {"id": 7, "file_name": "7.jpg", "width": 100, "height": 50},
    {"id": 8, "file_name": "8.jpg", "width": 100, "height": 50},
]
CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}]
NAMES = ["__background__", "on", "by"]


def box(image_id, x, category_id=3, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, 0, 10, 10], **more}


def write(folder, annotations, relations, names=NAMES):
    content = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "rel.json").write_text(json.dumps({"val": relations, "train": {}, "rel_categories": names}))
    return coco_relations_source(folder / "val.json", folder / "rel.json", "val")


def read(*arguments):
    problems: Counter[str] = Counter()
    source = write(*arguments)
    return list(source.read(problems)), +problems


def test_relations_refer_to_boxes_without_crowds(tmp_path):
    annotations = [box(8, 1), box(7, 2, iscrowd=1), box(7, 3), box(8, 4), box(7, 5, 1)]
    (first, second), problems = read(tmp_path, annotations, {"7": [[1, 0, 1], [0, 1, 2]]})
    assert not problems
    crowd, dog, person = (
        Box("dog", 3, (2, 0, 10, 10), True),
        Box("dog", 3, (3, 0, 10, 10)),
        Box("person", 1, (5, 0, 10, 10)),
    )
    assert first.objects == [crowd, dog, person]
    assert first.relations == [Relation(2, 1, "on"), Relation(1, 2, "by")]
    assert (first.width, first.height, first.dataset) == (100, 50, "coco_rel")
    assert (len(second.objects), second.relations) == (2, [])


@pytest.mark.parametrize(
    ("annotations", "triplets", "reason"),
    [
        ([box(7, 0)], [[0, 1, 1]], "out of range: the image has 1 object"),
        ([box(7, 0)], [[-1, 0, 1]], "out of range: the image has 1 object"),
        ([box(7, 0)], [[0, 0, 0]], "label 0 of a relation"),
        ([box(7, 0)], [[0, 0, 3]], "label 3 of a relation"),
        ([box(7, 0)], [[0, 0]], "expected 3 numbers"),
        ([box(7, 0)], {"a": 1}, "expected 3 numbers"),
        ([box(7, 0, 99)], [], "category_id 99 of an object"),
        ([box(7, 0, None), box(7, 1)], [[0, 0, 1]], "no valid category_id and bbox"),
        ([box(7, 0) | {"bbox": [1]}, box(7, 1)], [[0, 0, 1]], "no valid category_id and bbox"),
    ],
)
def test_an_invalid_image_is_an_error_row(tmp_path, annotations, triplets, reason):
    (broken, good), _ = read(tmp_path, [*annotations, box(8, 0)], {"7": triplets, "8": [[0, 0, 1]]})
    assert reason in broken.error
    assert good.relations == [Relation(0, 0, "on")]


@pytest.mark.parametrize(
    ("names", "label", "used"),
    [
        (["__background__", "__background__", "on"], 1, ("__background__", "on")),
        (["on", "__background__"], 1, ("on", "__background__")),
        (["on", "by"], 0, ("on", "by")),
    ],
)
def test_only_category_0_is_no_relation(tmp_path, names, label, used):
    source = write(tmp_path, [box(7, 0)], {"7": [[0, 0, label]]}, names)
    assert source.classes.relations == used
    assert next(iter(source.read(Counter()))).relations == [Relation(0, 0, names[label])]


def related(subject, predicate, object_, image_id=7, **more):
    ends = {"subject_id": subject, "predicate_id": predicate, "object_id": object_}
    return {"image_id": image_id, **ends, **more}


def read_own(folder, annotations, relations, names=("on", "by")):
    """Instances in SGG-Benchmark's form, in which ids of boxes and predicates may begin at 0."""
    content = {
        "images": IMAGES,
        "rel_annotations": relations,
        "annotations": annotations,
        "categories": CATEGORIES,
        "rel_categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    (folder / "val.json").write_text(json.dumps(content))
    problems: Counter[str] = Counter()
    source = coco_relations_source(folder / "val.json", None, "val")
    return list(source.read(problems)), +problems, source.classes


def test_relations_in_the_instances_refer_to_ids_of_boxes(tmp_path):
    annotations = [box(8, 1, id=5), box(7, 2, id=0, iscrowd=1), box(7, 3, id=9)]
    relations = [related(9, 1, 0, confidence=0.5), related(0, 0, 9), related(5, 0, 5, 8), related(5, 0, 5, 6)]
    (first, second), problems, classes = read_own(tmp_path, annotations, relations)
    assert first.relations == [Relation(1, 0, "by", 0.5), Relation(0, 1, "on")]
    assert second.relations == [Relation(0, 0, "on")]
    assert (classes.objects, classes.relations) == (("person", "dog"), ("on", "by"))
    assert problems == {"unlisted_images": 1}


@pytest.mark.parametrize(
    ("relation", "names", "reason"),
    [
        (related(1, 0, 5), ["on"], "object 5 of a relation is not the id of an annotation of the image"),
        (related(1, 2, 1), ["on"], "label 2 of a relation"),
        (related(1, 0, 1), ["__background__", "on"], "label 0 of a relation"),
        (related("?", 0, 1), ["on"], None),
        (related(1, 0, 1, confidence=2), ["on"], None),
        (None, ["on"], None),
    ],
)
def test_an_invalid_relation_makes_an_error_row_or_is_counted(tmp_path, relation, names, reason):
    annotations = [box(7, 1, id=1), box(8, 1, id=5), box(8, 1, id="six"), box(8, 1)]
    (first, second), problems, _ = read_own(tmp_path, annotations, [relation, related(5, 0, 5, 8)], [*names, "by"][:2])
    assert second.ok or names[0] == "__background__"
    assert (first.error, problems) == (None, {"malformed": 1}) if reason is None else reason in first.error


def test_instances_without_relations_are_refused_unless_their_list_is_empty(tmp_path):
    (first, _), problems, _ = read_own(tmp_path, [box(7, 0, id=1)], [])
    assert (first.relations, problems) == ([], {})
    with pytest.raises(UserError, match=r"has no rel_annotations: give its relations by --relations rel\.json"):
        coco_relations_source(write(tmp_path, [box(7, 0)], {}).files["annotations"], None, "val")


def test_an_unknown_split_is_refused(tmp_path):
    files = write(tmp_path, [box(7, 0)], {}).files
    with pytest.raises(UserError, match=r"rel\.json has no split 'test': pass --split train or val"):
        coco_relations_source(files["annotations"], files["relations"], "test")
    with pytest.raises(UserError, match=r"is a COCO instances file .*, not relation triplets"):
        coco_relations_source(files["annotations"], files["annotations"], "val")


def test_real_instances_keep_all_their_boxes(oracle, tmp_path):
    path = oracle / "data/coco_mini/instances_val2017.json"
    instances = json.loads(path.read_text())
    boxes = Counter(str(item["image_id"]) for item in instances["annotations"])
    crowds = Counter(str(item["image_id"]) for item in instances["annotations"] if item["iscrowd"])
    triplets = {image_id: [[0, count - 1, 1]] for image_id, count in (boxes - crowds).items()}
    (tmp_path / "rel.json").write_text(json.dumps({"val": triplets, "rel_categories": NAMES}))
    found = list(coco_relations_source(path, tmp_path / "rel.json", "val").read(Counter()))
    assert all(record.ok for record in found)
    assert {record.image_id: len(record.objects) for record in found if record.objects} == boxes
    assert sum(len(record.relations) for record in found) == len(triplets)
    assert (boxes.total(), crowds.total()) == (624, 5)


def test_a_category_id_with_two_names_is_refused(tmp_path):
    file = tmp_path / "val.json"
    categories = [*CATEGORIES, {"id": 3, "name": "cat"}]
    file.write_text(json.dumps({"images": IMAGES, "annotations": [box(7, 0)], "categories": categories}))
    reason = f"{file}: category 3 is both 'dog' and 'cat'"
    with pytest.raises(UserError, match=reason):
        list(coco_source(file, "val").read(Counter()))
    with pytest.raises(UserError, match=reason):
        read_coco(file, None, dataset="coco", split="val")
