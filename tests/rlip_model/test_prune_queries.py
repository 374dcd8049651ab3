"""Fewer queries: pairs stay pairs, or rows are cut as published."""

import pytest
import torch

from rlip_model.model import ParSeD, ParSeDA, RTagger
from rlip_model.prune_queries import prune_queries
from tests.rlip_model.conftest import tiny_network

QUERY_TABLES = {ParSeD: ["query_embed"], ParSeDA: ["content", "verb_content", "anchors"], RTagger: ["verb_content"]}


@pytest.mark.parametrize("kind", QUERY_TABLES)
@pytest.mark.parametrize("pairwise", [True, False])
def test_every_table_is_trimmed(kind: type[ParSeD], pairwise: bool) -> None:
    network = tiny_network(kind)
    trimmed = prune_queries(network, 24, pairwise)
    rows = [*range(12), *range(20, 32)] if pairwise else [*range(24)]
    for table in QUERY_TABLES[kind]:
        before, after = (getattr(each.queries, table).weight for each in (network, trimmed))
        assert torch.equal(after, before[rows])
    if kind is not ParSeDA:
        builders = [each.queries.relation_builder.verb_position.weight for each in (network, trimmed)]
        assert torch.equal(builders[1], builders[0][:12])
    assert (trimmed.config.num_pairs, network.config.num_pairs) == (12, 20)
    whole = network.state_dict()
    others = {name: value for name, value in trimmed.state_dict().items() if not name.startswith("queries.")}
    assert all(torch.equal(value, whole[name]) for name, value in others.items())


@torch.no_grad()
def test_pairs_start_from_the_boxes_they_had() -> None:
    network = tiny_network(ParSeDA)
    trimmed = prune_queries(network, 24)
    before, after = (each.queries.entities(1).references[0].chunk(2) for each in (network, trimmed))
    for role_before, role_after in zip(before, after, strict=True):
        assert torch.equal(role_after, role_before[:12])
