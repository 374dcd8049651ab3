"""The training objective: network and criterion, from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck
from transformers.models.roberta.modeling_roberta import RobertaLayer

from rlip_model.decoder import DecoderLayer
from rlip_model.dense_head import DenseOutput, LabelledBoxes, dense_losses
from rlip_model.distributed import counting_nothing
from rlip_model.encoder import EncoderLayer
from rlip_model.heads import LayerOutput, RelationOutput
from rlip_model.losses import DetectionCriterion, ModelLosses, TaggerCriterion
from rlip_model.model import RLIPModel, RTagger, TripletDetector
from rlip_model.settings import ComputePrecision
from rlip_model.swin import SwinBlock
from rlip_model.targets import TargetCounts, Triplets
from rlip_model.text import LabelFeatures
from rlip_model.training.batches import TrainingBatch

DENSE_WEIGHT = 0.2
HEAVY = (EncoderLayer, DecoderLayer, SwinBlock, Bottleneck, RobertaLayer)
_BLANK_SIDE = 64


@dataclass(frozen=True)
class Predictions:
    """What a network predicts for a batch: triplets, unless only boxes are trained, and boxes of
    the dense head.
    """

    labels: LabelFeatures
    triplets: RelationOutput | None
    boxes: DenseOutput | None = None


class Objective(nn.Module):
    """Computes the losses of batches.

    It is a module, so that wrappers for distributed training see one `forward` through all trained
    parameters.

    Args:
        criterion: a `TaggerCriterion` for an R-Tagger, a `DetectionCriterion` for the others; None
            to train only the dense head of a network that has one, and what it needs, as a detector
            to start from.
        dense_weight: weight of the losses of the dense head, if the network has one.
        mask_by_sum: see `RLIPModel.encode_tokens`.

    Raises:
        ValueError: the network has no tokenizer.
    """

    def __init__(
        self,
        network: RLIPModel,
        criterion: DetectionCriterion | TaggerCriterion | None,
        precision: ComputePrecision = "float32",
        mask_by_sum: bool = False,
        dense_weight: float = DENSE_WEIGHT,
    ) -> None:
        super().__init__()
        if network.tokenizer is None:
            raise ValueError(
                "the network has no tokenizer, so it cannot be trained; set one with set_tokenizer"
            )
        self.network = network
        self.criterion = criterion
        self.tokenizer = network.tokenizer
        self.precision = precision
        self.mask_by_sum = mask_by_sum
        self.dense_weight = dense_weight

    def forward(
        self, batch: TrainingBatch, totals: TargetCounts | None = None
    ) -> dict[str, Tensor]:
        """Return `loss`, to be minimised, and its parts, without gradient; zeros for an empty
        batch.

        Args:
            totals: the counts of the whole step, if the batch is one of several parts: the losses
                of all parts then add up to those of the step.

        Raises:
            ValueError: predictions are not finite.
        """
        if not len(batch):
            with counting_nothing():
                losses = self.forward(_blank(batch), totals)
            return {name: 0 * value for name, value in losses.items()}
        with autocast(batch.pixel_values.device, self.precision):
            predicted = self.predict(batch)
        return self.losses(predicted, batch, totals)

    @torch.no_grad()
    def count(self, batch: TrainingBatch) -> TargetCounts:
        """Return what the losses of a batch are divided by, for `total_counts`; zeros for an empty
        batch.

        Pseudo-labels need the encoded texts. With the same random numbers as `forward`, these are
        the same.
        """
        device = batch.pixel_values.device
        features = None
        if isinstance(self.criterion, DetectionCriterion) and self.criterion.pseudo_labels:
            with autocast(device, self.precision):
                labels = self._encode(batch)
            features = labels.features[0, labels.num_objects :]
        counts = TargetCounts(*torch.zeros(len(fields(TargetCounts)), device=device))
        if not len(batch):
            return counts
        relations = len(batch.texts.relations)
        if isinstance(self.criterion, TaggerCriterion):
            return self.criterion.count(batch.triplets, relations)
        if self.criterion is not None:
            slots = self.network.config.num_pairs
            counts = self.criterion.count(batch.triplets, slots, relations, features)
        boxes = sum(len(image.labels) for image in batch.boxes)
        return replace(counts, boxes=torch.full((), float(boxes), device=device))

    def evaluate(self, batch: TrainingBatch) -> tuple[Predictions, Tensor]:
        """Return the predictions of the network, and their loss."""
        with autocast(batch.pixel_values.device, self.precision):
            predicted = self.predict(batch)
        return predicted, self.losses(predicted, batch)["loss"]

    def detect(
        self,
        pixel_values: Tensor,
        objects: Sequence[str],
        relations: Sequence[str],
        precision: ComputePrecision,
    ) -> LayerOutput:
        """Return what the network finds; see the function."""
        return detect(self.network, pixel_values, objects, relations, precision)

    def losses(
        self, predicted: Predictions, batch: TrainingBatch, totals: TargetCounts | None = None
    ) -> dict[str, Tensor]:
        """`loss` and its parts, for the output of `predict`."""
        losses: dict[str, Tensor] = {}
        if predicted.triplets is not None:
            losses = self._relation_losses(predicted.triplets, predicted.labels, batch, totals)
        if predicted.boxes is None:
            return losses
        dense = dense_losses(predicted.boxes, batch.boxes, totals.boxes if totals else None)
        total = self.dense_weight * (dense.focal + dense.giou)
        losses["loss"] = losses["loss"] + total if losses else total
        losses["dense_class"] = dense.focal.detach()
        losses["dense_giou"] = dense.giou.detach()
        return losses

    def _relation_losses(
        self,
        output: RelationOutput,
        labels: LabelFeatures,
        batch: TrainingBatch,
        totals: TargetCounts | None,
    ) -> dict[str, Tensor]:
        if isinstance(self.criterion, TaggerCriterion):
            return _named(self.criterion(output, batch.triplets, totals))
        assert self.criterion is not None
        return _named(
            self.criterion(output, batch.triplets, labels.features[0, labels.num_objects :], totals)
        )

    def predict(self, batch: TrainingBatch) -> Predictions:
        """Return the predictions of the network, and the encoded texts."""
        labels = self._encode(batch)
        network = self.network
        if isinstance(network, RTagger):
            pairs = batch.unsent_triplets or batch.triplets
            return Predictions(labels, network(batch.pixel_values, batch.padding, labels, pairs))
        assert isinstance(network, TripletDetector)
        image = network.encode_image(batch.pixel_values, batch.padding)
        boxes = None
        if network.dense_head is not None:
            boxes = network.detect_boxes(image, labels)
        triplets = None
        if self.criterion is not None:
            triplets = network.detect(image, labels, boxes)
        return Predictions(labels, triplets, boxes)

    def _encode(self, batch: TrainingBatch) -> LabelFeatures:
        texts = [*batch.texts.objects, *batch.texts.relations]
        if not self.training:
            return self.network.encode_labels(batch.texts.objects, batch.texts.relations)
        limit = self.network.config.text_config.max_position_embeddings - 2
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        ids = tokens["input_ids"]
        mask = tokens["attention_mask"]
        return self.network.encode_tokens(ids, mask, len(batch.texts.objects), self.mask_by_sum)


def sum_parts(
    parts: Sequence[TrainingBatch], losses: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the losses of a step from those of its parts: sums of the losses, means of the errors
    over what they count.
    """
    if len(parts) == 1:
        return dict(losses[0])
    images = _shares([len(part) for part in parts])
    triplets = _shares([sum(map(len, part.triplets)) for part in parts])
    summed = {}
    for name in losses[0]:
        weights = [1.0] * len(parts)
        if name.endswith("cardinality_error"):
            weights = images
        elif name.endswith("class_error"):
            weights = triplets
        values = [weight * part[name] for weight, part in zip(weights, losses, strict=True)]
        summed[name] = torch.stack(values).sum(0)
    return summed


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]


