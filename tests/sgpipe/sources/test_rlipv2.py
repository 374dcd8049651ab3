import json
from collections import Counter

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.sources.scene_graphs import PseudoLabels

COCO = {
    "image_id": 4242,
    "dataset": "coco2017",
    "data_split": "val2017",
    "objects": [{"object_id": 10000000, "x": 1.5, "y": 2.5, "w": 3.5, "h": 4.5, "names": "Person"}],
    "relationships": [
        {"predicate": "Near", "subject_id": 10000000, "object_id": 10000000, "confidence": 0.25},
        {"predicate": "Near", "subject_id": 10000000, "object_id": 10000000, "confidence": 0.06},
    ],
}
O365 = {**COCO, "image_id": 420917, "dataset": "o365", "data_split": "train"}


def read(folder, items, paths=None):
    path = folder / "labels.json"
    path.write_text(json.dumps(items))
    if paths is not None:
        (folder / "paths.json").write_text(json.dumps(paths))
        paths = folder / "paths.json"
    (folder / "images").mkdir(exist_ok=True)
    return list(PseudoLabels(path, folder / "images", "train", paths).source().read(Counter()))


def test_labels_are_taken_as_they_are(tmp_path):
    (record,) = read(tmp_path, [COCO])
    assert (record.image_id, record.dataset, record.split) == ("4242", "coco2017", "train")
    assert record.objects == [Box("Person", 0, (1.5, 2.5, 3.5, 4.5))]
    assert record.relations == [Relation(0, 0, "Near", 0.25), Relation(0, 0, "Near", 0.06)]


def test_images_of_coco_are_found_with_and_without_a_folder_of_the_split(tmp_path):
    name = "000000004242.jpg"
    assert read(tmp_path, [COCO])[0].file_name == name
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "images/val2017" / name).touch()
    assert read(tmp_path, [COCO])[0].file_name == f"val2017/{name}"


def test_images_of_objects365_need_their_paths(tmp_path):
    with pytest.raises(UserError, match=r"image 420917 is of Objects365.*--image-paths"):
        read(tmp_path, [O365])
    known, unknown = read(tmp_path, [O365, {**O365, "image_id": 1}], {"420917": "train/patch8/a.jpg"})
    assert known.file_name == "train/patch8/a.jpg"
    assert "has no path for the image" in unknown.error
    for wrong in ({"1": 2}, ["a"], {"1": ["a"]}):
        with pytest.raises(UserError, match=r"paths\.json is not an image_id_to_filepath"):
            read(tmp_path, [O365], wrong)


def test_scene_graphs_without_confidence_are_of_the_same_form(tmp_path):
    relationship = {key: value for key, value in COCO["relationships"][0].items() if key != "confidence"}
    graph = {"image_id": 4242, "objects": COCO["objects"], "relationships": [relationship]}
    (record,) = read(tmp_path, [graph])
    assert (record.dataset, record.file_name) == ("rlipv2", "4242.jpg")
    assert record.relations == [Relation(0, 0, "Near", None)]


@pytest.mark.parametrize("tagger", ["tagger_glip", "tagger_vxac"])
def test_published_generations_are_read_in_full(oracle, tmp_path, tagger):
    golden = json.loads((oracle / f"golden/model/{tagger}/small/generation.json").read_text())
    for case in golden["cases"].values():
        annotations = case["annotation"]
        records = read(tmp_path, annotations)
        assert len(records) == len(annotations) > 0
        for record, item in zip(records, annotations, strict=True):
            confidences = [relation["confidence"] for relation in item["relationships"]]
            assert confidences == [relation.confidence for relation in record.relations]
            assert [box.bbox for box in record.objects] == [tuple(o[k] for k in "xywh") for o in item["objects"]]
