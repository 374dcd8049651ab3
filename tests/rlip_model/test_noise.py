"""Noise stays within its scale and its probability; seeds of any size give random numbers of their own."""

import torch

from rlip_model.noise import TorchNoise, initial_seed, perturb_boxes, perturb_labels, torch_seed


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


def test_large_seeds_give_numbers_of_their_own() -> None:
    """On a CPU, torch's generator looks at 32 bits only: 2**32 would be 0."""
    seeds = (0, 1, 42, 20240131, 2**31, 2**32, 2**32 + 1, 2**32 + 42, 2**63 - 1, 2**63)
    drawn = []
    for seed in seeds:
        for number in (initial_seed(seed), torch_seed(seed), torch_seed(seed, 1), torch_seed(seed, 1, 1)):
            drawn.append(tuple(torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist()))
    assert len(set(drawn)) == len(drawn) - 1  # 0 starts and steps with 0, as ever
