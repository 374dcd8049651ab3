import json

import pytest

from sgpipe.errors import UserError
from sgpipe.sources import formats
from sgpipe.sources.formats import AnnotationFormat, detect_format, require_format

BOX = {"bbox": [0, 0, 1, 1], "category_id": 1}
GRAPH = {"image_id": 1, "objects": [], "relationships": []}
SAMPLES: list[tuple[object, AnnotationFormat | None]] = [
    ([{"file_name": "HICO_1.jpg", "annotations": [], "hoi_annotation": []}], formats.HICO_HOIA),
    ([{"file_name": "COCO_val2014_1.jpg", "annotations": [], "hoi_annotation": []}], formats.VCOCO_HOIA),
    ([{"file_name": "1.jpg", "annotations": [], "hoi_annotation": []}], formats.HOIA),
    ([{"file_name": "1.jpg", "annotations": [], "rel_annotations": []}], formats.OPEN_IMAGES_HOIA),
    ([{"img_fn": "1", "bbox": [], "det_labels": [], "rel": []}], formats.OPEN_IMAGES_VRD),
    ([GRAPH], formats.SCENE_GRAPHS),
    ([{**GRAPH, "dataset": "coco2017"}], formats.PSEUDO_LABELS),
    ([{**GRAPH, "data_split": "train"}], formats.PSEUDO_LABELS),
    ([{"image_id": 1, "relationships": []}], formats.RELATIONSHIPS),
    ({"relationships": [{"predicate": "on", "subject": {}, "object": {}}], "image_id": 1}, formats.RELATIONSHIPS),
    ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 2}], "image_id": 1}, formats.SCENE_GRAPHS),
    ([{"image_id": 1, "objects": []}], formats.VG_OBJECTS),
    ([{"image_id": 1, "width": 8, "height": 6}], formats.VG_IMAGES),
    ([{"image_id": 1, "attributes": []}], formats.VG_ATTRIBUTES),
    ([{"action_name": "hold", "role_name": []}], formats.VSRL),
    ({"annotation": [{"boxes_h": [], "boxes_o": [], "verb": []}]}, formats.HICO_PAIRS),
    ({"annotations": [{"boxes_h": [], "boxes_o": [], "actions": []}]}, formats.VCOCO_PAIRS),
    ({"images": [{"id": 1}] * 50, "annotations": [{"image_id": 1, **BOX}]}, formats.COCO_INSTANCES),
    ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}, formats.COCO_CAPTIONS),
    ({"train": {"1": [[0, 1, 2]]}, "rel_categories": ["on"]}, formats.RELATION_TRIPLETS),
    ([], None),
    ({}, None),
    ([1, "two", None], None),
    ({"obj": ["person"], "rel": ["on"]}, None),
]


def write(folder, content):
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("content", "expected"), SAMPLES)
def test_formats_are_detected_by_items(tmp_path, content, expected):
    assert detect_format(write(tmp_path, content)) is expected


def test_invalid_items_before_valid_ones_are_skipped(tmp_path):
    assert detect_format(write(tmp_path, [None, {"image_id": 1}, GRAPH])) is formats.SCENE_GRAPHS


def test_a_file_of_another_format_is_refused_with_a_hint(tmp_path):
    path = write(tmp_path, {"images": [], "annotations": [{"image_id": 1, **BOX}]})
    with pytest.raises(
        UserError, match=r"file.json is a COCO instances file, not HICO-DET in HOIA format .*generate coco"
    ):
        require_format(path, formats.HICO_HOIA, formats.HICO_PAIRS)
    with pytest.raises(UserError, match=r"is not V-COCO in HOIA format .*: none of its items has the keys"):
        require_format(write(tmp_path, [{"some": "thing"}]), formats.VCOCO_HOIA)
    assert require_format(write(tmp_path, [GRAPH]), formats.RELATIONSHIPS, formats.SCENE_GRAPHS) is formats.SCENE_GRAPHS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps([GRAPH] * 5)[:-1], "cut short"),
        (json.dumps([GRAPH] * 5)[:-30], "cut short"),
        ("tree,trees\n", "not a JSON array or object"),
        ("]", "JSON"),
        ("", "is empty"),
        (" ", "only white space"),
        ("[]", "it has no items"),
        ('{"images": []}', "it has no items"),
        (json.dumps([GRAPH])[1:], "JSON"),
    ],
)
def test_damaged_json_is_refused(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        require_format(path, formats.SCENE_GRAPHS)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"not found: .*none\.json"):
        require_format(tmp_path / "none.json", formats.SCENE_GRAPHS)
    with pytest.raises(UserError, match="found a folder"):
        require_format(tmp_path, formats.SCENE_GRAPHS)


def test_formats_of_real_files(oracle):
    data = oracle / "data"
    assert detect_format(data / "objects365/real_record_fragments.json") is formats.COCO_INSTANCES
    assert detect_format(data / "coco_mini/captions_val2017.json") is formats.COCO_CAPTIONS
    assert detect_format(data / "vg/vadbeg_attributes.json") is formats.VG_ATTRIBUTES
    assert detect_format(data / "vg/vadbeg_relationships2.json") is formats.RELATIONSHIPS
    assert detect_format(data / "hicodet/instances_test2015.json") is formats.HICO_PAIRS
    assert detect_format(data / "hicodet/test_hico_sample300.qpic_format.json") is formats.HICO_HOIA
    assert detect_format(data / "vcoco/fredzzhang_instances_vcoco_val.json") is formats.VCOCO_PAIRS
