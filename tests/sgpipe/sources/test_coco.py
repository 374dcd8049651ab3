import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.sources.coco import read_coco
from sgpipe.sources.detections import MAX_CAPTIONS, write_detections
from sgpipe.sources.opening import open_source
from sgpipe.storage.source_index import SourceIndex

IMAGE = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 50}
DOG = {"id": 18, "name": "dog"}


def box(bbox, image_id=1, category_id=18, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def index_of(tmp_path, annotations, images=(IMAGE,), categories=(DOG,), captions=None) -> SourceIndex:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"annotations": annotations, "images": list(images), "categories": list(categories)}))
    captions_path = None
    if captions is not None:
        captions_path = tmp_path / "captions.json"
        captions_path.write_text(json.dumps({"annotations": captions}))
    detections, meta = read_coco(path, captions_path, dataset="coco", split="val")
    write_detections(tmp_path / "index.arrow", detections, meta)
    return SourceIndex(tmp_path / "index.arrow")


def boxes_of(index: SourceIndex) -> list:
    return [tuple(b.bbox) for record in index.records(0, len(index)) for b in record.objects]


def test_annotations_may_come_before_images(tmp_path):
    index = index_of(tmp_path, [box([1, 2, 3, 4])])
    record = index.records(0, 1)[0]
    assert (record.image_id, record.dataset, record.split, record.file_name) == ("1", "coco", "val", "1.jpg")
    assert (record.objects[0].category, record.objects[0].category_id) == ("dog", 18)
    assert record.objects[0].bbox == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("bbox", "kept", "problem"),
    [
        ([10, 10, 20, 20], (10, 10, 20, 20), None),
        ([-5, 10, 20, 20], (0, 10, 15, 20), "clipped"),
        ([90, 40, 20, 20], (90, 40, 10, 10), "clipped"),
        ([-1e300, 0, 2e300, 50], (0, 0, 100, 50), "clipped"),
        ([10, 10, 0, 20], None, "degenerate"),
        ([10, 10, -3, 20], None, "degenerate"),
        ([200, 10, 5, 5], None, "degenerate"),
        ([float("nan"), 10, 5, 5], None, "degenerate"),
        ([10, 10, float("inf"), 5], None, "degenerate"),
        (["1", "2", "3", "4"], (1, 2, 3, 4), None),
        ([1, 2, 3], None, "malformed"),
        ("1234", None, "malformed"),
        ([1e308, 0, 1e308, 5], None, "degenerate"),
        (None, None, "malformed"),
    ],
)
def test_boxes_are_clipped_dropped_and_counted(tmp_path, bbox, kept, problem):
    index = index_of(tmp_path, [box(bbox), box([0, 0, 1, 1])])
    assert boxes_of(index) == [b for b in (kept, (0, 0, 1, 1)) if b]
    expected = Counter({problem: 1} if problem else {})
    assert Counter({k: v for k, v in index.meta["problems"].items() if v}) == expected


def test_duplicates_unknown_ids_and_crowds_are_counted(tmp_path):
    index = index_of(
        tmp_path,
        [
            box([1, 1, 5, 5]),
            box([1, 1, 5, 5.001]),
            box([1, 1, 5, 5], iscrowd=1),
            box([1, 1, 5, 5], category_id=99),
            box([1, 1, 5, 5], image_id=7),
            {"bbox": [1, 2, 3, 4]},
            "not an object",
        ],
        images=[IMAGE, IMAGE | {"file_name": "again.jpg"}],
    )
    record = index.records(0, 1)[0]
    assert [b.iscrowd for b in record.objects] == [False, True]
    problems = {k: v for k, v in index.meta["problems"].items() if v}
    assert problems == {
        "crowd": 1,
        "duplicate_boxes": 1,
        "duplicate_images": 1,
        "unknown_category": 1,
        "unknown_image": 1,
        "malformed": 2,
    }
    assert len(index) == 1
    assert record.file_name == "1.jpg"


@pytest.mark.parametrize("image", [{"width": 0}, {"height": None}, {"width": "wide"}, {"file_name": None}])
def test_an_image_without_name_or_size_is_an_error_row(tmp_path, image):
    index = index_of(tmp_path, [box([1, 1, 5, 5])], images=[IMAGE | image, IMAGE | {"id": 2}])
    first, second = index.records(0, 2)
    assert first.status == "error"
    assert first.error is not None
    assert first.error.startswith("source: ")
    assert second.ok


@pytest.mark.parametrize("written", ["1", 1, 1.0])
def test_ids_may_be_strings_or_numbers(tmp_path, written):
    index = index_of(tmp_path, [box([1, 1, 5, 5], image_id=written), box([2, 2, 5, 5], image_id=1)])
    assert len(boxes_of(index)) == 2
    index = index_of(tmp_path, [box([1, 1, 5, 5], image_id="1")], images=[IMAGE | {"id": written}])
    assert len(boxes_of(index)) == 1


def test_slices_keep_every_box_with_its_image(tmp_path, monkeypatch):
    monkeypatch.setattr("sgpipe.sources.detections._SLICE", 7)
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 50, 400)
    images = [IMAGE | {"id": i} for i in range(50)]
    boxes = [box([n % 90, n % 40, 3 + n / 100, 2], image_id=int(owner)) for n, owner in enumerate(owners)]
    index = index_of(tmp_path, boxes, images=images)
    for owner, record in enumerate(index.records(0, 50)):
        assert [list(b.bbox) for b in record.objects] == [b["bbox"] for b in boxes if b["image_id"] == owner]


