import math
from typing import Any

import numpy as np
import pytest

from rlip_model.evaluation.inputs import EvaluationError
from rlip_model.evaluation.vcoco_files import people_images, read_actions, read_people, read_predicted_people


def annotation(number: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": category, "bbox": bbox, "area": 4.0, "iscrowd": 0, **more}


COCO = {
    "images": [{"id": 7, "width": 100, "height": 60}, {"id": 3, "width": 10, "height": 10}],
    "annotations": [
        annotation(1, 1, [10, 20, 30, 200]),  # reaches below the image
        annotation(2, 1, [50, 5, 1, 1]),  # a single pixel
        annotation(3, 44, [60, 10, 20, 10]),
        annotation(4, 1, [70, 10, 20, 10], iscrowd=1),
        annotation(5, 1, [0, 0, 20, 10], ignore=1),
        annotation(6, 44, [120, 10, 20, 10]),  # right of the image
    ],
}
VERBS = [
    {
        "action_name": "cut",
        "role_name": ["agent", "instr", "obj"],
        "ann_id": [1],
        "label": [1],
        "role_object_id": [1, 0, 3],
    },
    {"action_name": "walk", "role_name": ["agent"], "ann_id": [1], "label": [0], "role_object_id": [1]},
]
DETECTION = {
    "image_id": 7,
    "person_box": [10, 20, 39, 59],
    "cut_agent": 0.5,
    "walk_agent": 0.25,
    "cut_instr": [None, None, None, None, 0.75],
    "cut_obj": [60, 10, 79, 19, 1.0],
}


def test_persons_are_clipped_pixels_with_what_they_do() -> None:
    people = read_people(COCO, VERBS)
    assert list(people) == [7, 3]
    first = people[7]
    np.testing.assert_array_equal(first.boxes, [[10, 20, 39, 59], [70, 10, 89, 19]])
    np.testing.assert_array_equal(first.actions, [[1, 0], [-1, -1]])
    np.testing.assert_array_equal(first.role_boxes[0], [[math.nan] * 4, [60, 10, 79, 19]])
    assert np.isnan(first.role_boxes[1]).all()
    assert people[3].boxes.shape == (0, 4)
    assert people[3].role_boxes.shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cut_obj": [1, 2, 3, 4]}, "not a table of numbers"),
        ({"person_box": "everywhere"}, "not a table of numbers"),
        ({"image_id": 8}, "1 image with detections but without annotations; first: 8"),
    ],
)
def test_other_detections_are_told(change: dict[str, Any], told: str) -> None:
    actions = read_actions(VERBS)
    with pytest.raises(EvaluationError, match=told):
        list(
            people_images(read_people(COCO, VERBS), read_predicted_people([{**DETECTION, **change}], actions), actions)
        )
