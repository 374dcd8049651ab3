import math
import random

import numpy as np
import torch
from torchvision.ops import box_iou as torch_iou

from sgpipe.utils.boxes import clip_box, clip_xywh, iou


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    """xyxy boxes with an area."""
    corners = np.random.default_rng(seed).random((count, 2, 2))
    return np.concatenate((corners.min(1), corners.max(1)), axis=1)


def test_iou_equals_torchvisions() -> None:
    first, second = random_boxes(200), random_boxes(200, seed=1)
    expected = torch_iou(torch.from_numpy(first), torch.from_numpy(second)).diagonal()
    assert np.allclose(iou(first, second), expected.numpy())


def test_boxes_are_clipped_to_their_own_images() -> None:
    boxes = np.array([[-3.0, 0, 10, 10], [0, 0, 20, 10], [30, 0, 5, 5], [1, 1, 0, 5], [np.nan, 0, 1, 1]])
    sizes = np.array([[20.0, 10], [15, 10], [20, 10], [20, 10], [20, 10]])
    clipped = clip_xywh(boxes, sizes)
    assert clipped.inside.tolist() == [True, True, False, False, False]
    assert clipped.xywh[:2].tolist() == [[0, 0, 7, 10], [0, 0, 15, 10]]
    assert clipped.overhang[:2].tolist() == [3, 5]


def test_a_single_box_is_clipped_as_many_are() -> None:
    rng = random.Random(0)
    odd = (0.0, -0.0, 640.0, math.nan, math.inf, -math.inf, 1e308, -1e308)

    def number() -> float:
        return rng.choice(odd) if rng.random() < 0.1 else rng.uniform(-100, 700)

    boxes = [(number(), number(), number(), number()) for _ in range(3000)]
    boxes = [box for box in boxes if not any(math.isinf(box[axis] + box[axis + 2]) for axis in (0, 1))]
    clipped = clip_xywh(np.array(boxes), np.array([[640.0, 480.0]]))
    for box, expected, inside in zip(boxes, clipped.xywh.tolist(), clipped.inside, strict=True):
        assert clip_box(box, 640, 480) == (tuple(expected) if inside else None)
    assert 300 < clipped.inside.sum() < len(boxes) - 300
    assert clip_box((0.1, 0.2, 0.3, 0.4), 640, 480) == (0.1, 0.2, 0.3, 0.4)  # 0.1 + 0.3 - 0.1 is not 0.3
