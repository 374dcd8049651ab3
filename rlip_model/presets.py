"""Named sizes: the published networks, such as `preset("parseda", "swin_large")`, and a tiny one
(`tiny_sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import RobertaConfig

from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig

Settings: TypeAlias = dict[str, Any]  # of a configuration, by name
KINDS: Mapping[str, type[RLIPConfig]] = {
    "parseda": ParSeDAConfig,
    "parsed": ParSeDConfig,
    "tagger": RTaggerConfig,
    "rlipv1": ParSeDConfig,
}

# What differs from the defaults of a configuration.
_SETTINGS: Mapping[str, Settings] = {
    "parseda": {},
    "parsed": {"dropout": 0.1},
    "tagger": {},
    "rlipv1": {"dropout": 0.1, "fusion": "after_decoding", "verb_query": "vanilla"},
}
_WITH_RESNET50: Mapping[str, Settings] = {
    "parseda": {},
    "parsed": {"feedforward_dim": 1024},
    "tagger": {
        "feedforward_dim": 1024,
        "dropout": 0.1,
        "gating": "GLIP",
        "verb_query": "vanilla",
        "box_noise": 0.6,
        "label_noise": 0.3,
    },
    "rlipv1": {"feedforward_dim": 1024},
}


@dataclass(frozen=True)
class SwinSize:
    """A Swin transformer: embedding width, blocks and attention heads per stage, drop-path rate."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    drop_path: float


# Tiny and large as in RLIPv2. RLIPv2 was not published with small and base: their drop-path rates
# are interpolated.
SWIN_SIZES: Mapping[str, SwinSize] = {
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "swin_small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2),
    "swin_base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.3),
    "swin_large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.5),
}
BACKBONES = ("resnet50", *SWIN_SIZES)


def preset(kind: str, backbone: str, **changes: Any) -> RLIPConfig:
    """Return the configuration of a published network.

    Args:
        kind: `parseda`, `parsed` or `tagger` (RLIPv2), or `rlipv1` (RLIP-ParSeD, NeurIPS 2022,
            published with `resnet50` only).
        backbone: `resnet50`, `swin_tiny`, `swin_small`, `swin_base` or `swin_large`.
        changes: settings to override, such as `num_queries=128`.

    Raises:
        ValueError: unknown kind or backbone, or inconsistent sizes.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown network {kind!r}, expected one of {', '.join(KINDS)}")
    if backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {backbone!r}, expected one of {', '.join(BACKBONES)}")
    settings = _SETTINGS[kind]
    if backbone == "resnet50":
        settings = settings | _WITH_RESNET50[kind] | {"backbone": "resnet50", "drop_path": 0.0}
    else:
        size = SWIN_SIZES[backbone]
        settings = settings | {
            "backbone": "swin",
            "swin_embed_dim": size.embed_dim,
            "swin_depths": size.depths,
            "swin_heads": size.heads,
            "drop_path": size.drop_path,
        }
    return KINDS[kind](**(settings | changes))


def tiny_sizes(vocabulary: int) -> Settings:
    """Settings of a network with every part of the full one, but narrow and shallow: about a
    million parameters.

    Args:
        vocabulary: number of tokens of the tokenizer.
    """
    text = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        # with so few features, dropout would hide the differences between labels
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # with RoBERTa's 0.02, meant for larger widths, all texts would start out alike
        initializer_range=0.2,
    )
    return {
        "swin_embed_dim": 12,
        "swin_depths": (2, 2, 2, 2),
        "hidden_dim": 64,
        "feedforward_dim": 128,
        "num_queries": 40,
        "fusion_dim": 64,
        "fusion_dropout": 0.0,
        "text_config": text,
    }
