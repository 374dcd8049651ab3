"""Batches of images of different sizes."""

import torch

from rlip_model.dense_head import LabelledBoxes
from rlip_model.targets import Triplets
from rlip_model.training.batches import TrainingExample, collate
from rlip_model.training.sampling import Texts

TEXTS = Texts(("dog", "no objects"), ("on",))


def example(name: str, height: int, width: int, pairs: int = 1) -> TrainingExample:
    labels = torch.zeros(pairs, dtype=torch.long)
    triplets = Triplets(torch.rand(pairs, 4), torch.rand(pairs, 4), labels, labels, torch.ones(pairs, 1))
    objects = LabelledBoxes(triplets.subject_boxes, labels)
    return TrainingExample(name, torch.rand(3, height, width) + 1, triplets, (width, height), objects)


def test_images_are_padded_right_and_below() -> None:
    wide, high = example("wide", 4, 9), example("high", 7, 5)
    batch = collate([wide, high], TEXTS, skipped=1)
    assert batch.pixel_values.shape == (2, 3, 7, 9)
    assert len(batch) == 2
    assert batch.skipped == 1
    for image, each in enumerate((wide, high)):
        _, rows, columns = each.pixel_values.shape
        assert torch.equal(batch.pixel_values[image, :, :rows, :columns], each.pixel_values)
        assert (~batch.padding[image]).sum() == rows * columns
        assert torch.equal(batch.padding[image], (batch.pixel_values[image] == 0).all(0))


def test_a_batch_may_be_empty() -> None:
    assert len(collate([], TEXTS, skipped=2)) == 0
