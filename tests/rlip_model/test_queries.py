"""Queries from pairs: which slot holds what, padding, noise, and the mask between equal entities."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlip_model.model import RTagger
from rlip_model.noise import TorchNoise
from rlip_model.queries import GivenPairs
from tests.rlip_model.conftest import random_pairs

LABELS = torch.randn(1, 5, 64)


def test_labels_get_no_gradient_through_queries(tagger: RTagger) -> None:
    labels = LABELS.clone().requires_grad_()
    assert not tagger.queries.entities([random_pairs(2)], labels).content.requires_grad


def test_an_image_without_pairs_keeps_one_slot_open(tagger: RTagger) -> None:
    made = tagger.queries.entities([random_pairs(0), random_pairs(1)], LABELS)
    assert made.padding[0].logical_not().nonzero().flatten().tolist() == [0]


class Scripted:
    """Records what is asked for, and answers with the middle of every range but for given labels."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        self.asked.append(("uniform", len(shape)))
        return torch.full(tuple(shape), 0.5 if len(shape) == 2 else 0.0)

    def integers(self, high: int, count: int, device: torch.device) -> Tensor:
        self.asked.append((f"below {high}", count))
        return torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize(("noise_range", "high"), [("labels", 4), ("batch", 2)])
def test_noise_is_drawn_in_the_order_of_the_reference(tagger: RTagger, noise_range: str, high: int) -> None:
    tagger.queries.noise_range = noise_range
    noise = Scripted()
    tagger.queries.entities([random_pairs(2), random_pairs(1)], LABELS.expand(2, -1, -1), noise=noise)
    label_draws = [("uniform", 1), (f"below {high}", 3)]
    assert noise.asked == [("uniform", 2), ("uniform", 2), *label_draws, *label_draws]


def twice_the_same(slots: int) -> GivenPairs:
    """Full slots, the first two of which hold the same subject."""
    pairs = random_pairs(slots)
    pairs.subject_boxes[1], pairs.subject_labels[1] = pairs.subject_boxes[0], pairs.subject_labels[0]
    return pairs


def test_equal_entities_do_not_see_each_other_in_full_training_images(tagger: RTagger) -> None:
    slots, heads = tagger.config.num_pairs, tagger.config.num_heads
    full = [random_pairs(slots, seed=7), twice_the_same(slots)]
    mask = tagger.queries.entities(full, LABELS, noise=TorchNoise()).attention_mask
    assert mask.shape == (2 * heads, 2 * slots, 2 * slots)
    assert not mask[:heads].any()
    expected = torch.zeros(2 * slots, 2 * slots, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert all(torch.equal(of_head, expected) for of_head in mask[heads:])
    partly = [random_pairs(3), twice_the_same(slots)]
    assert tagger.queries.entities(partly, LABELS, noise=TorchNoise()).attention_mask is None
    assert tagger.queries.entities(full, LABELS).attention_mask is None
