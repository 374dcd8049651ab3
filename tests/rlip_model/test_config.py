"""Configurations: what cannot be built is refused; the published sizes."""

from typing import Any

import pytest
import torch

from rlip_model.checkpoint import build_model
from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig
from rlip_model.presets import preset


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"gating": "open"}, "gating is 'open', expected one of GLIP, VXAc"),
        ({"backbone": "vgg"}, "backbone is 'vgg', expected one of resnet50, swin"),
        ({"num_queries": 7}, "num_queries 7 must be even"),
        ({"hidden_dim": 100}, "hidden_dim 100"),
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


def parameters(kind: str, backbone: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(preset(kind, backbone)).parameters())


UNREAD_QUERIES = 200 * 3 * 256  # the published R-Tagger holds ParSeD's queries, which it never reads


@pytest.mark.parametrize(
    ("kind", "backbone", "published"),
    [
        ("parseda", "resnet50", 213_700_624),
        ("parseda", "swin_tiny", 214_243_658),
        ("parsed", "resnet50", 206_816_500),
        ("parsed", "swin_tiny", 213_663_278),
        ("tagger", "resnet50", 206_642_164 - UNREAD_QUERIES),
        ("tagger", "swin_tiny", 213_715_758 - UNREAD_QUERIES),
        ("rlipv1", "resnet50", 171_154_420),
    ],
)
def test_as_many_parameters_as_published(kind: str, backbone: str, published: int) -> None:
    assert parameters(kind, backbone) == published
