"""Training targets: the annotated triplets of one image, of a whole batch, and their numbers in a
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from rlip_model.distributed import global_sum
from rlip_model.gpu_memory import send, send_all
from rlip_model.queries import GivenPairs, numbered


@dataclass(frozen=True)
class Triplets(GivenPairs):
    """The target triplets of one image: pairs of boxes and the relations between them.

    relation_labels `[pairs, relations]`, float, 1 for the relations of the pair. A pair without an
    object (V-COCO) has an object box of zeros. A pair without relations (R-Tagger) has a row of
    zeros. NaN: not known (R-Tagger, of judged pairs).
    """

    relation_labels: Tensor

    def to(self, device: torch.device | str) -> Triplets:
        return Triplets(*send_all([*vars(self).values()], device))


@dataclass(frozen=True)
class TripletBatch:
    """The triplets of all images, concatenated, and the number of triplets of each image."""

    triplets: Triplets
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.triplets)

    @cached_property
    def images(self) -> Tensor:
        """`[triplets]`: the image of each triplet."""
        return send(numbered(self.counts)[0], self.device)

    @cached_property
    def slots(self) -> Tensor:
        """`[triplets]`: the index of each triplet within its image."""
        return send(numbered(self.counts)[1], self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """`[images]`: the number of triplets of each image."""
        return send(torch.tensor(self.counts), self.device)

    @cached_property
    def has_object(self) -> Tensor:
        """`[triplets]`, False where the object is missing."""
        return (self.triplets.object_boxes != 0).any(-1)

    @property
    def device(self) -> torch.device:
        return self.triplets.subject_boxes.device


def join(batch: Sequence[Triplets], relations: int) -> TripletBatch:
    """Concatenate the triplets of a batch.

    Args:
        batch: one per image, of one image or more.
        relations: number of relation texts; narrower labels are padded with zeros.

    """
    labels = [
        F.pad(image.relation_labels, (0, relations - image.relation_labels.shape[-1]))
        for image in batch
    ]
    triplets = Triplets(
        torch.cat([image.subject_boxes for image in batch]),
        torch.cat([image.object_boxes for image in batch]),
        torch.cat([image.subject_labels for image in batch]),
        torch.cat([image.object_labels for image in batch]),
        torch.cat(labels),
    )
    return TripletBatch(triplets, tuple(len(image) for image in batch))


@dataclass(frozen=True)
class TargetCounts:
    """What the losses are divided by; each a scalar.

    triplets: number of triplets; objects: those with an object; classes: sum of the weights of the
    class labels of all queries; relations: number of relation labels above 0; boxes: number of
    objects, with or without relations.
    """

    triplets: Tensor
    objects: Tensor
    classes: Tensor
    relations: Tensor
    boxes: Tensor


def total_counts(parts: Sequence[TargetCounts]) -> TargetCounts:
    """Return the counts of a step: of all its parts, in all processes. The parts must not be
    none.
    """
    counts = [torch.stack(tuple(vars(part).values())) for part in parts]
    return TargetCounts(*global_sum(torch.stack(counts).sum(0)).unbind())
