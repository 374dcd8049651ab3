"""The layout model's experiment: what it trains on, and its measures."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from experiments.layout import __main__ as training
from experiments.layout.data import (
    TEST_IMAGES,
    join_instances,
    read_hico,
    read_instances,
    read_lines,
    read_vcoco,
)
from experiments.layout.measures import (
    Judged,
    area_under_roc,
    average_precision,
    calibration,
    precision_at,
    role_average_precision,
)
from sgpipe.errors import UserError
from sgpipe.stages.tag.layout import LayoutModel
from sgpipe.stages.tag.layout.fit import LayoutSettings
from tests.values import values_of

pytestmark = pytest.mark.slow

PERSON_BOX = [10, 10, 60, 150]
BALL_BOX = [40, 60, 60, 80]
BENCH_BOX = [150, 100, 300, 180]
ACTIONS = ("hold", "look at")


def line(
    number: int, boxes: Sequence[Sequence[float]] = (PERSON_BOX, BALL_BOX)
) -> dict[str, object]:
    classes = ["person", "sports ball", "person"][: len(boxes)]
    relations = [[0, ["hold obj", "look obj"], 1]]
    size = {"width": 320, "height": 200}
    return {"image_id": number, **size, "boxes": boxes, "classes": classes, "relations": relations}


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_instances(path: Path, numbers: Sequence[int]) -> Path:
    annotations = []
    for number in numbers:
        for category, (left, top, right, bottom) in (
            (1, PERSON_BOX),
            (37, BALL_BOX),
            (15, BENCH_BOX),
            (1, BENCH_BOX),
        ):
            box = {"bbox": [left, top, right - left, bottom - top], "area": 1.0, "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, **box}
            )
    images = [
        {"id": number, "width": 320, "height": 200, "file_name": f"{number:012}.jpg"}
        for number in numbers
    ]
    categories = [
        {"id": 1, "name": "person"},
        {"id": 37, "name": "sports ball"},
        {"id": 15, "name": "bench"},
    ]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_lines(
        tmp_path / "train.jsonl.gz",
        [line(368), line(965, [PERSON_BOX, BALL_BOX, [200, 10, 260, 150]])],
    )
    write_lines(tmp_path / "val.jsonl.gz", [line(1102)])
    return tmp_path


class TestTrainingData:
    def test_each_image_is_seen_with_vcocos_boxes_and_with_all_of_coco(self, data: Path) -> None:
        instances = read_instances(write_instances(data / "instances.json", [368, 965, 1102]))
        images = training.read_images(data, instances)
        examples = training.make_examples(images, instances)
        assert [len(example.layout.classes) for example in examples] == [2, 3, 2, 4, 5, 4]
        assert examples[0].relations == examples[3].relations == [(0, [*ACTIONS], 1)]
        assert examples[3].layout.classes == ["person", "sports ball", "bench", "person"]

    def test_vcocos_own_file_gets_sizes_and_idle_persons_of_coco(self, data: Path) -> None:
        pairs = {
            "boxes_h": [PERSON_BOX],
            "boxes_o": [BALL_BOX],
            "objects": [1],
            "actions": [0],
            "file_name": "COCO_train2014_000000000368.jpg",
        }
        names = {"objects": ["background", "sports_ball"], "classes": ["hold obj"], "images": [368]}
        path = data / "instances_vcoco_train.json"
        path.write_text(json.dumps({"annotations": [pairs], **names, "action_to_object": [[1]]}))
        instances = read_instances(write_instances(data / "instances.json", [368]))
        (image,) = read_vcoco(path, instances)
        assert image.layout.classes == ["person", "sports ball", "person"]
        assert (image.layout.width, image.relations) == (320, [(0, ["hold"], 1)])
        with pytest.raises(UserError, match="--instances"):
            training.read_images(path, {})

    def test_images_of_the_test_set_are_refused(self, data: Path) -> None:
        test_image = int(TEST_IMAGES.read_text().split()[0])
        write_lines(data / "val.jsonl.gz", [line(test_image)])
        with pytest.raises(UserError, match=f"1 image of V-COCO's test set, such as {test_image}"):
            training.read_images(data, {})

    def test_captioned_images_are_among_the_refused(self, oracle: Path) -> None:
        captioned = json.loads((oracle / "data/vcoco_captions/instances.json").read_text())
        refused = set(map(int, TEST_IMAGES.read_text().split()))
        assert set(values_of(captioned["images"], "id")) <= refused

    def test_a_line_of_another_form_is_named(self, data: Path) -> None:
        path = write_lines(data / "val.jsonl.gz", [line(1102), {"image_id": 1}])
        with pytest.raises(UserError, match=r"line 2: expected image_id, width"):
            read_lines(path)

    def test_the_command_trains_and_saves_a_model(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            training, "LayoutSettings", lambda: LayoutSettings(networks=1, epochs=1, width=8)
        )
        instances = write_instances(data / "instances.json", [368])
        training.main(data, tmp_path / "model", instances)
        assert LayoutModel.load(tmp_path / "model").actions == ACTIONS


def test_hico_pairs_share_boxes_that_overlap(tmp_path: Path) -> None:
    shifted = [value + 2 for value in PERSON_BOX]
    item = {
        "boxes_h": [PERSON_BOX, shifted],
        "boxes_o": [BALL_BOX, BENCH_BOX],
        "object": [0, 1],
        "verb": [0, 1],
    }
    names = {"objects": ["sports_ball", "bench"], "verbs": ["hold", "no_interaction"]}
    path = tmp_path / "hico.json"
    path.write_text(json.dumps({"annotation": [item], "size": [[320, 200]], **names}))
    (image,) = read_hico(path)
    assert image.layout.classes == ["person", "sports ball", "bench"]
    assert Judged.of([image], (), "no_interaction").interacts.tolist() == [True, False]


class TestMeasures:
    def test_average_precision_and_area(self) -> None:
        scores = np.array([0.9, 0.8, 0.7, 0.1])
        truth = np.array([True, False, True, False])
        assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
        assert area_under_roc(scores, truth) == pytest.approx(3 / 4)
        assert area_under_roc(np.ones(4), truth) == pytest.approx(1 / 2)
        assert precision_at(scores, truth, 0.5) == 1
        assert precision_at(scores, truth, 0.8) == pytest.approx(2 / 3)
        assert calibration(scores, truth)[-1] == (1, 0.9, 1.0)

    def test_role_average_precision_of_the_ground_truth_is_1(self, data: Path) -> None:
        images = read_lines(data / "train.jsonl.gz")
        judged = Judged.of(images, ACTIONS)
        assert role_average_precision(images, judged, judged.actions.astype(float), ACTIONS) == 1
        assert role_average_precision(images, judged, 1 - judged.actions.astype(float), ACTIONS) < 1


def test_instances_that_are_boxes_already_are_not_added(data: Path) -> None:
    (image,) = read_lines(data / "val.jsonl.gz")
    instances = read_instances(write_instances(data / "instances.json", [1102]))[1102]
    joined = join_instances(image, instances)
    assert len(joined.layout.classes) == len(instances.classes)
    assert joined.layout.boxes[:2].tolist() == image.layout.boxes.tolist()
