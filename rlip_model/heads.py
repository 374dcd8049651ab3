"""Prediction heads for decoded queries: small MLPs for boxes, similarity with the label texts for
classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlip_model.position import at_least_float32, inverse_sigmoid

# Constant bias: before training, every class has probability 0.01.
PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)


@dataclass(frozen=True)
class LayerOutput:
    """Predictions of one decoder layer; `pairs` is half the number of queries.

    subject_logits, object_logits `[batch, pairs, objects]`, "no objects" last; subject_logits is
    None where subjects are not classified. relation_logits `[batch, pairs, relations]`; boxes
    `[batch, pairs, 4]`, normalised cxcywh.
    """

    subject_logits: Tensor | None
    object_logits: Tensor
    relation_logits: Tensor
    subject_boxes: Tensor
    object_boxes: Tensor


@dataclass(frozen=True)
class RelationOutput:
    """Predictions of the last decoder layer, and of the earlier layers for auxiliary losses."""

    final: LayerOutput
    auxiliary: tuple[LayerOutput, ...] = ()


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        """`[..., first width]` to `[..., last width]`."""
        for layer in self.layers[:-1]:
            features = layer(features).relu()
        return self.layers[-1](features)


class BoxHead(nn.Module):
    """Refines a reference: `sigmoid(mlp(hidden) + inverse_sigmoid(reference))`; initially the
    identity.

    Args:
        size_bias: initial logit of width and height, for references without a size.
    """

    def __init__(self, dim: int, size_bias: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(dim, dim, dim, 4)
        *_, weight, bias = self.mlp.parameters()
        nn.init.zeros_(weight)
        nn.init.zeros_(bias)
        nn.init.constant_(bias[2:], size_bias)

    def forward(self, hidden: Tensor, reference: Tensor) -> Tensor:
        """Boxes `[..., 4]` from `hidden` `[..., dim]` and references `[..., 2 (xy) or 4
        (cxcywh)]`.
        """
        base = inverse_sigmoid(reference)
        offset = self.mlp(hidden).to(base.dtype)
        width = reference.shape[-1]
        return torch.cat((offset[..., :width] + base, offset[..., width:]), dim=-1).sigmoid()


class LabelScorer(nn.Module):
    """Computes logits as dot products of query states with projected, L2-normalised label
    features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, dim)
        self.entity_bias = nn.Parameter(torch.zeros(dim))
        self.relation_bias = nn.Parameter(torch.zeros(dim))

    def project(self, labels: Tensor) -> Tensor:
        """Project labels `[..., labels, dim]` for `entities` and `relations`."""
        return self.projection(F.normalize(labels, dim=-1) / 2)

    def entities(self, hidden: Tensor, projected: Tensor) -> Tensor:
        """`hidden` `[..., queries, dim]` and `projected` `[..., labels, dim]` to `[..., queries,
        labels]`.
        """
        return self._scores(hidden + self.entity_bias, projected)

    def relations(self, hidden: Tensor, projected: Tensor) -> Tensor:
        """As `entities`, for relation queries and relation labels."""
        return self._scores(hidden + self.relation_bias, projected)

    def _scores(self, hidden: Tensor, projected: Tensor) -> Tensor:
        # bfloat16 would make logits equal that are not.
        with torch.autocast(hidden.device.type, enabled=False):
            labels = at_least_float32(projected).transpose(-1, -2)
            return at_least_float32(hidden) @ labels + PRIOR_LOGIT
