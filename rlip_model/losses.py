"""Training losses of detectors, whose queries are matched with the target triplets, and of the
R-Tagger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rlip_model.boxes import generalized_iou, to_corners
from rlip_model.distributed import global_mean, world_size
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.matcher import Assignment, match
from rlip_model.position import at_least_float32
from rlip_model.relation_losses import (
    focal_loss,
    pseudo_labels,
    quality_focal_loss,
    relation_quality,
)
from rlip_model.settings import LossWeights, MatchingCosts
from rlip_model.targets import TargetCounts, TripletBatch, Triplets, join

NO_OBJECT_WEIGHT = 0.1
SMALLEST_COUNT = 1e-4


@dataclass(frozen=True)
class PredictionErrors:
    """Figures for the log, without gradient.

    subject_class, object_class: percentage of matched triplets whose class is predicted wrongly
    (None where subjects are not classified); cardinality: mean absolute difference between the
    predicted and the target number of triplets.
    """

    subject_class: Tensor | None
    object_class: Tensor
    cardinality: Tensor


@dataclass(frozen=True)
class LayerLosses:
    """The losses of one decoder layer, each a scalar, and errors for the log.

    entity: classes of subjects and objects; relation: relation scores; box: L1 distance; giou: 1 -
    GIoU.
    """

    entity: Tensor
    relation: Tensor
    subject_box: Tensor
    object_box: Tensor
    subject_giou: Tensor
    object_giou: Tensor
    errors: PredictionErrors

    def total(self, weights: LossWeights) -> Tensor:
        """Return the weighted sum."""
        return (
            weights.entity * self.entity
            + weights.relation * self.relation
            + weights.box * (self.subject_box + self.object_box)
            + weights.giou * (self.subject_giou + self.object_giou)
        )


@dataclass(frozen=True)
class ModelLosses:
    """Losses of the last decoder layer and of the earlier layers, and the weighted sum of all."""

    final: LayerLosses
    auxiliary: tuple[LayerLosses, ...]
    total: Tensor


@dataclass(frozen=True)
class DetectionCriterion:
    """Losses of ParSeD and ParSeDA. Defaults: pre-training.

    For fine-tuning on HICO-DET and Open Images, turn off `pseudo_labels`; on V-COCO, turn off
    `quality_labels` too.

    Args:
        quality_labels: scale relation labels by the overlap of both predicted boxes with the target
            (RQL).
        pseudo_labels: give soft labels to relation texts of similar meaning (RPL).
        pseudo_label_gradient: let the gradient of the relation loss reach the text encoder through
            the soft labels, as in the published training.
        no_object_weight: weight of the class "no objects".
    """

    costs: MatchingCosts = field(default_factory=MatchingCosts)
    weights: LossWeights = field(default_factory=LossWeights)
    quality_labels: bool = True
    pseudo_labels: bool = True
    pseudo_label_gradient: bool = False
    no_object_weight: float = NO_OBJECT_WEIGHT

    def __call__(
        self,
        output: RelationOutput,
        targets: Sequence[Triplets],
        relation_features: Tensor | None = None,
        totals: TargetCounts | None = None,
    ) -> ModelLosses:
        """Match the queries of every decoder layer with the targets, and sum the losses, in at
        least float32.

        Args:
            targets: one per image; any may be empty.
            relation_features: `[relations, label_dim]`, the encoded relation texts before fusion;
                required for pseudo-labels.
            totals: the counts of a whole step of which this batch is a part, see `global_mean`.

        Raises:
            ValueError: predictions are not finite, or features are missing for the pseudo-labels.
        """
        batch = join(targets, output.final.relation_logits.shape[-1])
        with torch.autocast(batch.device.type, enabled=False):
            labels = self._relation_labels(batch.triplets.relation_labels, relation_features)
            layers = (output.final, *output.auxiliary)
            matched = zip(layers, match(layers, batch, self.costs), strict=True)
            losses = [
                self._layer(layer, assignment, batch, labels, totals)
                for layer, assignment in matched
            ]
            return _sum_up(losses, self.weights)

    def count(
        self,
        targets: Sequence[Triplets],
        slots: int,
        relations: int,
        relation_features: Tensor | None = None,
    ) -> TargetCounts:
        """Return the counts of a batch before its forward pass. Every triplet counts as matched,
        with a quality above 0.

        Args:
            slots: pairs of queries per image.
            relations: number of relation texts.
            relation_features: as in a call.
        """
        batch = join(targets, relations)
        with torch.autocast(batch.device.type, enabled=False):
            labels = self._relation_labels(batch.triplets.relation_labels, relation_features)
        matched = sum(min(count, slots) for count in batch.counts)
        classes = matched + self.no_object_weight * (len(batch.counts) * slots - matched)
        return _counts(batch, classes, labels > 0 if self._has_soft_labels else labels == 1)

    @property
    def _has_soft_labels(self) -> bool:
        return self.quality_labels or self.pseudo_labels

    def _relation_labels(self, labels: Tensor, features: Tensor | None) -> Tensor:
        if not self.pseudo_labels:
            return labels
        if features is None:
            raise ValueError("pseudo-labels need the features of the relation texts")
        features = at_least_float32(features if self.pseudo_label_gradient else features.detach())
        return labels + pseudo_labels(labels, features)

    def _layer(
        self,
        layer: LayerOutput,
        assignment: Assignment,
        batch: TripletBatch,
        relation_labels: Tensor,
        totals: TargetCounts | None,
    ) -> LayerLosses:
        labels = relation_labels[assignment.triplets]
        if self.quality_labels:
            labels = labels * relation_quality(layer, batch, assignment).unsqueeze(1)
        expected = torch.zeros_like(layer.relation_logits)
        expected = expected.index_put(
            (assignment.images, assignment.queries), labels.to(expected.dtype)
        )
        loss = quality_focal_loss if self._has_soft_labels else focal_loss
        total = totals.relations if totals else None
        relation = loss(layer.relation_logits, expected, total)
        entity = self._entities(
            layer.object_logits, batch.triplets.object_labels, assignment, totals
        )
        if layer.subject_logits is not None:
            entity = entity + self._entities(
                layer.subject_logits, batch.triplets.subject_labels, assignment, totals
            )
        boxes = box_losses(layer, batch, assignment, totals)
        return LayerLosses(entity, relation, *boxes, prediction_errors(layer, batch, assignment))

    def _entities(
        self, logits: Tensor, labels: Tensor, assignment: Assignment, totals: TargetCounts | None
    ) -> Tensor:
        """Classify every query; the target of unmatched queries is "no objects"."""
        expected = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
        expected[assignment.images, assignment.queries] = labels[assignment.triplets]
        return class_loss(
            logits.flatten(0, 1),
            expected.flatten(),
            self.no_object_weight,
            totals.classes if totals else None,
        )


@dataclass(frozen=True)
class TaggerCriterion:
    """Losses of the R-Tagger. Slot j predicts pair j, so no matching is needed; unused slots are
    ignored.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    no_object_weight: float = NO_OBJECT_WEIGHT

    def __call__(
        self,
        output: RelationOutput,
        targets: Sequence[Triplets],
        totals: TargetCounts | None = None,
    ) -> ModelLosses:
        """Compute the losses.

        Args:
            targets: the given pairs before noise, one per image.
            totals: see `DetectionCriterion`.
        """
        batch = join(targets, output.final.relation_logits.shape[-1])
        triplets = torch.arange(len(batch), device=batch.device)
        assignment = Assignment(batch.images, batch.slots, triplets)
        with torch.autocast(batch.device.type, enabled=False):
            layers = (output.final, *output.auxiliary)
            return _sum_up(
                [self._layer(layer, batch, assignment, totals) for layer in layers], self.weights
            )

    def count(self, targets: Sequence[Triplets], relations: int) -> TargetCounts:
        """Return the counts of a batch with this number of relation texts."""
        batch = join(targets, relations)
        return _counts(batch, len(batch), batch.triplets.relation_labels == 1)

    def _layer(
        self,
        layer: LayerOutput,
        batch: TripletBatch,
        assignment: Assignment,
        totals: TargetCounts | None,
    ) -> LayerLosses:
        labels = batch.triplets
        weight = self.no_object_weight
        classes = totals.classes if totals else None
        entity = class_loss(
            assignment.of(layer.object_logits), labels.object_labels, weight, classes
        )
        if layer.subject_logits is not None:
            subjects = assignment.of(layer.subject_logits)
            entity = entity + class_loss(subjects, labels.subject_labels, weight, classes)
        relation_logits = assignment.of(layer.relation_logits)
        relation = focal_loss(
            relation_logits, labels.relation_labels, totals.relations if totals else None
        )
        boxes = box_losses(layer, batch, assignment, totals)
        return LayerLosses(entity, relation, *boxes, prediction_errors(layer, batch, assignment))


