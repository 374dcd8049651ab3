"""Noise stays within its scale and its probability."""

import torch

from rlip_model.noise import TorchNoise, perturb_boxes, perturb_labels


def seeded() -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(0))


def test_boxes_move_by_half_and_grow_by_all_of_the_scale() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.1]]).expand(5000, 4)
    moved = (perturb_boxes(boxes, 0.4, seeded()) - boxes).abs().amax(0)
    torch.testing.assert_close(moved, torch.tensor([0.04, 0.02, 0.08, 0.04]), rtol=0.01, atol=0)


def test_boxes_stay_in_the_image() -> None:
    boxes = torch.tensor([[0.0, 1.0, 0.9, 1.0]]).expand(500, 4)
    moved = perturb_boxes(boxes, 0.6, seeded())
    assert moved.min() == 0
    assert moved.max() == 1


def test_labels_are_replaced_with_the_probability() -> None:
    labels = torch.full((10_000,), 7)
    replaced = perturb_labels(labels, 0.3, 5, seeded())
    assert abs(float((replaced != 7).float().mean()) - 0.3) < 0.02
    assert set(replaced[replaced != 7].tolist()) == {0, 1, 2, 3, 4}
    assert labels.eq(7).all()


def test_scale_zero_draws_nothing() -> None:
    noise = seeded()
    before = noise.generator.get_state()
    boxes, labels = torch.rand(3, 4), torch.arange(3)
    assert torch.equal(perturb_boxes(boxes, 0.0, noise), boxes)
    assert torch.equal(perturb_labels(labels, 0.0, 9, noise), labels)
    assert torch.equal(noise.generator.get_state(), before)