def test_a_damaged_index_is_rebuilt(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [IMAGE], "annotations": [], "categories": [DOG]}))
    source = SourceConfig(splits={"val": SplitConfig(annotations=path, images=tmp_path)})
    for damage in (lambda p: p.write_bytes(b"x"), lambda p: p.unlink(), lambda p: p.with_suffix(".json").unlink()):
        assert len(open_source(source, "val", tmp_path / "i.arrow")) == 1
        damage(tmp_path / "i.arrow")
    assert len(open_source(source, "val", tmp_path / "i.arrow")) == 1


def test_captions_are_attached_to_their_images(tmp_path):
    captions = [
        {"image_id": 1, "caption": "  a dog\n runs "},
        {"image_id": 5, "caption": "elsewhere"},
        {"image_id": 1, "caption": ""},
        {"image_id": 1},
    ]
    index = index_of(tmp_path, [], captions=captions)
    (record,) = index.records(0, 1)
    assert [c.text for c in record.captions] == ["a dog runs"]
    assert record.left_out == {"captions": 1}
    assert (index.meta["problems"]["malformed"], index.meta["problems"]["unlisted_captions"]) == (1, 1)


def test_captions_beyond_a_limit_are_counted_whatever_their_order(tmp_path):
    captions = [{"image_id": 1, "caption": f"dog {i}"} for i in range(MAX_CAPTIONS + 50)]
    kept = []
    for order in (captions, captions[::-1]):
        index = index_of(tmp_path, [], captions=order)
        (record,) = index.records(0, 1)
        assert record.left_out == {"captions": 50}
        kept.append(sorted(c.text for c in record.captions))
    assert kept[0] == kept[1]
    assert len(kept[0]) == MAX_CAPTIONS


@pytest.mark.parametrize("part", ["images", "annotations", "categories", "captions"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_order_of_entries_changes_only_the_order_of_rows_and_boxes(tmp_path, part, seed):
    rng = np.random.default_rng(7)
    boxes = [
        box([round(float(x), 3), round(float(y), 3), 9, 9], image_id=int(image), category_id=int(category))
        for x, y, image, category in zip(
            *rng.random((2, 60)) * 40, rng.integers(0, 5, 60), rng.integers(1, 4, 60), strict=True
        )
    ]
    boxes += [{**each, "bbox": [each["bbox"][0], each["bbox"][1], 9, 9.001]} for each in boxes[:20]]
    parts = {
        "images": [IMAGE | {"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
        "annotations": boxes,
        "categories": [{"id": i, "name": name} for i, name in enumerate(("dog", "cat", "cup"), start=1)],
        "captions": [{"image_id": i % 5, "caption": f"caption {i}"} for i in range(20)],
    }

    def content() -> tuple:
        index = index_of(tmp_path, **parts)
        return index.meta["categories"], index.meta["problems"], {
            record.image_id: (
                record.file_name,
                sorted((b.category, b.category_id, *b.bbox) for b in record.objects),
                sorted(caption.text for caption in record.captions),
            )
            for record in index.records(0, len(index))
        }  # fmt: skip

    before = content()
    parts[part] = parts[part][::-1] if seed is None else np.random.default_rng(seed).permutation(parts[part]).tolist()
    assert content() == before


def test_any_range_of_rows_can_be_read(tmp_path):
    images = [IMAGE | {"id": i} for i in range(1000)]
    index = index_of(tmp_path, [box([1, 1, 5, 5], image_id=i) for i in range(1000)], images=images)
    for start, stop in [(0, 1), (250, 260), (255, 257), (999, 1000), (0, 1000), (256, 512)]:
        records = index.records(start, stop)
        assert [r.image_id for r in records] == [str(i) for i in range(start, stop)]
        assert all(len(r.objects) == 1 for r in records)


def test_the_annotation_file_is_read_only_after_a_change(tmp_path, monkeypatch):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [IMAGE], "annotations": [], "categories": [DOG]}))
    source = SourceConfig(splits={"val": SplitConfig(annotations=path, images=tmp_path)})
    open_source(source, "val", tmp_path / "i.arrow")
    monkeypatch.setattr("sgpipe.sources.opening.read_coco", lambda *a, **k: pytest.fail("the file was read again"))
    assert len(open_source(source, "val", tmp_path / "i.arrow")) == 1
    monkeypatch.undo()
    path.write_text(json.dumps({"images": [IMAGE, IMAGE | {"id": 2}], "annotations": [], "categories": [DOG]}))
    os.utime(path, ns=(1, 1))
    assert len(open_source(source, "val", tmp_path / "i.arrow")) == 2


def test_real_coco_counts(oracle: Path, tmp_path):
    folder = oracle / "data" / "coco_mini"
    for split, images, boxes, crowds in (("train", 80, 739, 8), ("val", 79, 624, 5)):
        detections, meta = read_coco(
            folder / f"instances_{split}2017.json", folder / f"captions_{split}2017.json", dataset="coco", split=split
        )
        write_detections(tmp_path / split, detections, meta)
        meta = SourceIndex(tmp_path / split).meta
        assert (meta["images"], meta["boxes"], meta["problems"]["crowd"]) == (images, boxes, crowds)
        assert meta["categories"][:3] == ["person", "bicycle", "car"]
        assert len(meta["categories"]) == 80
