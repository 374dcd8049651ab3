import json

import pytest

from sgpipe.errors import UserError
from sgpipe.sources import forms
from sgpipe.sources.forms import Form, recognise, require

BOX = {"bbox": [0, 0, 1, 1], "category_id": 1}
GRAPH = {"image_id": 1, "objects": [], "relationships": []}
SAMPLES: list[tuple[object, Form | None]] = [
    ([{"file_name": "HICO_1.jpg", "annotations": [], "hoi_annotation": []}], forms.HICO_HOIA),
    ([{"file_name": "COCO_val2014_1.jpg", "annotations": [], "hoi_annotation": []}], forms.VCOCO_HOIA),
    ([{"file_name": "1.jpg", "annotations": [], "hoi_annotation": []}], forms.HOIA),
    ([{"file_name": "1.jpg", "annotations": [], "rel_annotations": []}], forms.OPEN_IMAGES),
    ([{"img_fn": "1", "bbox": [], "det_labels": [], "rel": []}], forms.OPEN_IMAGES_VRD),
    ([GRAPH], forms.SCENE_GRAPHS),
    ([{**GRAPH, "dataset": "coco2017"}], forms.PSEUDO_LABELS),
    ([{**GRAPH, "data_split": "train"}], forms.PSEUDO_LABELS),
    ([{"image_id": 1, "relationships": []}], forms.RELATIONSHIPS),
    ({"relationships": [{"predicate": "on", "subject": {}, "object": {}}], "image_id": 1}, forms.RELATIONSHIPS),
    ({"relationships": [{"predicate": "on", "subject_id": 1, "object_id": 2}], "image_id": 1}, forms.SCENE_GRAPHS),
    ([{"image_id": 1, "objects": []}], forms.VG_OBJECTS),
    ([{"image_id": 1, "width": 8, "height": 6}], forms.VG_IMAGES),
    ([{"image_id": 1, "attributes": []}], forms.VG_ATTRIBUTES),
    ([{"action_name": "hold", "role_name": []}], forms.VSRL),
    ({"annotation": [{"boxes_h": [], "boxes_o": [], "verb": []}]}, forms.HICO_PAIRS),
    ({"annotations": [{"boxes_h": [], "boxes_o": [], "actions": []}]}, forms.VCOCO_PAIRS),
    ({"images": [{"id": 1}] * 50, "annotations": [{"image_id": 1, **BOX}]}, forms.COCO_INSTANCES),
    ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}, forms.COCO_CAPTIONS),
    ({"train": {"1": [[0, 1, 2]]}, "rel_categories": ["on"]}, forms.RELATION_TRIPLETS),
    ([], None),
    ({}, None),
    ([1, "two", None], None),
    ({"obj": ["person"], "rel": ["on"]}, None),
]


def write(folder, content):
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("content", "form"), SAMPLES)
def test_files_are_recognised_by_their_items(tmp_path, content, form):
    assert recognise(write(tmp_path, content)) is form


def test_odd_items_before_good_ones_do_not_hide_the_form(tmp_path):
    assert recognise(write(tmp_path, [None, {"image_id": 1}, GRAPH])) is forms.SCENE_GRAPHS


def test_a_wrong_file_is_named_and_what_reads_it(tmp_path):
    path = write(tmp_path, {"images": [], "annotations": [{"image_id": 1, **BOX}]})
    with pytest.raises(
        UserError, match=r"file.json is a COCO instances file, not HICO-DET in HOIA form .*generate coco"
    ):
        require(path, forms.HICO_HOIA, forms.HICO_PAIRS)
    with pytest.raises(UserError, match=r"is not V-COCO in HOIA form .*: no item of it looks like that"):
        require(write(tmp_path, [{"some": "thing"}]), forms.VCOCO_HOIA)
    assert require(write(tmp_path, [GRAPH]), forms.RELATIONSHIPS, forms.SCENE_GRAPHS) is forms.SCENE_GRAPHS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps([GRAPH] * 5)[:-1], "cut short"),
        (json.dumps([GRAPH] * 5)[:-30], "cut short"),
        ("tree,trees\n", "not a JSON array or object"),
        ("]", "JSON"),
        ("", "JSON"),
        (json.dumps([GRAPH])[1:], "JSON"),
    ],
)
def test_what_is_not_whole_json_is_refused(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        require(path, forms.SCENE_GRAPHS)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"not found: .*none\.json"):
        require(tmp_path / "none.json", forms.SCENE_GRAPHS)
    with pytest.raises(UserError, match="found a folder"):
        require(tmp_path, forms.SCENE_GRAPHS)


def test_real_files_are_recognised(oracle):
    data = oracle / "data"
    assert recognise(data / "objects365/real_record_fragments.json") is forms.COCO_INSTANCES
    assert recognise(data / "coco_mini/captions_val2017.json") is forms.COCO_CAPTIONS
    assert recognise(data / "vg/vadbeg_attributes.json") is forms.VG_ATTRIBUTES
    assert recognise(data / "vg/vadbeg_relationships2.json") is forms.RELATIONSHIPS
    assert recognise(data / "hicodet/instances_test2015.json") is forms.HICO_PAIRS
    assert recognise(data / "hicodet/test_hico_sample300.qpic_format.json") is forms.HICO_HOIA
    assert recognise(data / "vcoco/fredzzhang_instances_vcoco_val.json") is forms.VCOCO_PAIRS
