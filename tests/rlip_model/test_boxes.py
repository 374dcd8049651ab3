"""Generalised IoU: known values, bounds, and agreement with torchvision."""

import pytest
import torch
from torchvision.ops import generalized_box_iou

from rlip_model.boxes import generalized_iou, to_corners
from tests.rlip_model.samples import random_boxes


def test_agrees_with_torchvision_for_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = to_corners(random_boxes(generator, 30)), to_corners(random_boxes(generator, 20))
    pairwise = generalized_iou(first.unsqueeze(1), second)
    torch.testing.assert_close(pairwise, generalized_box_iou(first, second))
    assert pairwise.min() >= -1
    assert pairwise.max() <= 1
    assert pairwise.min() < 0 < pairwise.max()


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0.0, 0.5, 0.5], 1.0),
        ([0.5, 0.5, 1.0, 1.0], -0.5),  # touch in a corner: nothing shared, half of the hull empty
        ([0.0, 0.0, 0.25, 0.5], 0.5),
        ([0.25, 0.0, 0.75, 0.5], 1 / 3),
    ],
)
def test_known_values(other: list[float], expected: float) -> None:
    value = generalized_iou(torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.tensor(other))
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_boxes_without_area_give_numbers_and_gradients() -> None:
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3]], requires_grad=True)
    for other in (torch.zeros(1, 4), torch.tensor([[0.3, 0.3, 0.3, 0.3]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])):
        value = generalized_iou(point, other)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert gradient.isfinite().all()
