"""Reduce the queries of a network, such as from 200 in pre-training to 128 for fine-tuning."""

from __future__ import annotations

import torch
from torch import nn

from rlip_model.model import RLIPModel, build_model

_PER_QUERY = {
    "queries.query_embed.weight",
    "queries.content.weight",
    "queries.verb_content.weight",
    "queries.anchors.weight",
}
_PER_PAIR = {"queries.relation_builder.verb_position.weight"}


def prune_queries(model: RLIPModel, num_queries: int, pairwise: bool = True) -> RLIPModel:
    """Copy a network with fewer queries.

    Args:
        pairwise: keep the first pairs: the first `num_queries / 2` subjects and their objects.
            Otherwise, as in the published code, keep the first rows, so that subjects after the
            first `num_queries / 2` become objects.

    Raises:
        ValueError: `num_queries` is odd, not positive, or more than the network has.
    """
    config = model.config
    pairs = num_queries // 2
    if num_queries % 2 or not 0 < num_queries <= config.num_queries:
        raise ValueError(
            f"cannot keep {num_queries} of {config.num_queries} queries, expected an even number of"
            " them"
        )
    rows = torch.arange(num_queries)
    if pairwise:
        rows = torch.cat((rows[:pairs], config.num_pairs + rows[:pairs]))
    state = dict(model.state_dict())
    # With proposals, all queries share one row.
    for name in _PER_QUERY & state.keys():
        if len(state[name]) == config.num_queries:
            state[name] = state[name][rows.to(state[name].device)]
    for name in _PER_PAIR & state.keys():
        state[name] = state[name][:pairs]
    pruned = build_model(type(config).from_dict({**config.to_dict(), "num_queries": num_queries}))
    pruned.load_state_dict(state)
    nn.Module.to(pruned, device=model.device, dtype=model.dtype)
    if model.tokenizer is not None:
        pruned.set_tokenizer(model.tokenizer)
    pruned.train(model.training)
    return pruned
