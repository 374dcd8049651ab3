"""COCO's form: as columns to be labelled, as records to be imported with relations, and as
Objects365 has it.
"""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.records import Box, Relation
from sgpipe.sources.coco import coco_relations_source, coco_source, read_coco
from sgpipe.sources.detections import MAX_CAPTIONS, write_detections
from sgpipe.sources.opening import open_source
from sgpipe.storage.source_index import SourceIndex
from tests.values import values_of

IMAGE = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 50}
DOG = {"id": 18, "name": "dog"}
NAME = "images/v1/patch8/1.jpg"
IMAGES = [IMAGE | {"id": 7, "file_name": "7.jpg"}, IMAGE | {"id": 8, "file_name": "8.jpg"}]
CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}]
NAMES = ["__background__", "on", "by"]


def box(bbox, image_id=1, category_id=18, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def save(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def index_of(
    tmp_path, annotations, images=(IMAGE,), categories=(DOG,), captions=None
) -> SourceIndex:
    content = {"annotations": annotations, "images": list(images), "categories": list(categories)}
    path = save(tmp_path / "instances.json", content)
    captions_path = (
        None if captions is None else save(tmp_path / "captions.json", {"annotations": captions})
    )
    detections, meta = read_coco(path, captions_path, dataset="coco", split="val")
    write_detections(tmp_path / "index.arrow", detections, meta)
    return SourceIndex(tmp_path / "index.arrow")


def problems_of(index: SourceIndex) -> dict[str, int]:
    return {name: number for name, number in index.meta["problems"].items() if number}


def test_boxes_are_clipped_to_their_image(tmp_path):
    corners = (
        [10, 10, 20, 20],
        [-5, 10, 20, 20],
        [-1e300, 0, 2e300, 50],
        [200, 10, 5, 5],
        [1, 1, float("inf"), 5],
    )
    index = index_of(tmp_path, [*map(box, corners)])
    [record] = index.records(0, 1)
    assert values_of(record.objects, "bbox") == [
        (10, 10, 20, 20),
        (0, 10, 15, 20),
        (0, 0, 100, 50),
    ]
    assert problems_of(index) == {"clipped": 2, "degenerate": 1, "not_finite": 1}


def test_duplicates_unknown_ids_and_crowds_are_counted(tmp_path):
    annotations = [
        box([1, 1, 5, 5], image_id="1"),
        box([1, 1, 5, 5.001]),
        box([1, 1, 5, 5], image_id=1.0, iscrowd=1),
        box([1, 1, 5, 5], category_id=99),
        box([1, 1, 5, 5], image_id=7),
        {"bbox": [1, 2, 3, 4]},
        "not an object",
    ]
    index = index_of(tmp_path, annotations, images=[IMAGE, IMAGE | {"file_name": "again.jpg"}])
    (record,) = index.records(0, len(index))
    assert values_of(record.objects, "category", "category_id", "iscrowd") == [
        ("dog", 18, False),
        ("dog", 18, True),
    ]
    once = ("crowd", "duplicate_boxes", "duplicate_images", "unknown_category", "unknown_image")
    assert problems_of(index) == {**dict.fromkeys(once, 1), "malformed": 2}
    assert (record.image_id, record.dataset, record.split, record.file_name) == (
        "1",
        "coco",
        "val",
        "1.jpg",
    )


def test_slices_keep_every_box_with_its_image(tmp_path, monkeypatch):
    monkeypatch.setattr("sgpipe.sources.detections._SLICE", 7)
    owners = np.random.default_rng(0).integers(0, 50, 400)
    boxes = [
        box([n % 90, n % 40, 3 + n / 100, 2], image_id=int(owner)) for n, owner in enumerate(owners)
    ]
    index = index_of(tmp_path, boxes, images=[IMAGE | {"id": i} for i in range(50)])
    for owner, record in enumerate(index.records(0, 50)):
        assert [list(b.bbox) for b in record.objects] == [
            b["bbox"] for b in boxes if b["image_id"] == owner
        ]
    assert values_of(index.records(6, 8), "image_id") == ["6", "7"]


def test_captions_are_attached_to_their_images_and_limited_whatever_their_order(tmp_path):
    texts = [(1, "  a dog\n runs "), (5, "elsewhere"), (1, ""), (1, None)]
    captions = [{"image_id": image, "caption": text} for image, text in texts]
    index = index_of(tmp_path, [], captions=captions)
    (record,) = index.records(0, 1)
    assert (values_of(record.captions, "text"), record.left_out) == (
        ["a dog runs"],
        {"captions": 1},
    )
    assert problems_of(index) == {"malformed": 1, "unlisted_captions": 1}
    captions = [{"image_id": 1, "caption": f"dog {i}"} for i in range(MAX_CAPTIONS + 50)]
    (one,), (other,) = (
        index_of(tmp_path, [], captions=o).records(0, 1) for o in (captions, captions[::-1])
    )
    assert one.left_out == other.left_out == {"captions": 50}
    assert len(one.captions) == MAX_CAPTIONS
    assert set(values_of(one.captions, "text")) == set(values_of(other.captions, "text"))


@pytest.mark.parametrize("part", ["images", "annotations", "categories", "captions"])
def test_the_order_of_entries_changes_only_the_order_of_rows_and_boxes(tmp_path, part):
    rng = np.random.default_rng(7)
    places = zip(
        *rng.random((2, 60)).round(3) * 40,
        rng.integers(0, 5, 60),
        rng.integers(1, 4, 60),
        strict=True,
    )
    boxes = [
        box([float(x), float(y), 9, 9], int(image), int(category))
        for x, y, image, category in places
    ]
    boxes += [{**annotation, "bbox": [*annotation["bbox"][:3], 9.001]} for annotation in boxes[:20]]
    parts = {
        "images": [IMAGE | {"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
        "annotations": boxes,
        "categories": [
            {"id": i, "name": name} for i, name in enumerate(("dog", "cat", "cup"), start=1)
        ],
        "captions": [{"image_id": i % 5, "caption": f"caption {i}"} for i in range(20)],
    }

    def content() -> tuple:
        index = index_of(tmp_path, **parts)
        rows = {
            (record.image_id, record.file_name): (
                sorted((b.category, b.category_id, *b.bbox) for b in record.objects),
                sorted(values_of(record.captions, "text")),
            )
            for record in index.records(0, len(index))
        }
        return index.meta["categories"], index.meta["problems"], rows

    before = content()
    rng.shuffle(parts[part])
    assert content() == before


def test_the_annotation_file_is_read_again_only_after_a_change_or_damage(tmp_path, monkeypatch):
    content = {"images": [IMAGE], "annotations": [], "categories": [DOG]}
    index = tmp_path / "i.arrow"
    path = save(tmp_path / "instances.json", content)
    source = SourceConfig(splits={"val": SplitConfig(annotations=path, images=tmp_path)})
    expected = open_source(source, "val", index).meta
    with monkeypatch.context() as patch:
        patch.setattr(
            "sgpipe.sources.opening.read_coco",
            lambda *a, **k: pytest.fail("the file was read again"),
        )
        assert len(open_source(source, "val", index)) == 1
    described = index.with_suffix(".json")
    text = described.read_text()
    changed = (
        text.replace('"dog"', '"bat"'),
        text.replace('"categories"', '"categoriez"'),
        "[]",
        "{",
    )
    damages = (partial(index.write_bytes, b"x"), index.unlink, described.unlink)
    for damage in (
        *damages,
        *(partial(described.write_text, content_of_file) for content_of_file in changed),
    ):
        damage()
        assert open_source(source, "val", index).meta == expected
    save(path, content | {"images": [IMAGE, IMAGE | {"id": 2}]})
    assert len(open_source(source, "val", index)) == 2


def test_real_coco_counts(oracle: Path, tmp_path):
    folder = oracle / "data" / "coco_mini"
    files = (folder / f"{kind}_val2017.json" for kind in ("instances", "captions"))
    write_detections(tmp_path / "val", *read_coco(*files, dataset="coco", split="val"))
    meta = SourceIndex(tmp_path / "val").meta
    assert (meta["images"], meta["boxes"], meta["problems"]["crowd"]) == (79, 624, 5)
    assert (meta["categories"][:3], len(meta["categories"])) == (["person", "bicycle", "car"], 80)


@pytest.mark.parametrize(
    "on_disk", [NAME, "v1/patch8/1.jpg", "patch8/1.jpg", "1.jpg", "elsewhere.jpg"]
)
def test_images_of_objects365_are_found_in_every_layout(tmp_path, on_disk):
    expected = "patch8/1.jpg" if on_disk == "elsewhere.jpg" else on_disk
    image = tmp_path / "train" / on_disk
    image.parent.mkdir(parents=True)
    image.touch()
    categories = [{"id": 38, "name": "Moniter/TV"}, {"id": 53, "name": "Bakset"}]
    content = {"images": [IMAGE | {"file_name": NAME}], "annotations": [box([9, 8, 7, 6], 1, 38)]}
    path = save(tmp_path / "zhiyuan_objv2_train.json", content | {"categories": categories})
    splits = {"train": SplitConfig(annotations=path, images=tmp_path / "train")}
    index = open_source(
        SourceConfig(format="objects365", splits=splits), "train", tmp_path / "index.arrow"
    )
    [record] = index.records(0, 1)
    assert (record.file_name, record.dataset) == (expected, "objects365")
    assert record.objects[0].category == index.meta["categories"][0] != "Moniter/TV"
    assert index.meta["categories"][1] == "basket"


def at(image_id, x, category_id=3, **more):
    return box([x, 0, 10, 10], image_id, category_id, **more)


def write(folder, annotations, relations, names=NAMES):
    content = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}
    triplets = {"val": relations, "train": {}, "rel_categories": names}
    return coco_relations_source(
        save(folder / "val.json", content), save(folder / "rel.json", triplets), "val"
    )


def test_relations_refer_to_boxes_without_crowds(tmp_path):
    annotations = [at(8, 1), at(7, 2, iscrowd=1), at(7, 3), at(8, 4), at(7, 5, 1)]
    problems: Counter[str] = Counter()
    first, second = write(tmp_path, annotations, {"7": [[1, 0, 1], [0, 1, 2]]}).read(problems)
    assert not +problems
    places = [
        ("dog", 3, (2, 0, 10, 10), True),
        ("dog", 3, (3, 0, 10, 10)),
        ("person", 1, (5, 0, 10, 10)),
    ]
    assert first.objects == [Box(*place) for place in places]
    assert first.relations == [Relation(2, 1, "on"), Relation(1, 2, "by")]
    assert (first.width, first.height, first.dataset) == (100, 50, "coco_rel")
    assert (len(second.objects), second.relations) == (2, [])


@pytest.mark.parametrize(
    ("annotations", "triplets"),
    [
        *(
            ([at(7, 0)], triplets)
            for triplets in (
                [[0, 1, 1]],
                [[-1, 0, 1]],
                [[0, 0, 0]],
                [[0, 0, 3]],
                [[0, 0]],
                {"a": 1},
            )
        ),
        ([at(7, 0, 99)], []),
        ([at(7, 0)], None),
        ([at(7, 0, None), at(7, 1)], [[0, 0, 1]]),
        ([at(7, 0) | {"bbox": [1]}, at(7, 1)], [[0, 0, 1]]),
    ],
)
def test_an_invalid_image_is_an_error_row(tmp_path, annotations, triplets):
    source = write(tmp_path, [*annotations, at(8, 0)], {"7": triplets, "8": [[0, 0, 1]]})
    broken, good = source.read(Counter())
    assert broken.error
    assert good.relations == [Relation(0, 0, "on")]


@pytest.mark.parametrize(
    "names", [["__background__", "__background__", "on"], ["on", "__background__"]]
)
def test_only_category_0_is_no_relation(tmp_path, names):
    source = write(tmp_path, [at(7, 0)], {"7": [[0, 0, 1]]}, names)
    assert source.classes.relations == tuple(names[-2:])
    assert next(iter(source.read(Counter()))).relations == [Relation(0, 0, names[1])]


def related(subject, predicate, object_, image_id=7, **more):
    return {
        "image_id": image_id,
        "subject_id": subject,
        "predicate_id": predicate,
        "object_id": object_,
        **more,
    }


def read_own(folder, annotations, relations, names=("on", "by")):
    """Instances in SGG-Benchmark's form, in which ids of boxes and predicates may begin at 0."""
    listed = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}
    content |= {"rel_annotations": relations, "rel_categories": listed}
    problems: Counter[str] = Counter()
    source = coco_relations_source(save(folder / "val.json", content), None, "val")
    return list(source.read(problems)), +problems, source.classes


def test_relations_in_the_instances_refer_to_ids_of_boxes(tmp_path):
    annotations = [at(8, 1, id=5), at(7, 2, id=0, iscrowd=1), at(7, 3, id=9)]
    relations = [
        related(9, 1, 0, confidence=0.5),
        related(0, 0, 9),
        related(5, 0, 5, 8),
        related(5, 0, 5, 6),
    ]
    (first, second), problems, classes = read_own(tmp_path, annotations, relations)
    assert first.relations == [Relation(1, 0, "by", 0.5), Relation(0, 1, "on")]
    assert second.relations == [Relation(0, 0, "on")]
    assert (classes.objects, classes.relations) == (("person", "dog"), ("on", "by"))
    assert problems == {"unlisted_images": 1}
    list(coco_source(tmp_path / "val.json", "val").read(problems))
    assert problems["ignored_relations"] == 4


@pytest.mark.parametrize(
    ("relation", "names", "malformed"),
    [
        *((relation, ["on"], False) for relation in (related(1, 0, 5), related(1, 2, 1))),
        (related(1, 0, 1), ["__background__", "on"], False),
        *(
            (item, ["on"], True)
            for item in (related("?", 0, 1), related(1, 0, 1, confidence=2), None)
        ),
    ],
)
def test_an_invalid_relation_makes_an_error_row_or_is_counted(tmp_path, relation, names, malformed):
    annotations = [at(7, 1, id=1), at(8, 1, id=5), at(8, 1, id="six"), at(8, 1, id=10**400)]
    (first, second), problems, _ = read_own(
        tmp_path, annotations, [relation, related(5, 0, 5, 8)], [*names, "by"][:2]
    )
    assert second.ok or names[0] == "__background__"
    assert (first.ok, problems) == (malformed, {"malformed": 1} if malformed else {})


def test_files_that_do_not_fit_are_refused(tmp_path):
    # an empty list of relations does
    (first, _), problems, _ = read_own(tmp_path, [at(7, 0, id=1)], [])
    assert (first.relations, problems) == ([], {})
    files = write(tmp_path, [at(7, 0)], {}).files
    for relations, split, reason in (
        (
            None,
            "val",
            (
                r"has no rel_annotations or no rel_categories: give its relations by --relations"
                r" rel\.json"
            ),
        ),
        (files["relations"], "test", r"rel\.json has no split 'test': pass --split train or val"),
        (files["annotations"], "val", "has the format 'coco', not 'triplets'"),
    ):
        with pytest.raises(UserError, match=reason):
            coco_relations_source(files["annotations"], relations, split)
    for relations, names in ((None, ["on"]), ([related(1, 0, 1)], [])):
        with pytest.raises(UserError, match="has no rel_annotations or no rel_categories"):
            read_own(tmp_path, [at(7, 0, id=1)], relations, names)


def test_a_class_is_named_by_a_text_or_a_number(tmp_path):
    categories = [
        {"id": number, "name": name} for number, name in enumerate(("dog", 7, None, [1], " "))
    ]
    file = save(
        tmp_path / "val.json",
        {"images": IMAGES, "annotations": [at(7, 0)], "categories": categories},
    )
    instances, _ = read_coco(file, None, dataset="", split="")
    assert (instances.categories, instances.problems["malformed"]) == ({0: "dog", 1: "7"}, 3)


def test_a_category_id_with_two_names_is_refused(tmp_path):
    categories = [*CATEGORIES, {"id": 3, "name": "cat"}]
    file = save(
        tmp_path / "val.json",
        {"images": IMAGES, "annotations": [at(7, 0)], "categories": categories},
    )
    for read in (
        lambda: list(coco_source(file, "val").read(Counter())),
        lambda: read_coco(file, None, dataset="", split=""),
    ):
        with pytest.raises(UserError, match=f"{file}: category 3 is both 'dog' and 'cat'"):
            read()
