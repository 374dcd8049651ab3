"""From images to image tokens: backbone, projections to one width, position encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from rlip_model.config import RLIPConfig
from rlip_model.convolutional import ConvolutionalBackbone
from rlip_model.gpu_memory import send
from rlip_model.position import image_positions
from rlip_model.swin import Swin


@dataclass(frozen=True)
class ImageFeatures:
    """The features of a batch of images, independent of any text; levels from fine to coarse,
    concatenated.

    tokens, positions `[batch, tokens, dim]`; padding `[batch, tokens]`, True outside the image;
    valid_ratios `[batch, levels, 2]`, the unpadded share (x, y) of each level; shapes (height,
    width) of each level.
    """

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    valid_ratios: Tensor
    shapes: tuple[tuple[int, int], ...]

    def of(self, images: Sequence[int]) -> ImageFeatures:
        """Return the features of these images of the batch, in this order; an image may be there
        several times.
        """
        if list(images) == list(range(len(self.tokens))):
            return self
        rows = send(torch.tensor(images), self.tokens.device)
        return ImageFeatures(
            self.tokens[rows],
            self.positions[rows],
            self.padding[rows],
            self.valid_ratios[rows],
            self.shapes,
        )


class FoldedBottleneck(Bottleneck):
    """torchvision's bottleneck block with its batch norms folded into its convolutions."""

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else _normalised(maps, *self.downsample)
        inner = _normalised(maps, self.conv1, self.bn1).relu_()
        inner = _normalised(inner, self.conv2, self.bn2).relu_()
        return _normalised(inner, self.conv3, self.bn3).add_(shortcut).relu_()


def _normalised(
    maps: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d | nn.Identity
) -> Tensor:
    """Convolution and frozen batch norm in one step, which saves two arrays as large as the
    maps.
    """
    if isinstance(norm, nn.Identity):  # it has been folded
        return convolution(maps)
    return F.conv2d(maps, *_folded(convolution, norm), convolution.stride, convolution.padding)


def _folded(convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a convolution that also normalises."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


class ResNet50(ResNet):
    """torchvision's ResNet-50 with frozen batch norm and without a classifier; stem and first stage
    are frozen too.
    """

    def __init__(self) -> None:
        super().__init__(FoldedBottleneck, [3, 4, 6, 3], norm_layer=FrozenBatchNorm2d)
        del self.avgpool, self.fc
        self.channels = [512, 1024, 2048]
        self.freeze()

    def freeze(self) -> None:
        """Freeze the stem and the first stage."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))

    @torch.no_grad()
    def fold(self) -> None:
        """Fold batch norms into convolutions for good: for inference, with the same results."""
        for module in list(self.modules()):
            children = list(module.named_children())
            for (_, convolution), (name, norm) in pairwise(children):
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                    weight, bias = _folded(convolution, norm)
                    convolution.weight = nn.Parameter(weight)
                    convolution.bias = nn.Parameter(bias)
                    setattr(module, name, nn.Identity())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[batch, 3, height, width]` to three feature maps of strides 8, 16 and 32."""
        images = images.contiguous(memory_format=torch.channels_last)
        return self.stages(_normalised(images, self.conv1, self.bn1).relu_())

    def stages(self, maps: Tensor) -> list[Tensor]:
        """Map the output of the stem to the feature maps of the last three stages."""
        first = self.layer1(self.maxpool(maps))
        second = self.layer2(first)
        third = self.layer3(second)
        return [second, third, self.layer4(third)]


class ImageEncoder(nn.Module):
    """Backbone, one projection per level, sine positions and a learned embedding per level."""

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.backbone: ResNet50 | Swin | ConvolutionalBackbone
        if config.backbone == "resnet50":
            self.backbone = ResNet50()
            self.position_offset = 0.0
        elif config.backbone == "convolutional":
            self.backbone = ConvolutionalBackbone(config.conv_width)
            self.position_offset = 0.0
        else:
            self.backbone = Swin(
                config.swin_embed_dim,
                config.swin_depths,
                config.swin_heads,
                config.swin_window,
                config.drop_path,
            )
            self.position_offset = 0.5
        self.dim = config.hidden_dim
        self.projections = _projections(
            self.backbone.channels, config.num_levels, config.hidden_dim
        )
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, config.hidden_dim))
        nn.init.normal_(self.level_embed)

    def forward(self, images: Tensor, padding: Tensor) -> ImageFeatures:
        """Encode a batch of images.

        Args:
            images: `[batch, 3, height, width]`, normalised, zero where padded (right and bottom).
            padding: `[batch, height, width]`, True where padded.
        """
        maps = self.project(self.backbone(images))
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        masks = [resize_mask(padding, shape) for shape in shapes]
        positions = [
            image_positions(mask, self.dim, self.position_offset).flatten(2).transpose(1, 2)
            + embedding
            for mask, embedding in zip(masks, self.level_embed, strict=True)
        ]
        return ImageFeatures(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            positions=torch.cat(positions, dim=1),
            padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
            shapes=shapes,
        )

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        """Project all levels to width `dim`; extra levels are computed from the backbone's last,
        unprojected map.
        """
        levels = [
            projection(level) for projection, level in zip(self.projections, maps, strict=False)
        ]
        extra = maps[-1]
        for projection in list(self.projections)[len(maps) :]:
            extra = projection(extra)
            levels.append(extra)
        return levels


def _projections(channels: list[int], levels: int, dim: int) -> nn.ModuleList:
    convolutions = [nn.Conv2d(width, dim, kernel_size=1) for width in channels[:levels]]
    width = channels[-1]
    for _ in range(levels - len(channels)):
        convolutions.append(nn.Conv2d(width, dim, kernel_size=3, stride=2, padding=1))
        width = dim
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, dim)) for conv in convolutions)


def resize_mask(padding: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize a mask `[batch, height, width]` to `shape` with nearest-neighbour interpolation."""
    return F.interpolate(padding[:, None].float(), size=shape)[:, 0].bool()


def valid_ratio(padding: Tensor) -> Tensor:
    """`[batch, 2]`: unpadded share of the width and of the height, measured on the first row and
    column.
    """
    valid = (~padding).float()
    return torch.stack((valid[:, 0, :].mean(1), valid[:, :, 0].mean(1)), dim=-1)
