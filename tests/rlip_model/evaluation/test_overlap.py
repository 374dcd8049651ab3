import numpy as np
import pytest

from rlip_model.evaluation.overlap import pixel_iou


def boxes(*corners: float) -> np.ndarray:
    return np.array(corners, dtype=np.float32)


@pytest.mark.parametrize("touching", [True, False])
def test_a_box_is_one_pixel_wider_than_the_difference_of_its_corners(touching: bool) -> None:
    assert pixel_iou(boxes(0, 0, 9, 9), boxes(0, 0, 9, 4), touching=touching) == 0.5
    assert pixel_iou(boxes(0, 0, 9, 9), boxes(5, 0, 14, 9), touching=touching) == pytest.approx(50 / 150)
    assert pixel_iou(boxes(0, 0, 9, 9), boxes(11, 0, 20, 9), touching=touching) == 0


def test_a_single_pixel_overlaps_itself_only_where_touching_counts() -> None:
    assert pixel_iou(boxes(3, 3, 3, 3), boxes(3, 3, 3, 3), touching=True) == 1
    assert pixel_iou(boxes(3, 3, 3, 3), boxes(3, 3, 3, 3), touching=False) == 0
