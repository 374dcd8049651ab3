import json

import pytest

from sgpipe.records import Record
from sgpipe.stages.detect import GivenBoxesStage

SIZE = (40, 30)


@pytest.fixture
def stage(tmp_path) -> GivenBoxesStage:
    names = ["a/same.jpg", "b/same.jpg", "c/one.jpg", "bare.jpg"]
    images = [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names)]
    images[3] |= {"width": 0, "height": 0}
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [n, 1, 5, 5]} for n in range(4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "dog"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return GivenBoxesStage(tmp_path / "boxes.json")


def filled(stage: GivenBoxesStage, name: str, size: tuple[int, int] = SIZE) -> Record:
    [record] = stage([Record("1", "coco", "all", name, *size)])
    return record


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("home/me/a/same.jpg", 0),
        ("home/me/b/same.jpg", 1),
        ("b/same.jpg", 1),
        ("elsewhere/one.jpg", 2),
        ("one.jpg", 2),
        ("x/bare.jpg", 3),
    ],
)
def test_images_match_by_path_suffix(stage, name, entry):
    record = filled(stage, name)
    assert record.ok
    assert [box.bbox[0] for box in record.objects] == [entry]


@pytest.mark.parametrize(("name", "reason"), [("c/same.jpg", "has 2 images"), ("d/other.jpg", "has no image")])
def test_ambiguous_file_names_become_error_rows(stage, name, reason):
    assert reason in str(filled(stage, name).error)
