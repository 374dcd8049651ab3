"""Swin transformer as a detection backbone: any image size, feature maps of the last three
stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

MASKED = -100.0  # attention score between tokens that only a cyclic shift brought into one window


def relative_position_index(window: int) -> Tensor:
    """`[window**2, window**2]`: the row of the bias table for each pair of tokens of a window."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()))
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


def to_windows(maps: Tensor, window: int) -> Tensor:
    """`[batch, height, width, dim]` to `[batch * windows, window**2, dim]`."""
    batch, height, width, dim = maps.shape
    maps = maps.view(batch, height // window, window, width // window, window, dim)
    return maps.transpose(2, 3).reshape(-1, window * window, dim)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `to_windows`."""
    maps = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return maps.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """`[windows, window**2, window**2]`: attention scores that separate the wrapped parts of
    shifted windows.
    """
    shift = window // 2

    def bands(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place >= size - window).long() + (place >= size - shift).long()

    regions = (3 * bands(height).unsqueeze(1) + bands(width)).view(1, height, width, 1)
    regions = to_windows(regions, window).squeeze(-1)
    return (regions.unsqueeze(1) != regions.unsqueeze(2)).float() * MASKED


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """`windows` `[images * windows, tokens, dim]`; `mask` `[windows, tokens, tokens]` or
        None.
        """
        total, tokens, dim = windows.shape
        query, key, value = (
            self.qkv(windows).view(total, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, tokens, tokens, self.heads).permute(0, 3, 1, 2)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)
        attended = attend(query, key, value, bias.to(query.dtype))
        return self.proj(attended.transpose(1, 2).reshape(total, tokens, dim))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention `[images * windows, heads, tokens, dim]` with `bias` `[windows or 1, heads, tokens,
    tokens]`.

    On a CPU, torch has no fused attention with a gradient for the bias, and its fallback is slower
    than this function.
    """
    if bias.device.type == "cpu" and bias.requires_grad:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores.unflatten(0, (-1, len(bias))) + bias
        return scores.softmax(-1).flatten(0, 1).to(value.dtype) @ value
    if len(bias) > 1:
        bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwinBlock(nn.Module):
    """Pre-norm window attention and feed-forward; every second block shifts its windows by half."""

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        """`maps` `[batch, height, width, dim]`; `mask` for the padded size, used if the block
        shifts.
        """
        maps = maps + self.drop_path(self._attend(self.norm1(maps), mask))
        return maps + self.drop_path(self.mlp(self.norm2(maps)))

    def _attend(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        height, width = maps.shape[1:3]
        maps = F.pad(maps, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = maps.shape[1:3]
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(maps, self.window), mask if self.shift else None)
        maps = from_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), dims=(1, 2))
        return maps[:, :height, :width]


class PatchMerging(nn.Module):
    """Halves the resolution: each 2x2 patch becomes one token of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[1:3]
        maps = F.pad(maps, (0, 0, 0, width % 2, 0, height % 2))
        quarters = (
            maps[:, 0::2, 0::2],
            maps[:, 1::2, 0::2],
            maps[:, 0::2, 1::2],
            maps[:, 1::2, 1::2],
        )
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


class SwinStage(nn.Module):
    """Blocks at one resolution, followed by patch merging in all stages but the last."""

    def __init__(
        self, dim: int, heads: int, window: int, drop_paths: Sequence[float], merge: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, index % 2 == 1, rate)
            for index, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of this stage, and the input of the next stage."""
        height = maps.shape[1] + -maps.shape[1] % self.window
        width = maps.shape[2] + -maps.shape[2] % self.window
        mask = shift_mask(height, width, self.window, maps.device)
        for block in self.blocks:
            maps = block(maps, mask)
        return maps, maps if self.downsample is None else self.downsample(maps)


class PatchEmbedding(nn.Module):
    """Splits images into patches and projects each to a token."""

    def __init__(self, dim: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Feature maps of strides 8, 16 and 32, each with its own layer norm.

    Norms and relative position biases are frozen, as in the published training.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.channels = [embed_dim * 2**stage for stage in (1, 2, 3)]
        total = sum(depths)
        rates = [drop_path * index / max(total - 1, 1) for index in range(total)]
        self.patch_embed = PatchEmbedding(embed_dim)
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            first = sum(depths[:stage])
            stage_rates = rates[first : first + depth]
            merge = stage < len(depths) - 1
            self.layers.append(
                SwinStage(embed_dim * 2**stage, heads[stage], window, stage_rates, merge)
            )
        self.norm1 = nn.LayerNorm(self.channels[0])
        self.norm2 = nn.LayerNorm(self.channels[1])
        self.norm3 = nn.LayerNorm(self.channels[2])
        self.apply(_initialise)
        self.freeze()

    def freeze(self) -> None:
        """Freeze norms and relative position biases."""
        for name, parameter in self.named_parameters():
            if "norm" in name or "relative_position_bias_table" in name:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[batch, 3, height, width]` to three `[batch, channels, height / stride, width /
        stride]`.
        """
        outputs = []
        _, downsampled = self.layers[0](self.patch_embed(images))
        norms = (self.norm1, self.norm2, self.norm3)
        for stage, norm in zip(list(self.layers)[1:], norms, strict=True):
            maps, downsampled = stage(downsampled)
            outputs.append(norm(maps).permute(0, 3, 1, 2).contiguous())
        return outputs


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
