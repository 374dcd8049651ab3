"""Validation: average precision and recall of relations on images with ground truth.

A detector must predict boxes, classes and relations. The R-Tagger is given the pairs, so only
relations count. A predicted triplet is a true positive if its three labels are correct, both boxes
have an IoU of at least 0.5 with the target (the scene-graph detection protocol of Lu et al., ECCV
2016), and the target is not matched yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from rlip_model.boxes import to_corners
from rlip_model.distributed import gather, without_collectives
from rlip_model.heads import LayerOutput
from rlip_model.model import RTagger
from rlip_model.postprocess import TripletDetections, hoi_detections, scene_graph_detections
from rlip_model.targets import Triplets
from rlip_model.training.batches import TrainingBatch
from rlip_model.training.objective import Objective

OVERLAP = 0.5
MOST_TRIPLETS = 100  # per image, the most confident ones
RECALL_AT = (20, 50, 100)
PERSON = "person"
# training uses relations from this confidence on, so their precision and recall are reported too
CONFIDENT = 0.2


@dataclass
class RelationScores:
    """Confidences of predicted triplets, whether each is a true positive, and numbers of targets,
    image by image.
    """

    confidences: list[np.ndarray] = field(default_factory=list)
    true_positives: list[np.ndarray] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add(self, predicted: TripletDetections, target: Triplets) -> None:
        """Add one image: its detections, with normalised boxes, and its target triplets."""
        confidences, true_positives = match_triplets(predicted, target)
        self.confidences.append(confidences)
        self.true_positives.append(true_positives)
        self.targets.append(int(target.relation_labels.sum()))

    def extend(self, other: RelationScores) -> None:
        """Add the images of another process."""
        self.confidences += other.confidences
        self.true_positives += other.true_positives
        self.targets += other.targets

    def measures(self) -> dict[str, float]:
        """`ap`; `recall@K`, the mean over images with relations; `precision` and `recall` of
        confident relations.
        """
        total = sum(self.targets)
        if not total:
            return {}
        confidences = np.concatenate(self.confidences)
        true_positives = np.concatenate(self.true_positives)
        measures = {"ap": average_precision(confidences, true_positives, total)}
        for limit in RECALL_AT:
            per_image = zip(self.true_positives, self.targets, strict=True)
            recalls = [matched[:limit].sum() / count for matched, count in per_image if count]
            measures[f"recall@{limit}"] = float(np.mean(recalls))
        confident = true_positives[confidences >= CONFIDENT]
        measures["precision"] = float(confident.mean()) if len(confident) else 0.0
        measures["recall"] = float(confident.sum() / total)
        return measures


def average_precision(confidences: np.ndarray, true_positives: np.ndarray, targets: int) -> float:
    """Area under the monotone precision-recall curve (VOC 2010); equal confidences keep their
    order.
    """
    ordered = true_positives[np.argsort(-confidences, kind="stable")]
    precision = ordered.cumsum() / np.arange(1, len(ordered) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float((monotone * ordered).sum() / targets)


def match_triplets(predicted: TripletDetections, target: Triplets) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of the `MOST_TRIPLETS` best triplets, descending, and whether each is a true
    positive.
    """
    scores = predicted.relation_scores.flatten()
    best = scores.argsort(descending=True, stable=True)[:MOST_TRIPLETS]
    relations = predicted.relation_scores.shape[1]
    pairs = best // max(relations, 1)
    predicates = best % max(relations, 1)
    fits = _fitting_pairs(predicted, target)[pairs]
    correct = (fits & (target.relation_labels[:, predicates].T == 1)).cpu().numpy()
    matched: set[tuple[int, int]] = set()
    true_positives = np.zeros(len(best), dtype=bool)
    for row, predicate in enumerate(predicates.tolist()):
        for pair in correct[row].nonzero()[0].tolist():
            if (pair, predicate) not in matched:
                true_positives[row] = True
                matched.add((pair, predicate))
                break
    return scores[best].float().cpu().numpy(), true_positives


def _fitting_pairs(predicted: TripletDetections, target: Triplets) -> Tensor:
    """`[predicted pairs, target pairs]`: both classes equal, both boxes with enough overlap."""
    fits = predicted.subject_labels.unsqueeze(1) == target.subject_labels
    fits &= predicted.object_labels.unsqueeze(1) == target.object_labels
    fits &= box_iou(predicted.subject_boxes, to_corners(target.subject_boxes)) >= OVERLAP
    missing = (target.object_boxes == 0).all(-1)  # V-COCO: the target has no object box
    return fits & (
        (box_iou(predicted.object_boxes, to_corners(target.object_boxes)) >= OVERLAP) | missing
    )


def validate(
    objective: Objective, batches: Iterable[TrainingBatch], device: torch.device
) -> dict[str, float]:
    """Mean loss and relation measures over batches. Each process evaluates its own; all return the
    common result.

    Args:
        objective: not wrapped for distribution; its training mode is restored afterwards.
    """
    scores, losses = score_batches(objective, batches, device)
    total_scores = RelationScores()
    for part in gather(scores):
        total_scores.extend(part)
    totals = np.array(list(chain.from_iterable(gather(losses)))).reshape(-1, 2)
    if not len(totals):
        return {}
    loss = float(np.average(totals[:, 0], weights=totals[:, 1]))
    return {"loss": loss, **total_scores.measures()}


@torch.no_grad()
def score_batches(
    objective: Objective, batches: Iterable[TrainingBatch], device: torch.device
) -> tuple[RelationScores, list[tuple[float, int]]]:
    """Return the scores of the relations in the batches of this process, and the loss and number of
    images of each batch.
    """
    training = objective.training
    scores = RelationScores()
    losses: list[tuple[float, int]] = []
    objective.eval()
    try:
        with without_collectives():
            for batch in batches:
                batch = batch.to(device)
                if len(batch):
                    losses.append((_evaluate_batch(objective, batch, scores), len(batch)))
                else:  # sharded parameters need a forward pass of every process
                    objective(batch)
    finally:
        objective.train(training)
    return scores, losses


def _evaluate_batch(objective: Objective, batch: TrainingBatch, scores: RelationScores) -> float:
    predictions, loss = objective.evaluate(batch)
    if predictions.triplets is not None:
        images = detections(objective, predictions.triplets.final, batch)
        for predicted, target in zip(images, batch.triplets, strict=True):
            scores.add(predicted, target)
    return float(loss)


def detections(
    objective: Objective, output: LayerOutput, batch: TrainingBatch
) -> list[TripletDetections]:
    """Return the predicted triplets of each image, with normalised xyxy boxes."""
    if isinstance(objective.network, RTagger):
        scores = output.relation_logits.float().sigmoid()
        return [_given_pairs(target, scores[image]) for image, target in enumerate(batch.triplets)]
    sizes = torch.ones(len(batch), 2)
    if objective.network.config.subject_class:
        return scene_graph_detections(output, sizes)
    subject = batch.texts.objects.index(PERSON) if PERSON in batch.texts.objects else 0
    return hoi_detections(output, sizes, subject)


def _given_pairs(target: Triplets, scores: Tensor) -> TripletDetections:
    subjects = to_corners(target.subject_boxes)
    objects = to_corners(target.object_boxes)
    labels = (target.subject_labels, target.object_labels)
    return TripletDetections(subjects, objects, *labels, scores[: len(target)])
