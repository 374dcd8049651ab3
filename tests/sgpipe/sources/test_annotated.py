"""Formats, splits and fields of annotation files."""

import json
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.sources.annotated import detect_format, infer_split, require_format

BOX = {"bbox": [0, 0, 1, 1], "category_id": 1}
GRAPH = {"image_id": 1, "objects": [], "relationships": []}
SAMPLES: list[tuple[object, str | None]] = [
    ([{"file_name": "HICO_1.jpg", "annotations": [], "hoi_annotation": []}], "hico"),
    ([{"file_name": "COCO_val2014_1.jpg", "annotations": [], "hoi_annotation": []}], "vcoco"),
    ([{"file_name": "1.jpg", "annotations": [], "hoi_annotation": []}], "hoia"),
    ([{"file_name": "1.jpg", "annotations": [], "rel_annotations": []}], "open-images"),
    ([{"img_fn": "1", "bbox": [], "det_labels": [], "rel": []}], "open-images vrd"), ([GRAPH], "vg"),
    ([{**GRAPH, "dataset": "coco2017"}], "rlipv2"), ([{**GRAPH, "data_split": "train"}], "rlipv2"),
    ([{"image_id": 1, "relationships": []}], "relationships"),
    ({"relationships": [{"predicate": "on", "subject": {}, "object": {}}], "image_id": 1}, "relationships"),
    ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 2}], "image_id": 1}, "vg"),
    ([{"image_id": 1, "width": 8, "height": 6}], "image data"),
    ({"annotation": [{"boxes_h": [], "boxes_o": [], "verb": []}]}, "hico pairs"),
    ({"annotations": [{"boxes_h": [], "boxes_o": [], "actions": []}]}, "vcoco pairs"),
    ({"images": [{"id": 1}] * 50, "annotations": [{"image_id": 1, **BOX}]}, "coco"),
    ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}, "captions"),
    ({"train": {"1": [[0, 1, 2]]}, "rel_categories": ["on"]}, "triplets"),
    ({"rel_categories": [{"id": 0, "name": "on"}], "annotations": [{"image_id": 1, **BOX}]}, "coco"),
    ({"rel_annotations": [{"subject_id": 0, "object_id": 1, "predicate_id": 0}]}, "coco-rel"),
    ([{"id": 1, "data": {"image": "1.jpg"}, "annotations": []}], "label-studio"), ({}, None),
    ([1, "two", None], None), ({"obj": ["person"], "rel": ["on"]}, None),
]  # fmt: skip


def write(folder, content):
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("content", "expected"), SAMPLES)
def test_formats_are_detected_by_items(tmp_path, content, expected):
    assert detect_format(write(tmp_path, content)) == expected


def test_a_file_of_another_format_is_refused(tmp_path):
    path = write(tmp_path, {"images": [], "annotations": [{"image_id": 1, **BOX}]})
    with pytest.raises(
        UserError, match=r"file.json has the format 'coco', not 'hico' or 'hico pairs'"
    ):
        require_format(path, "hico", "hico pairs")
    with pytest.raises(UserError, match="has a format that sgpipe does not know, not 'vcoco'"):
        require_format(write(tmp_path, [{"some": "thing"}]), "vcoco")
    assert require_format(write(tmp_path, [GRAPH]), "relationships", "vg") == "vg"


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("train/instances_val2017.json.gz", "images", "val"), ("trainval_hico.json", "train2015", "train"),
        ("train_then_val.json", "images", "val"), ("image_info_test-dev2017.json", "images", "test"),
        ("inst.json", "images_val2017", "val"), ("inst.json", "valid", "val"), ("inst.json", "test_photos", "test"),
        ("instances_val2017.json", "test_of_a_camera", "val"), ("inst.json", "Validation", "val"),
        ("inst.json", "trainImages", "train"), ("val/inst.json", "val/images", "val"),
        ("labels/inst.json", "train2014/images", "train"), ("instances_all.json", "train2017", "all"),
        ("train/_annotations.coco.json", "images", "train"), ("train_all.json", "images", "train"),
    ],
)  # fmt: skip
def test_the_split_is_what_file_and_folder_are_named_after(annotations, images, split):
    assert infer_split(Path(annotations), Path(images)) == split
    assert infer_split(Path(annotations), Path(images), default="other") == split


@pytest.mark.parametrize(
    "images", ["interval", "my_tests", "test_of_a_camera", "data/test_photos/images"]
)
def test_a_split_that_nothing_is_named_after_is_asked_for(images):
    with pytest.raises(
        UserError, match=r"of boxes.json nor of the image folder .* says .*; pass --split NAME"
    ):
        infer_split(Path("boxes.json"), Path(images))
    assert infer_split(Path("boxes.json"), Path(images), default="other") == "other"
    with pytest.raises(UserError, match="pass --split train or --split val"):
        infer_split(Path("instances_train2017.json"), Path("images_val2017"))
    with pytest.raises(UserError, match="the split is unknown"):
        infer_split(Path("val2017/labels.json"), Path("train2017/images"))
    assert infer_split(Path("instances_vcoco_test.json"), None) == "test"
