"""Configurations: what cannot be built is refused; the published sizes."""

from typing import Any

import pytest
import torch

from rlip_model.checkpoint import build_model
from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig
from rlip_model.presets import preset


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (RTaggerConfig, {"gating": "open"}, "gating is 'open', expected one of GLIP, VXAc"),
        (RTaggerConfig, {"backbone": "vgg"}, "backbone is 'vgg', expected one of resnet50, swin"),
        (RTaggerConfig, {"num_queries": 7}, "num_queries 7 must be even"),
        (RTaggerConfig, {"hidden_dim": 100}, "hidden_dim 100"),
        (RTaggerConfig, {"conv_width": 12}, "conv_width 12 must be a multiple of 8"),
        (RTaggerConfig, {"dense_head": True}, "an R-Tagger gets its boxes"),
        (RTaggerConfig, {"decoder_layers": 4}, "3 label states, expected one for each of the 4 decoder layers"),
        (ParSeDConfig, {"dense_head": True, "proposals": 20}, "only ParSeDA takes its queries from boxes"),
        (ParSeDAConfig, {"proposals": 20}, "set dense_head: true"),
        (ParSeDAConfig, {"dense_head": True, "proposals": 10}, "too few pairs for num_queries 200"),
    ],
)
def test_sizes_that_contradict_each_other(kind: type[RLIPConfig], sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**sizes)


UNREAD_QUERIES = 200 * 3 * 256  # the published R-Tagger holds ParSeD's queries, which it never reads


@pytest.mark.parametrize(("kind", "backbone", "published"), [
    ("parseda", "resnet50", 213_700_624), ("parseda", "swin_tiny", 214_243_658), ("parsed", "resnet50", 206_816_500),
    ("parsed", "swin_tiny", 213_663_278), ("tagger", "resnet50", 206_642_164 - UNREAD_QUERIES),
    ("tagger", "swin_tiny", 213_715_758 - UNREAD_QUERIES), ("rlipv1", "resnet50", 171_154_420),
])  # fmt: skip
def test_as_many_parameters_as_published(kind: str, backbone: str, published: int) -> None:
    with torch.device("meta"):
        network = build_model(preset(kind, backbone))
    assert sum(parameter.numel() for parameter in network.parameters()) == published
