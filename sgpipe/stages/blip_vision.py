"""BLIP's vision tower with PyTorch's fused attention, which transformers refuses for this model."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration


class FusedAttention(nn.Module):
    """The weights of a `BlipAttention` without its [heads, patches, patches] matrix of scores in memory."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.num_heads
        self.qkv: nn.Linear = attention.qkv
        self.projection: nn.Linear = attention.projection

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        """[pictures, 1 + patches, width] to the same shape, and no attention map."""
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.projection(seen.transpose(1, 2).flatten(2)), None


def fuse_vision_attention(model: BlipForConditionalGeneration) -> None:
    """Exchange the attention of every vision layer in place; it then serves inference only."""
    layers: Any = model.vision_model.encoder.layers
    for layer in layers:
        layer.self_attn = FusedAttention(layer.self_attn)
