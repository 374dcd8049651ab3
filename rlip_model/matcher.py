"""Match queries to target triplets: the one-to-one assignment with the lowest cost (Hungarian
matching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rlip_model.boxes import generalized_iou, to_corners
from rlip_model.gpu_memory import send
from rlip_model.heads import LayerOutput
from rlip_model.settings import MatchingCosts
from rlip_model.targets import TripletBatch


class NonFiniteError(ValueError):
    """Predictions or losses are NaN or infinite."""


@dataclass(frozen=True)
class Assignment:
    """Query `queries[i]` of image `images[i]` is matched to triplet `triplets[i]` of the batch;
    each `[matched]`.
    """

    images: Tensor
    queries: Tensor
    triplets: Tensor

    def of(self, predictions: Tensor) -> Tensor:
        """Select the matched predictions: `[batch, pairs, ...]` to `[matched, ...]`."""
        return predictions[self.images, self.queries]


@torch.no_grad()
def match(
    layers: Sequence[LayerOutput], targets: TripletBatch, weights: MatchingCosts
) -> list[Assignment]:
    """Find the assignment of each decoder layer with the lowest total cost in each image.

    If an image has more triplets than queries, some triplets stay unmatched.

    Raises:
        NonFiniteError: predictions are not finite.
    """
    all_costs = (
        torch.stack([matching_costs(output, targets, weights) for output in layers]).cpu().numpy()
    )
    if not np.isfinite(all_costs).all():
        raise NonFiniteError("the predictions are not finite, so they cannot be matched")
    matched = []
    for costs in all_costs:
        parts = []
        first = 0
        for image, count in enumerate(targets.counts):
            rows, columns = linear_sum_assignment(costs[first : first + count].T)
            parts.append(np.stack((np.full(len(rows), image), rows, first + columns)))
            first += count
        matched.append(np.concatenate(parts, axis=1))
    indices = send(torch.from_numpy(np.stack(matched).astype(np.int64)), targets.device)
    return [Assignment(*of_layer) for of_layer in indices]


def matching_costs(output: LayerOutput, targets: TripletBatch, weights: MatchingCosts) -> Tensor:
    """`[triplets, pairs]`: the cost of each triplet for every query of its image."""
    images = targets.images
    triplets = targets.triplets
    has_object = targets.has_object.unsqueeze(1)
    labels = -output.object_logits.softmax(-1)[images, :, triplets.object_labels]
    if output.subject_logits is not None:
        labels = labels - output.subject_logits.softmax(-1)[images, :, triplets.subject_labels]
    relations = relation_costs(output.relation_logits.sigmoid()[images], triplets.relation_labels)
    subjects = triplets.subject_boxes.unsqueeze(1)
    objects = triplets.object_boxes.unsqueeze(1)
    subject_boxes = output.subject_boxes[images]
    object_boxes = output.object_boxes[images]
    distance = torch.max(
        (subject_boxes - subjects).abs().sum(-1),
        (object_boxes - objects).abs().sum(-1) * has_object,
    )
    subject_giou = -generalized_iou(to_corners(subject_boxes), to_corners(subjects))
    object_giou = -generalized_iou(to_corners(object_boxes), to_corners(objects))
    giou = torch.max(subject_giou, object_giou + subject_giou * ~has_object)  # a sum, as published
    return (
        weights.label * labels
        + weights.relation * relations
        + weights.box * distance
        + weights.giou * giou
    )


def relation_costs(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the relation part of the matching cost: minus the mean probability of agreeing with
    multi-hot labels.

    The mean over the present relations and the mean over the absent ones have equal weight.

    `probabilities` `[triplets, pairs, relations]` and `labels` `[triplets, relations]` to
    `[triplets, pairs]`.
    """
    present = labels.unsqueeze(-1)
    absent = 1 - labels.unsqueeze(-1)
    hits = (probabilities @ present).squeeze(-1) / (present.sum(1) + 1e-4)
    misses = ((1 - probabilities) @ absent).squeeze(-1) / (absent.sum(1) + 1e-4)
    return -(hits + misses) / 2
