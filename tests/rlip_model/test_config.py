"""Configurations refuse what cannot be built, and survive being stored."""

from typing import Any

import pytest

from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"gating": "open"}, "gating is 'open', expected one of GLIP, VXAc"),
        ({"verb_query": "none"}, "verb_query is 'none'"),
        ({"backbone": "vgg"}, "backbone is 'vgg', expected one of resnet50, swin"),
        ({"num_queries": 7}, "num_queries 7 must be even"),
        ({"hidden_dim": 100}, "hidden_dim 100"),
        ({"fusion_dim": 100}, "fusion_dim 100"),
        ({"conv_width": 12}, "conv_width 12 must be a multiple of 8"),
        ({"dense_head": True}, "an R-Tagger gets its boxes"),
        ({"decoder_layers": 4}, "3 label states, expected one for each of the 4 decoder layers"),
    ],
)
def test_sizes_that_contradict_each_other(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTaggerConfig(**sizes)


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (ParSeDConfig, {"dense_head": True, "proposals": 20}, "only ParSeDA takes its queries from boxes"),
        (ParSeDAConfig, {"proposals": 20}, "set dense_head: true"),
        (ParSeDAConfig, {"dense_head": True, "proposals": 10}, "too few pairs for num_queries 200"),
    ],
)
def test_proposals_need_a_detector_and_enough_pairs(
    kind: type[RLIPConfig], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**sizes)


def test_defaults_are_the_papers() -> None:
    config = ParSeDConfig()
    assert (config.num_pairs, config.num_fusions) == (100, 3)
    text = config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.max_position_embeddings) == (768, 12, 514)
