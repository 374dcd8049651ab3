"""The sizes that were published, by name: `preset("parseda", "swin_large")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlip_model.config import ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig


@dataclass(frozen=True)
class SwinSize:
    """Embedding width, blocks and attention heads per stage, and drop path rate, of a Swin transformer."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    drop_path: float


# Tiny and large are RLIPv2's; nobody published it with small or base, so their drop paths are a guess in between.
SWIN_SIZES: Mapping[str, SwinSize] = {
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "swin_small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2),
    "swin_base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.3),
    "swin_large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.5),
}
BACKBONES = ("resnet50", *SWIN_SIZES)
KINDS: Mapping[str, type[RLIPConfig]] = {
    "parseda": ParSeDAConfig,
    "parsed": ParSeDConfig,
    "tagger": RTaggerConfig,
    "rlipv1": ParSeDConfig,
}


def preset(kind: str, backbone: str, **changes: Any) -> RLIPConfig:
    """The configuration of a published network.

    Args:
        kind: `parseda`, `parsed` or `tagger` (RLIPv2), or `rlipv1` (RLIP-ParSeD, NeurIPS 2022, published with
            `resnet50` only).
        backbone: `resnet50`, `swin_tiny`, `swin_small`, `swin_base` or `swin_large`.
        changes: settings of the configuration that shall differ, such as `num_queries=128`.

    Raises:
        ValueError: no such kind or backbone, or changes that contradict each other.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no network {kind!r}, only {', '.join(KINDS)}")
    if backbone not in BACKBONES:
        raise ValueError(f"there is no backbone {backbone!r}, only {', '.join(BACKBONES)}")
    return KINDS[kind](**{**_backbone(backbone), **_of_kind(kind, backbone), **changes})


def _backbone(name: str) -> dict[str, Any]:
    if name == "resnet50":
        return {"backbone": "resnet50", "drop_path": 0.0}
    size = SWIN_SIZES[name]
    return {
        "backbone": "swin",
        "swin_embed_dim": size.embed_dim,
        "swin_depths": size.depths,
        "swin_heads": size.heads,
        "drop_path": size.drop_path,
    }


def _of_kind(kind: str, backbone: str) -> dict[str, Any]:
    resnet = backbone == "resnet50"
    narrow = {"feedforward_dim": 1024, "dropout": 0.1} if resnet else {}
    match kind:
        case "parsed":
            return {"dropout": 0.1, **narrow}
        case "tagger" if resnet:
            return {**narrow, "gating": "GLIP", "verb_query": "vanilla", "box_noise": 0.6, "label_noise": 0.3}
        case "rlipv1":
            return {"fusion": "after_decoding", "verb_query": "vanilla", "dropout": 0.1, **narrow}
    return {}
