"""Training batches: images padded to a common size, their triplets, and the label texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from rlip_model.dense_head import LabelledBoxes
from rlip_model.gpu_memory import send_all
from rlip_model.targets import Triplets
from rlip_model.training.sampling import Texts


@dataclass(frozen=True)
class TrainingExample:
    """One image prepared for the network, and its targets.

    pixel_values `[3, height, width]`, normalised; triplets: labels index the texts of the whole
    batch; size: width and height of the original image, in pixels; boxes: all objects, with or
    without relations.
    """

    image_id: str
    pixel_values: Tensor
    triplets: Triplets
    size: tuple[int, int]
    boxes: LabelledBoxes


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of examples; it may be empty.

    pixel_values `[images, 3, height, width]`; padding `[images, height, width]`, True right of and
    below an image;
    skipped: number of images of this batch that could not be read; unsent_triplets: the triplets as
    they were before they were copied to a device.
    """

    image_ids: tuple[str, ...]
    pixel_values: Tensor
    padding: Tensor
    triplets: tuple[Triplets, ...]
    texts: Texts
    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[LabelledBoxes, ...]
    skipped: int = 0
    unsent_triplets: tuple[Triplets, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Copy the batch. The host does not wait for a GPU if the images are in pinned memory."""
        tensors = chain.from_iterable(
            vars(image).values() for image in (*self.triplets, *self.boxes)
        )
        sent = iter(send_all([*tensors], device))
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            padding=self.padding.to(device, non_blocking=True),
            triplets=tuple(Triplets(*islice(sent, len(vars(image)))) for image in self.triplets),
            boxes=tuple(LabelledBoxes(*islice(sent, len(vars(image)))) for image in self.boxes),
            unsent_triplets=self.unsent_triplets or self.triplets,
        )

    def pinned(self) -> TrainingBatch:
        """With images in memory from which a GPU copies without waiting for the CPU."""
        return replace(
            self, pixel_values=self.pixel_values.pin_memory(), padding=self.padding.pin_memory()
        )

    def only(self, image: int) -> TrainingBatch:
        """Return the batch that consists of one of the images."""
        part = slice(image, image + 1)
        return replace(
            self,
            image_ids=self.image_ids[part],
            pixel_values=self.pixel_values[part],
            padding=self.padding[part],
            triplets=self.triplets[part],
            unsent_triplets=self.unsent_triplets[part],
            sizes=self.sizes[part],
            boxes=self.boxes[part],
        )


def collate(examples: Sequence[TrainingExample], texts: Texts, skipped: int = 0) -> TrainingBatch:
    """Pad the images, at the right and at the bottom, to the largest width and height."""
    height = max((example.pixel_values.shape[1] for example in examples), default=0)
    width = max((example.pixel_values.shape[2] for example in examples), default=0)
    pixels = torch.zeros(len(examples), 3, height, width)
    padding = torch.ones(len(examples), height, width, dtype=torch.bool)
    for image, example in enumerate(examples):
        _, rows, columns = example.pixel_values.shape
        pixels[image, :, :rows, :columns] = example.pixel_values
        padding[image, :rows, :columns] = False
    return TrainingBatch(
        tuple(example.image_id for example in examples),
        pixels,
        padding,
        tuple(example.triplets for example in examples),
        texts,
        tuple(example.size for example in examples),
        tuple(example.boxes for example in examples),
        skipped,
    )
