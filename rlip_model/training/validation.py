"""How well triplets are found: average precision and recall of relations, on pictures with known ones.

A detector has to find boxes, classes and relations; the R-Tagger is given the pairs, so that only relations count.
A predicted triplet is right if its three names are, and both boxes overlap the true ones by half (IoU ≥ 0.5, the
scene graph detection protocol of Lu et al., ECCV 2016), each true triplet being found once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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
MOST_TRIPLETS = 100  # of a picture, the most confident ones
RECALL_AT = (20, 50, 100)
PERSON = "person"
CONFIDENT = 0.2  # relations of less are not trained on, so precision and recall above it are what labels are worth


@dataclass
class RelationScores:
    """Confidence and truth of predicted triplets, picture by picture."""

    confidences: list[np.ndarray] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    true: list[int] = field(default_factory=list)

    def add(self, found: TripletDetections, true: Triplets) -> None:
        """One picture: its detections, boxes normalised, and its true triplets."""
        confidences, hits = judge(found, true)
        self.confidences.append(confidences)
        self.hits.append(hits)
        self.true.append(int(true.relation_labels.sum()))

    def extend(self, other: RelationScores) -> None:
        self.confidences += other.confidences
        self.hits += other.hits
        self.true += other.true

    def measures(self) -> dict[str, float]:
        """`ap`; `recall@K`, averaged over pictures with relations; `precision` and `recall` of confident ones."""
        if not sum(self.true):
            return {}
        confidences, hits = np.concatenate(self.confidences), np.concatenate(self.hits)
        measures = {"ap": average_precision(confidences, hits, sum(self.true))}
        for most in RECALL_AT:
            shares = [h[:most].sum() / n for h, n in zip(self.hits, self.true, strict=True) if n]
            measures[f"recall@{most}"] = float(np.mean(shares))
        kept = hits[confidences >= CONFIDENT]
        measures["precision"] = float(kept.mean()) if len(kept) else 0.0
        measures["recall"] = float(kept.sum() / sum(self.true))
        return measures


def average_precision(confidences: np.ndarray, hits: np.ndarray, true: int) -> float:
    """Area under the precision-recall curve, precision made monotone (VOC 2010); equal confidences in order."""
    ordered = hits[np.argsort(-confidences, kind="stable")]
    precision = ordered.cumsum() / np.arange(1, len(ordered) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float((monotone * ordered).sum() / true)


def judge(found: TripletDetections, true: Triplets) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of the `MOST_TRIPLETS` best triplets, falling, and whether each is right."""
    scores = found.relation_scores.flatten()
    best = scores.argsort(descending=True, stable=True)[:MOST_TRIPLETS]
    relations = found.relation_scores.shape[1]
    pairs, predicates = best // max(relations, 1), best % max(relations, 1)
    fits = _fitting_pairs(found, true)[pairs]
    right = (fits & (true.relation_labels[:, predicates].T == 1)).cpu().numpy()
    taken: set[tuple[int, int]] = set()
    hits = np.zeros(len(best), dtype=bool)
    for row, predicate in enumerate(predicates.tolist()):
        free = [pair for pair in right[row].nonzero()[0].tolist() if (pair, predicate) not in taken]
        if free:
            hits[row] = True
            taken.add((free[0], predicate))
    return scores[best].float().cpu().numpy(), hits


def _fitting_pairs(found: TripletDetections, true: Triplets) -> Tensor:
    """`[found pairs, true pairs]`: both classes equal, both boxes overlap enough."""
    fits = found.subject_labels.unsqueeze(1) == true.subject_labels
    fits &= found.object_labels.unsqueeze(1) == true.object_labels
    fits &= box_iou(found.subject_boxes, to_corners(true.subject_boxes)) >= OVERLAP
    missing = (true.object_boxes == 0).all(-1)  # V-COCO: there is no box to find
    return fits & ((box_iou(found.object_boxes, to_corners(true.object_boxes)) >= OVERLAP) | missing)


@torch.no_grad()
def validate(objective: Objective, batches: Iterable[TrainingBatch], device: torch.device) -> dict[str, float]:
    """Mean loss and relation measures over batches; of several processes each brings its own, all get the result.

    Args:
        objective: not wrapped for distribution; its mode is put back afterwards.
    """
    training, scores = objective.training, RelationScores()
    losses: list[tuple[float, int]] = []
    objective.eval()
    try:
        with without_collectives():
            for batch in batches:
                if len(batch):
                    losses.append((_judge_batch(objective, batch.to(device), scores), len(batch)))
                else:
                    objective(batch.to(device))  # parameters that are spread over processes need all of them
    finally:
        objective.train(training)
    everyone = RelationScores()
    for part in gather(scores):
        everyone.extend(part)
    totals = np.array([pair for part in gather(losses) for pair in part]).reshape(-1, 2)
    if not len(totals):
        return {}
    return {"loss": float(np.average(totals[:, 0], weights=totals[:, 1])), **everyone.measures()}


def _judge_batch(objective: Objective, batch: TrainingBatch, scores: RelationScores) -> float:
    output, loss = objective.judge(batch)
    for found, true in zip(detections(objective, output.final, batch), batch.triplets, strict=True):
        scores.add(found, true)
    return float(loss)


def detections(objective: Objective, output: LayerOutput, batch: TrainingBatch) -> list[TripletDetections]:
    """The predicted triplets of each picture, boxes normalised xyxy."""
    if isinstance(objective.network, RTagger):
        scores = output.relation_logits.float().sigmoid()
        return [_given(true, scores[image]) for image, true in enumerate(batch.triplets)]
    sizes = torch.ones(len(batch), 2)
    if objective.network.config.subject_class:
        return scene_graph_detections(output, sizes)
    subject = batch.texts.objects.index(PERSON) if PERSON in batch.texts.objects else 0
    return hoi_detections(output, sizes, subject)


def _given(true: Triplets, scores: Tensor) -> TripletDetections:
    subjects, objects = to_corners(true.subject_boxes), to_corners(true.object_boxes)
    return TripletDetections(subjects, objects, true.subject_labels, true.object_labels, scores[: len(true)])
