import numpy as np
import torch
from torchvision.ops import box_iou as torch_iou

from sgpipe.evaluation.label_quality.measures import NO_MATCH, best_pairs, box_iou


def test_the_best_pair_first_then_the_best_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.integers(0, 8, 25), rng.integers(0, 6, 25)
        quality = rng.integers(0, 5, 25) / 4  # with many equal ones
        expected, taken = np.full(8, NO_MATCH), set()
        for _, left, right in sorted(zip(-quality, first, second, strict=True)):
            if expected[left] == NO_MATCH and right not in taken:
                expected[left] = right
                taken.add(right)
        order = rng.permutation(25)
        assert (best_pairs(first[order], second[order], quality[order], 8) == expected).all()


def test_overlaps_are_those_of_torchvision() -> None:
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((2, 40, 2, 2)), axis=2).reshape(2, 40, 4)
    expected = torch_iou(*torch.from_numpy(boxes)).diagonal()
    assert np.allclose(box_iou(*boxes), expected.numpy())


def test_equal_boxes_are_the_same_even_without_area() -> None:
    nothing = np.zeros((1, 4))
    assert box_iou(nothing, nothing) == 1
    assert box_iou(nothing, np.array([[0.1, 0, 0.1, 0]])) == 0
