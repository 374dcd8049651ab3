"""Fewer queries: pairs stay pairs, or rows are cut as published."""

from pathlib import Path

import pytest
import torch

from rlip_model.checkpoint import convert
from rlip_model.model import ParSeD, ParSeDA, RTagger
from rlip_model.prune_queries import kept_rows, prune_queries
from tests.rlip_model.conftest import tiny_network
from tests.rlip_model.official_names import write_official

QUERY_TABLES = {
    ParSeD: ["query_embed"],
    ParSeDA: ["content", "verb_content", "anchors"],
    RTagger: ["verb_content"],
}


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


def test_while_converting(tmp_path: Path, tagger: RTagger) -> None:
    tagger.tokenizer.save_pretrained(tmp_path / "words")
    tagger.config.text_config.save_pretrained(tmp_path / "words")
    network = tiny_network(ParSeDA, text_config=tagger.config.text_config)
    path, words = write_official(tmp_path / "checkpoint.pth", network), str(tmp_path / "words")
    pairs = ParSeDA.from_pretrained(convert(path, tmp_path / "pairs", words, num_queries=24))
    first = ParSeDA.from_pretrained(convert(path, tmp_path / "rows", words, num_queries=24, pairwise=False))
    anchors = network.queries.anchors.weight
    assert torch.equal(pairs.queries.anchors.weight, anchors[kept_rows(40, 24)])
    assert torch.equal(first.queries.anchors.weight, anchors[:24])
    assert pairs.tokenizer is not None