def autocast(device: torch.device, precision: ComputePrecision) -> AbstractContextManager[object]:
    """Return a context that computes in the given precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@torch.no_grad()
def detect(
    network: RLIPModel,
    pixel_values: Tensor,
    objects: Sequence[str],
    relations: Sequence[str],
    precision: ComputePrecision,
) -> LayerOutput:
    """Return what a detector finds in images without padding, of the last layer.

    Scores are float32, as they are multiplied later: in half precision, more products would be
    equal.

    Args:
        pixel_values: `[images, 3, height, width]`.
        objects: the object texts; "no objects" is the last one.
    """
    with autocast(pixel_values.device, precision):
        labels = network.encode_labels(objects, relations)
        padding = torch.zeros_like(pixel_values[:, 0], dtype=torch.bool)
        output: LayerOutput = network(pixel_values, padding, labels).final
    subjects = output.subject_logits
    return LayerOutput(
        None if subjects is None else subjects.float(),
        output.object_logits.float(),
        output.relation_logits.float(),
        output.subject_boxes.float(),
        output.object_boxes.float(),
    )


def checkpoint_activations(network: nn.Module) -> None:
    """Save only the inputs of every heavy layer, and recompute the rest in the backward pass."""
    for module in network.modules():
        if isinstance(module, HEAVY):
            forward: Callable[..., object] = module.forward
            setattr(module, "forward", partial(checkpoint, forward, use_reentrant=False))  # noqa: B010


def _blank(batch: TrainingBatch) -> TrainingBatch:
    """Return a batch of one blank image, so that every process has something to compute in every
    step.
    """
    pixels = batch.pixel_values.new_zeros(1, 3, _BLANK_SIDE, _BLANK_SIDE)
    device = pixels.device
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    boxes = torch.zeros(0, 4, device=device)
    relations = torch.zeros(0, len(batch.texts.relations), device=device)
    return replace(
        batch,
        image_ids=("",),
        pixel_values=pixels,
        padding=torch.zeros(1, _BLANK_SIDE, _BLANK_SIDE, dtype=torch.bool, device=device),
        triplets=(Triplets(boxes, boxes, nothing, nothing, relations),),
        unsent_triplets=(),
        sizes=((_BLANK_SIDE, _BLANK_SIDE),),
        boxes=(LabelledBoxes(boxes, nothing),),
    )


def _named(losses: ModelLosses) -> dict[str, Tensor]:
    parts = dict(vars(losses.final))
    for name, error in vars(parts.pop("errors")).items():
        if error is not None:
            parts[f"{name}_error"] = error
    return {"loss": losses.total} | {name: value.detach() for name, value in parts.items()}
