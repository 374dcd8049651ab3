"""A small convolutional backbone with group norm, for images of about 100 pixels; no published
network uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlip_model.config import CHANNELS_PER_NORM_GROUP


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet's basic block, with group norm for small
    batches).
    """

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _convolution(inner, outer, 3, stride)
        self.norm1 = _norm(outer)
        self.conv2 = _convolution(outer, outer, 3, 1)
        self.norm2 = _norm(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.shortcut = nn.Sequential(_convolution(inner, outer, 1, stride), _norm(outer))

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(maps)).relu()
        return (self.norm2(self.conv2(inner)) + self.shortcut(maps)).relu()


class ConvolutionalBackbone(nn.Module):
    """Eight residual blocks with feature maps of strides 8, 16 and 32.

    Args:
        width: channels of the stem, a multiple of 8; the maps have 2, 4 and 6 times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [2 * width, 4 * width, 6 * width]
        self.stem = nn.Sequential(_convolution(3, width, 3, 2), _norm(width), nn.ReLU())
        self.stage1 = ResidualBlock(width, width, 2)
        self.stage2 = nn.Sequential(
            ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width)
        )
        self.stage3 = nn.Sequential(
            ResidualBlock(2 * width, 4 * width, 2), ResidualBlock(4 * width, 4 * width)
        )
        self.stage4 = ResidualBlock(4 * width, 6 * width, 2)

    def freeze(self) -> None:
        """Freeze nothing: the weights never come from elsewhere."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[batch, 3, height, width]` to three feature maps of strides 8, 16 and 32."""
        images = images.contiguous(memory_format=torch.channels_last)
        second = self.stage2(self.stage1(self.stem(images)))
        third = self.stage3(second)
        return [second, third, self.stage4(third)]


def _convolution(inner: int, outer: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, size, stride, size // 2, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_NORM_GROUP, channels)
