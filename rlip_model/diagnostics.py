"""Figures that tell how training goes and have no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlip_model.heads import LayerOutput
from rlip_model.matcher import Assignment
from rlip_model.targets import TripletBatch


@dataclass(frozen=True)
class PredictionErrors:
    """subject_class, object_class: percentage of matched triplets whose class is not predicted (None where
    subjects are not classified); cardinality: mean difference of predicted and true numbers of triplets."""

    subject_class: Tensor | None
    object_class: Tensor
    cardinality: Tensor


@torch.no_grad()
def prediction_errors(output: LayerOutput, targets: TripletBatch, assignment: Assignment) -> PredictionErrors:
    triplets, chosen = targets.triplets, assignment.triplets
    subject_class = None
    if output.subject_logits is not None:
        subject_class = _class_error(assignment.of(output.subject_logits), triplets.subject_labels[chosen])
    object_class = _class_error(assignment.of(output.object_logits), triplets.object_labels[chosen])
    found = (output.object_logits.argmax(-1) != output.object_logits.shape[-1] - 1).sum(1)
    true = torch.tensor(targets.counts, device=found.device)
    return PredictionErrors(subject_class, object_class, (found - true).abs().float().mean())


def _class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """In percent; 100 where there is nothing to classify, as in DETR's logs."""
    correct = (logits.argmax(-1) == labels).sum()
    return 100 - 100 * correct / max(len(labels), 1)