def _sum_up(layers: Sequence[LayerLosses], weights: LossWeights) -> ModelLosses:
    """Return the losses of all layers, the last one first."""
    total = torch.stack([layer.total(weights) for layer in layers]).sum()
    return ModelLosses(layers[0], tuple(layers[1:]), total)


def _counts(batch: TripletBatch, classes: float, positive: Tensor) -> TargetCounts:
    """`positive` `[triplets, relations]`: True for the relation labels that count."""
    counts = (len(batch), batch.has_object.sum(), classes, positive.sum(), 0)
    tensors = [torch.as_tensor(count, dtype=torch.float32) for count in counts]
    return TargetCounts(*(tensor.to(batch.device) for tensor in tensors))


def class_loss(
    logits: Tensor, labels: Tensor, no_object_weight: float, total: Tensor | None = None
) -> Tensor:
    """Cross-entropy of `logits` `[n, classes]` as a weighted mean; 0 (with gradient 0) if `n` is 0.

    The last class is "no objects". The mean is taken over the labels of all training processes,
    whose weights add up to `total`, if given (see `global_mean`).
    """
    weights = logits.new_ones(logits.shape[-1])
    weights[-1].fill_(no_object_weight)
    summed = F.cross_entropy(logits, labels, weights, reduction="sum")
    return global_mean(summed, weights[labels].sum(), torch.finfo(logits.dtype).tiny, total)


