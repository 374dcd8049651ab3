"""Losses of relation scores, and the soft labels of pre-training."""

from __future__ import annotations

import torch
from torch import Tensor

from rlip_model.boxes import generalized_iou, to_corners
from rlip_model.distributed import global_mean
from rlip_model.heads import LayerOutput
from rlip_model.matcher import Assignment
from rlip_model.targets import TripletBatch

CLOSEST_TO_CERTAIN = 1e-6
# Added to every difference by torch's pairwise_distance, which the reference uses.
DISTANCE_OFFSET = 1e-6
PSEUDO_LABEL_THRESHOLD = 0.3


def focal_loss(logits: Tensor, labels: Tensor, total: Tensor | None = None) -> Tensor:
    """Focal loss per positive entry of all training processes (as in CornerNet, exponents 2 and 4).

    Without positive entries, it is the sum.

    `logits` and `labels` (0, 1, or NaN: not known, does not count): `[..., relations]`; `total`:
    number of positive entries, see `global_mean`.
    """
    probability = _probabilities(logits)
    positive = labels == 1
    of_positives = probability.log() * (1 - probability) ** 2
    of_negatives = (1 - probability).log() * probability**2 * (1 - labels.nan_to_num(1.0)) ** 4
    return global_mean(
        -torch.where(positive, of_positives, of_negatives).sum(), positive.sum(), total=total
    )


def quality_focal_loss(logits: Tensor, labels: Tensor, total: Tensor | None = None) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020, beta 2) per entry of all training processes with
    a label above 0.

    `logits` and `labels` (0 to 1): `[..., relations]`; `total`: number of labels above 0, see
    `global_mean`.
    """
    probability = _probabilities(logits)
    entropy = -(labels * probability.log() + (1 - labels) * (1 - probability).log())
    return global_mean(
        ((labels - probability) ** 2 * entropy).sum(), (labels > 0).sum(), total=total
    )


def relation_quality(output: LayerOutput, targets: TripletBatch, assignment: Assignment) -> Tensor:
    """Relational quality labels (RLIPv2, RQL) `[matched]`: how well both boxes of a matched triplet
    fit, 0 to 1.

    The smaller GIoU of subject and object, scaled to 0 to 1; the GIoU of the subject where the
    object is missing.
    """
    triplets = targets.triplets
    chosen = assignment.triplets
    subjects = _giou(assignment.of(output.subject_boxes), triplets.subject_boxes[chosen])
    objects = _giou(assignment.of(output.object_boxes), triplets.object_boxes[chosen])
    worse = torch.where(targets.has_object[chosen], torch.min(subjects, objects), subjects)
    return ((worse + 1) / 2).clamp(0, 1)


def pseudo_labels(
    relation_labels: Tensor, relation_features: Tensor, threshold: float = PSEUDO_LABEL_THRESHOLD
) -> Tensor:
    """Relational pseudo-labels (RLIPv2, RPL): soft labels for texts similar in meaning to the
    annotated ones.

    The similarity of two texts is how much closer they are than the farthest text, in Euclidean
    distance, scaled so that the most similar text has 1. Annotated texts, and texts not above the
    threshold, get the soft label 0.

    Args:
        relation_labels: `[triplets, relations]`, 1 for annotated relations.
        relation_features: `[relations, label_dim]`, from the text encoder, before fusion.

    Returns:
        `[triplets, relations]`, with a gradient to the features if they require one.
    """
    distances = torch.cdist(
        relation_features + DISTANCE_OFFSET,
        relation_features,
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    similarity = relation_labels @ (distances.amax(1, keepdim=True) - distances)
    largest = similarity.amax(1, keepdim=True)
    similarity = similarity / largest.clamp(min=torch.finfo(similarity.dtype).tiny)
    return torch.where((relation_labels != 1) & (similarity > threshold), similarity, 0.0)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid().clamp(CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN)


def _giou(predicted: Tensor, target: Tensor) -> Tensor:
    return generalized_iou(to_corners(predicted), to_corners(target)).detach()
