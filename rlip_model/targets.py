"""What the networks are trained towards: the true triplets of each image, and of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlip_model.queries import GivenPairs


@dataclass(frozen=True)
class Triplets(GivenPairs):
    """The true triplets of one image: pairs of boxes and the relations between them.

    relation_labels `[pairs, relations]`, float, 1 for the pair's relations. A pair without object, as in V-COCO,
    has an object box of zeros; a pair without relation, among the R-Tagger's, has a row of zeros.
    """

    relation_labels: Tensor

    def to(self, device: torch.device | str) -> Triplets:
        return Triplets(
            self.subject_boxes.to(device),
            self.object_boxes.to(device),
            self.subject_labels.to(device),
            self.object_labels.to(device),
            self.relation_labels.to(device),
        )


@dataclass(frozen=True)
class TripletBatch:
    """The triplets of all images, one image after another, and how many each image has."""

    triplets: Triplets
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.triplets)

    @property
    def images(self) -> Tensor:
        """`[triplets]`: the image of each."""
        counts = torch.tensor(self.counts, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.device), counts)

    @property
    def slots(self) -> Tensor:
        """`[triplets]`: the place of each within its image."""
        counts = torch.tensor(self.counts, device=self.device)
        first = counts.cumsum(0) - counts
        return torch.arange(len(self), device=self.device) - first[self.images]

    @property
    def has_object(self) -> Tensor:
        """`[triplets]`, False where the object is missing."""
        return (self.triplets.object_boxes != 0).any(-1)

    @property
    def device(self) -> torch.device:
        return self.triplets.subject_boxes.device


def join(batch: Sequence[Triplets], relations: int) -> TripletBatch:
    """Put the triplets of a batch together.

    Args:
        batch: one per image.
        relations: number of relation texts; narrower labels are filled up with zeros.

    Raises:
        ValueError: no image, or labels for more relations than there are texts.
    """
    if not batch:
        raise ValueError("a batch of no images has no triplets to learn from")
    widest = max(image.relation_labels.shape[-1] for image in batch)
    if widest > relations:
        raise ValueError(f"triplets are labelled with {widest} relations, there are {relations} relation texts")
    labels = [F.pad(image.relation_labels, (0, relations - image.relation_labels.shape[-1])) for image in batch]
    triplets = Triplets(
        torch.cat([image.subject_boxes for image in batch]),
        torch.cat([image.object_boxes for image in batch]),
        torch.cat([image.subject_labels for image in batch]),
        torch.cat([image.object_labels for image in batch]),
        torch.cat(labels),
    )
    return TripletBatch(triplets, tuple(len(image) for image in batch))
