"""Convert predictions to scored triplets in pixels of the original image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlip_model.boxes import to_corners
from rlip_model.gpu_memory import send
from rlip_model.heads import LayerOutput


@dataclass(frozen=True)
class TripletDetections:
    """The triplets detected in one image, one row per pair of queries, in the order of the queries.

    boxes `[pairs, 4]` pixel xyxy, not clipped to the image; labels `[pairs]`, never "no objects";
    relation_scores `[pairs, relations]`, confidence of the whole triplet.
    """

    subject_boxes: Tensor
    object_boxes: Tensor
    subject_labels: Tensor
    object_labels: Tensor
    relation_scores: Tensor

    def __len__(self) -> int:
        return self.object_labels.shape[0]

    def where(self, mask: Tensor) -> TripletDetections:
        """Keep only the pairs where `mask` `[pairs]` is True."""
        return TripletDetections(*(values[mask] for values in vars(self).values()))


@torch.no_grad()
def hoi_detections(
    output: LayerOutput, sizes: Tensor, subject_label: int = 0
) -> list[TripletDetections]:
    """Detect human-object interactions: every subject is taken for a person; score = relation x
    object.

    Args:
        output: of the last decoder layer.
        sizes: `[batch, 2]`, height and width of the original images, in pixels.
        subject_label: the label of "person".
    """
    scores, labels = _best_class(output.object_logits)
    subject_labels = torch.full_like(labels, subject_label)
    return _detections(output, sizes, subject_labels, labels, scores)


@torch.no_grad()
def zero_shot_hoi_detections(
    output: LayerOutput, sizes: Tensor, subject_label: int = 0
) -> list[TripletDetections]:
    """As `hoi_detections`, without the pairs whose most likely subject class is not "person".

    Raises:
        ValueError: the network does not classify subjects.
    """
    _, subjects = _best_class(_subject_logits(output))
    detections = hoi_detections(output, sizes, subject_label)
    return [
        image.where(labels == subject_label)
        for image, labels in zip(detections, subjects, strict=True)
    ]


@torch.no_grad()
def scene_graph_detections(output: LayerOutput, sizes: Tensor) -> list[TripletDetections]:
    """Detect scene graphs: subjects of any class; score = relation x object x subject.

    Args:
        output: of the last decoder layer.
        sizes: `[batch, 2]`, height and width of the original images, in pixels.

    Raises:
        ValueError: the network does not classify subjects.
    """
    object_scores, object_labels = _best_class(output.object_logits)
    subject_scores, subject_labels = _best_class(_subject_logits(output))
    return _detections(output, sizes, subject_labels, object_labels, object_scores * subject_scores)


def _detections(
    output: LayerOutput,
    sizes: Tensor,
    subject_labels: Tensor,
    object_labels: Tensor,
    scores: Tensor,
) -> list[TripletDetections]:
    scale = (
        send(sizes, output.subject_boxes.device)
        .to(output.subject_boxes.dtype)
        .flip(1)
        .repeat(1, 2)
        .unsqueeze(1)
    )
    parts = (
        to_corners(output.subject_boxes) * scale,
        to_corners(output.object_boxes) * scale,
        subject_labels,
        object_labels,
        output.relation_logits.sigmoid() * scores.unsqueeze(-1),
    )
    return [TripletDetections(*image) for image in zip(*parts, strict=True)]


def _best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index `[batch, pairs]` of the most likely class other than "no objects", the
    last class.
    """
    best = logits.softmax(-1)[..., :-1].max(-1)
    return best.values, best.indices


def _subject_logits(output: LayerOutput) -> Tensor:
    if output.subject_logits is None:
        raise ValueError("the network does not classify subjects")
    return output.subject_logits
