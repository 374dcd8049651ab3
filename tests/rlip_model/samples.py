"""Random predictions and targets for the tests of losses, matching and post-processing."""

import torch
from torch import Tensor

from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.targets import Triplets

OBJECTS, RELATIONS, PAIRS = 5, 4, 6


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    """cxcywh, inside the image."""
    size = 0.1 + 0.4 * torch.rand(*shape, 2, generator=generator)
    centre = size / 2 + (1 - size) * torch.rand(*shape, 2, generator=generator)
    return torch.cat((centre, size), dim=-1)


def random_triplets(count: int) -> Triplets:
    """Every pair has at least one relation; no label is "no objects"."""
    generator = torch.Generator().manual_seed(1000 * count)
    relations = (torch.rand(count, RELATIONS, generator=generator) < 0.3).float()
    relations[torch.arange(count), torch.randint(0, RELATIONS, (count,), generator=generator)] = 1
    return Triplets(
        random_boxes(generator, count),
        random_boxes(generator, count),
        torch.randint(0, OBJECTS - 1, (count,), generator=generator),
        torch.randint(0, OBJECTS - 1, (count,), generator=generator),
        relations,
    )


def random_layer(batch: int = 2, seed: int = 0, subjects: bool = True) -> LayerOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, PAIRS, OBJECTS, generator=generator)
    relations = 2 * torch.randn(batch, PAIRS, RELATIONS, generator=generator)
    boxes = random_boxes(generator, 2, batch, PAIRS)
    leaves = [tensor.requires_grad_() for tensor in (logits[0], logits[1], relations, boxes[0], boxes[1])]
    return LayerOutput(leaves[0] if subjects else None, *leaves[1:])


def random_output(batch: int = 2) -> RelationOutput:
    layers = [random_layer(batch, seed) for seed in range(3)]
    return RelationOutput(layers[0], tuple(layers[1:]))


def perfect_layer(triplets: Triplets) -> LayerOutput:
    """One image whose first queries predict its triplets, and whose other queries predict nothing."""
    count = len(triplets)
    classes = torch.full((2, PAIRS), OBJECTS - 1)
    classes[0, :count], classes[1, :count] = triplets.subject_labels, triplets.object_labels
    logits = 20 * torch.nn.functional.one_hot(classes, OBJECTS).float()
    relations = torch.full((PAIRS, RELATIONS), -20.0)
    relations[:count] = 20 * (2 * triplets.relation_labels - 1)
    boxes = torch.full((2, PAIRS, 4), 0.5)
    boxes[0, :count], boxes[1, :count] = triplets.subject_boxes, triplets.object_boxes
    return LayerOutput(logits[:1], logits[1:], relations[None], boxes[:1], boxes[1:])
