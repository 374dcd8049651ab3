"""The two decoders (ParSe): first subjects and objects in parallel, then the relations between
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlip_model.attention import DeformableAttention
from rlip_model.config import RLIPConfig
from rlip_model.encoder import Memory
from rlip_model.heads import MLP, BoxHead
from rlip_model.position import sine_features
from rlip_model.queries import EntityQueries, RelationQueries

FIRST_SIZE_BIAS = -2.0  # boxes start at sigmoid(-2) = 0.12 of the image


@dataclass(frozen=True)
class DecodedEntities:
    """States `[layers, batch, 2 * pairs, dim]` and boxes `[layers, batch, 2 * pairs, 4]` after
    every layer.

    references: per layer, `[batch, 2 * pairs, 2 (xy) or 4 (cxcywh)]`, the references that its boxes
    are relative to;
    padding: `[batch, 2 * pairs]`, as given with the queries.
    """

    hidden: Tensor
    boxes: Tensor
    references: tuple[Tensor, ...]
    padding: Tensor | None = None


@dataclass(frozen=True)
class DecodedRelations:
    """States `[layers, batch, pairs, dim]`, and the pairs' boxes as refined by the relation
    decoder.

    subject_boxes, object_boxes: `[layers, batch, pairs, 4]`; they only guide attention.
    """

    hidden: Tensor
    subject_boxes: Tensor
    object_boxes: Tensor


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the image, feed-forward; normalised
    after each.

    Parameter names are those of Deformable DETR, where `norm2` follows the self-attention.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.cross_attn = DeformableAttention(
            dim, config.num_heads, config.num_levels, config.num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(
            dim, config.num_heads, config.dropout, batch_first=True
        )
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        for weight in (self.linear1.weight, self.linear2.weight, self.self_attn.out_proj.weight):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        content: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Memory,
        padding: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """`content`, `positions` `[batch, queries, dim]`; `references` `[batch or 1, queries, 2 or
        4]`.
        """
        placed = content + positions
        attended, _ = self.self_attn(
            placed, placed, content, padding, need_weights=False, attn_mask=attention_mask
        )
        content = self.norm2(content + self.dropout(attended))
        ratios = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        scaled = references.unsqueeze(2) * ratios.unsqueeze(1)
        image = (memory.tokens, memory.padding, memory.shapes, memory.owners)
        attended = self.cross_attn(content + positions, scaled, *image)
        content = self.norm1(content + self.dropout(attended))
        hidden = self.dropout(self.linear1(content).relu())
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class AnchorPositions(nn.Module):
    """Position vectors from boxes (DAB-DETR, section 4).

    Sine features of y, x, width and height go through an MLP. From the second layer on, they are
    scaled by the content of the query.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ref_point_head = MLP(2 * dim, dim, dim)
        self.query_scale = MLP(dim, dim, dim)
        self.features = dim // 2

    def forward(self, layer: int, content: Tensor, boxes: Tensor) -> Tensor:
        """`content` `[batch, queries, dim]`, `boxes` `[batch, queries, 4]` as shares of the padded
        image.
        """
        x, y, width, height = boxes.unbind(-1)
        sines = torch.cat(
            [sine_features(value, self.features) for value in (y, x, width, height)], dim=-1
        )
        positions = self.ref_point_head(sines)
        return positions if layer == 0 else self.query_scale(content) * positions


class Decoder(nn.Module):
    """Decoder layers, each with one box head for subjects and one for objects.

    Args:
        anchored: compute the positions of the queries from their boxes, instead of learned ones.
    """

    def __init__(self, config: RLIPConfig, anchored: bool, first_size_bias: float = 0.0) -> None:
        super().__init__()
        self.anchor_positions = AnchorPositions(config.hidden_dim) if anchored else None
        biases = [first_size_bias] + [0.0] * (config.decoder_layers - 1)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in biases)
        self.subject_box_heads = nn.ModuleList(BoxHead(config.hidden_dim, bias) for bias in biases)
        self.object_box_heads = nn.ModuleList(BoxHead(config.hidden_dim, bias) for bias in biases)

    def positions(
        self,
        layer: int,
        content: Tensor,
        references: Tensor,
        learned: Tensor | None,
        memory: Memory,
    ) -> Tensor:
        """Return the position vectors `[batch, queries, dim]` of the queries at a layer."""
        if self.anchor_positions is not None:
            finest = memory.valid_ratios[:, :1].repeat(1, 1, 2)
            return self.anchor_positions(layer, content, references * finest)
        assert learned is not None
        return learned


class EntityDecoder(Decoder):
    """Decodes subjects and objects in parallel; every layer refines their boxes."""

    def __init__(self, config: RLIPConfig, anchored: bool = False) -> None:
        super().__init__(config, anchored, FIRST_SIZE_BIAS)

    def forward(self, queries: EntityQueries, memory: Memory) -> DecodedEntities:
        """Decode the queries; boxes are detached between layers."""
        content = queries.content
        references = queries.references
        states = []
        boxes = []
        starts = []
        for index, layer in enumerate(self.layers):
            positions = self.positions(index, content, references, queries.positions, memory)
            content = layer(
                content, positions, references, memory, queries.padding, queries.attention_mask
            )
            starts.append(references)
            boxes.append(self.boxes(index, content, references))
            references = boxes[-1].detach()
            states.append(content)
        return DecodedEntities(
            torch.stack(states), torch.stack(boxes), tuple(starts), queries.padding
        )

    def boxes(self, layer: int, hidden: Tensor, references: Tensor) -> Tensor:
        """`[batch, 2 * pairs, 4]`: the references of a layer, moved by the box heads of that
        layer.
        """
        subjects, objects = hidden.chunk(2, dim=1)
        subject_references, object_references = references.chunk(2, dim=1)
        moved = (
            self.subject_box_heads[layer](subjects, subject_references),
            self.object_box_heads[layer](objects, object_references),
        )
        return torch.cat(moved, dim=1)


class RelationDecoder(Decoder):
    """Decodes one relation per pair; attends around the mean of the subject's and the object's
    box.
    """

    def __init__(self, config: RLIPConfig, anchored: bool = False) -> None:
        super().__init__(config, anchored)

    def forward(self, queries: RelationQueries, boxes: Tensor, memory: Memory) -> DecodedRelations:
        """`boxes` `[batch, 2 * pairs, 4]`: the last ones of the entity decoder."""
        content = queries.content
        subject_boxes, object_boxes = boxes.detach().chunk(2, dim=1)
        states = []
        subjects = []
        objects = []
        heads = zip(self.subject_box_heads, self.object_box_heads, strict=True)
        for index, (layer, (subject_head, object_head)) in enumerate(
            zip(self.layers, heads, strict=True)
        ):
            references = (subject_boxes + object_boxes) / 2
            positions = self.positions(index, content, references, queries.positions, memory)
            content = layer(content, positions, references, memory, queries.padding, None)
            subject_boxes = subject_head(content, subject_boxes).detach()
            object_boxes = object_head(content, object_boxes).detach()
            states.append(content)
            subjects.append(subject_boxes)
            objects.append(object_boxes)
        return DecodedRelations(torch.stack(states), torch.stack(subjects), torch.stack(objects))
