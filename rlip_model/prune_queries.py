"""Fewer queries than a network was trained with: 128 for fine-tuning, after pre-training with 200."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlip_model.model import RLIPModel, build_model

_PER_QUERY = (
    "queries.query_embed.weight",
    "queries.content.weight",
    "queries.verb_content.weight",
    "queries.anchors.weight",
)
_PER_PAIR = ("queries.relation_builder.verb_position.weight",)


def kept_rows(total: int, wanted: int, pairwise: bool = True) -> Tensor:
    """`[wanted]`: the queries that remain of `total`.

    Pairwise, the first pairs remain: the first `wanted / 2` subjects and their objects. Otherwise, as in the
    published code, the first `wanted` rows do, so that subject queries beyond `wanted / 2` become objects.
    """
    if not pairwise:
        return torch.arange(wanted)
    first = torch.arange(wanted // 2)
    return torch.cat((first, total // 2 + first))


def prune_queries(model: RLIPModel, num_queries: int, pairwise: bool = True) -> RLIPModel:
    """A copy of a network with its first `num_queries` queries; see `kept_rows` for which are the first.

    Raises:
        ValueError: more queries than the network has, none, or an odd number.
    """
    config = model.config
    if num_queries % 2 or not 0 < num_queries <= config.num_queries:
        raise ValueError(f"{num_queries} queries cannot be kept of {config.num_queries}: an even number of them can")
    rows = kept_rows(config.num_queries, num_queries, pairwise)
    state = dict(model.state_dict())
    for name in _PER_QUERY:
        if name in state:
            state[name] = state[name][rows.to(state[name].device)]
    for name in _PER_PAIR:
        if name in state:
            state[name] = state[name][: num_queries // 2]
    trimmed = build_model(type(config).from_dict({**config.to_dict(), "num_queries": num_queries}))
    trimmed.load_state_dict(state)
    nn.Module.to(trimmed, device=model.device, dtype=model.dtype)
    if model.tokenizer is not None:
        trimmed.set_tokenizer(model.tokenizer)
    trimmed.train(model.training)
    return trimmed