def box_losses(
    output: LayerOutput,
    targets: TripletBatch,
    assignment: Assignment,
    totals: TargetCounts | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L1 distances of subjects and of objects, then 1 - GIoU of subjects and of objects, in
    normalised coordinates.

    Sums over subjects are divided by the number of triplets, sums over objects by the number of
    matched triplets that have an object; both numbers are those of all training processes, or
    `totals` (see `global_mean`).
    """
    chosen = assignment.triplets
    subjects = assignment.of(output.subject_boxes)
    objects = assignment.of(output.object_boxes)
    target_subjects = targets.triplets.subject_boxes[chosen]
    target_objects = targets.triplets.object_boxes[chosen]
    present = targets.has_object[chosen].to(objects.dtype)
    subject_giou = 1 - generalized_iou(to_corners(subjects), to_corners(target_subjects))
    object_giou = 1 - generalized_iou(to_corners(objects), to_corners(target_objects))
    triplets = present.new_full((), float(len(targets)))
    with_object = present.sum()
    total, total_with_object = (totals.triplets, totals.objects) if totals else (None, None)
    return (
        global_mean((subjects - target_subjects).abs().sum(), triplets, total=total),
        _mean_of_objects(
            ((objects - target_objects).abs().sum(-1) * present).sum(),
            with_object,
            total_with_object,
        ),
        global_mean(subject_giou.sum(), triplets, total=total),
        _mean_of_objects((object_giou * present).sum(), with_object, total_with_object),
    )


def _mean_of_objects(summed: Tensor, count: Tensor, total: Tensor | None) -> Tensor:
    """As published, safe for a count of 0; the small constant is shared among the processes."""
    total = None if total is None else total + SMALLEST_COUNT
    return global_mean(summed, count + SMALLEST_COUNT / world_size(), min_total=0.0, total=total)


@torch.no_grad()
def prediction_errors(
    output: LayerOutput, targets: TripletBatch, assignment: Assignment
) -> PredictionErrors:
    """Count wrong classes among the matched triplets, and compare the numbers of triplets."""
    triplets = targets.triplets
    chosen = assignment.triplets
    subject_class = None
    if output.subject_logits is not None:
        subject_class = _class_error(
            assignment.of(output.subject_logits), triplets.subject_labels[chosen]
        )
    object_class = _class_error(assignment.of(output.object_logits), triplets.object_labels[chosen])
    predicted = (output.object_logits.argmax(-1) != output.object_logits.shape[-1] - 1).sum(1)
    return PredictionErrors(
        subject_class, object_class, (predicted - targets.numbers).abs().float().mean()
    )


def _class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Wrong classes in percent; 100 where there is nothing to classify, as in DETR's logs."""
    correct = (logits.argmax(-1) == labels).sum()
    return 100 - 100 * correct / max(len(labels), 1)
