"""Fusion after decoding (RLIP, NeurIPS 2022, section 3.1): decoded queries and labels attend to
each other.

It is the baseline that ALIF is compared with; `MDETR_attn` in the published code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlip_model.config import RLIPConfig
from rlip_model.decoder import DecodedEntities, DecodedRelations
from rlip_model.encoder import Memory
from rlip_model.fusion import initialise_by_xavier


@dataclass(frozen=True)
class ReadOutStates:
    """The states that the heads compare, layer by layer.

    entities `[layers, batch, 2 * pairs, dim]`, relations `[layers, batch, pairs, dim]`;
    object_labels `[layers, batch or 1, objects, dim]`, relation_labels `[layers, batch or 1,
    relations, dim]`.
    """

    entities: Tensor
    relations: Tensor
    object_labels: Tensor
    relation_labels: Tensor


class JointEncoder(nn.Module):
    """Pre-norm transformer layers over one sequence of queries and labels, without positions.

    All layers share one output norm. The next layer receives the states before this norm.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_dim,
                config.num_heads,
                config.feedforward_dim,
                config.dropout,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        initialise_by_xavier(self.layers)

    def forward(
        self, queries: Tensor, labels: Tensor, padding: Tensor | None, masked: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries `[layers, batch, queries, dim]` and labels `[layers, batch, labels, dim]` after
        every layer.

        Args:
            queries: `[batch, queries, dim]`.
            labels: `[batch or 1, labels, dim]`.
            padding: `[batch, queries]`, True for queries that nothing attends to.
            masked: `[batch or 1, labels]`, True for labels that nothing attends to.
        """
        batch, count = queries.shape[:2]
        sequence = torch.cat((queries, labels.expand(batch, -1, -1)), dim=1)
        hidden = None
        if padding is not None or masked is not None:
            hidden = torch.zeros(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
            hidden[:, :count] = False if padding is None else padding
            hidden[:, count:] = False if masked is None else masked
        states = []
        for layer in self.layers:
            sequence = layer(sequence, src_key_padding_mask=hidden)
            states.append(self.norm(sequence))
        stacked = torch.stack(states)
        return stacked[:, :, :count], stacked[:, :, count:]


class LateFusion(nn.Module):
    """Fuses entities with object labels and relations with relation labels, from the last states of
    the decoders.

    In the losses, the states after fusion layer k replace those of decoder layer k.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.entities = JointEncoder(config)
        self.relations = JointEncoder(config)

    def forward(
        self, entities: DecodedEntities, relations: DecodedRelations, memory: Memory
    ) -> ReadOutStates:
        """Fuse the decoders' last states with the labels of `memory`."""
        objects, verbs = memory.labels[-1].tensor_split([memory.num_objects], dim=1)
        masked = None
        masked_verbs = None
        if memory.masked_labels is not None:
            masked, masked_verbs = memory.masked_labels.tensor_split([memory.num_objects], dim=1)
        padding = entities.padding
        pair_padding = None if padding is None else padding.chunk(2, dim=1)[0]
        entity_states, object_labels = self.entities(entities.hidden[-1], objects, padding, masked)
        relation_states, relation_labels = self.relations(
            relations.hidden[-1], verbs, pair_padding, masked_verbs
        )
        return ReadOutStates(entity_states, relation_states, object_labels, relation_labels)
