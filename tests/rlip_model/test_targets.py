"""Triplets of a batch, put together."""

import pytest
import torch

from rlip_model.targets import join
from tests.rlip_model.samples import RELATIONS, random_triplets


def test_images_and_slots_survive_empty_images() -> None:
    batch = join([random_triplets(0), random_triplets(3), random_triplets(0), random_triplets(2)], RELATIONS)
    assert batch.counts == (0, 3, 0, 2)
    assert batch.images.tolist() == [1, 1, 1, 3, 3]
    assert batch.slots.tolist() == [0, 1, 2, 0, 1]
    assert len(batch) == 5


def test_no_triplet_anywhere() -> None:
    batch = join([random_triplets(0), random_triplets(0)], RELATIONS)
    assert len(batch) == 0
    assert batch.images.shape == batch.slots.shape == batch.has_object.shape == (0,)


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="labels for 4 relations, but there are 3"):
        join([random_triplets(2)], RELATIONS - 1)
    with pytest.raises(ValueError, match="no images"):
        join([], RELATIONS)


def test_an_object_is_missing_only_if_its_box_is_all_zero() -> None:
    triplets = random_triplets(3)
    triplets.object_boxes[0] = 0
    triplets.object_boxes[1] = torch.tensor([0.0, 0.0, 0.1, 0.1])
    assert join([triplets], RELATIONS).has_object.tolist() == [False, True, True]
