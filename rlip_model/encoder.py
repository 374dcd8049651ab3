"""The layers of the image encoder: deformable self-attention, with or without fusion with the
labels (ALIF).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlip_model.attention import DeformableAttention, Owners, Shapes
from rlip_model.backbone import ImageFeatures
from rlip_model.config import RLIPConfig
from rlip_model.fusion import LabelLayer, VisionLanguageFusion
from rlip_model.text import LabelFeatures

TOKENS_PER_PART = 1024  # small enough for the hidden features to stay in a CPU's cache


@dataclass(frozen=True)
class Memory:
    """The encoder's output, which the decoders attend to.

    tokens `[batch, tokens, dim]`; padding `[batch, tokens]`, True outside the image; valid_ratios
    `[batch, levels, 2]`; labels `[decoder layers, batch, labels, dim]`, the labels that the output
    of each decoder layer is scored against; masked_labels `[batch, labels]`, True for labels that a
    fusion after decoding ignores, or None. With a batch of 1, many groups of queries may share one
    image; with more, as `of_groups`.

    owners: the image of each group of queries; then valid_ratios, labels and masked_labels are
    those of the groups.
    None: those of the images.
    """

    tokens: Tensor
    padding: Tensor
    valid_ratios: Tensor
    shapes: tuple[tuple[int, int], ...]
    labels: Tensor
    num_objects: int
    masked_labels: Tensor | None = None
    owners: Owners | None = None

    def of_groups(self, images: Sequence[int]) -> Memory:
        """Return the same memory for groups of queries, of which each belongs to one image of the
        batch.
        """
        owners = Owners.of(images, self.tokens.device)
        return replace(
            self,
            valid_ratios=self.valid_ratios[owners.images],
            labels=self.labels[:, owners.images],
            masked_labels=None if self.masked_labels is None else self.masked_labels[owners.images],
            owners=owners,
        )


def pixel_centres(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """`[batch, tokens, levels, 2]`: the centre of each token, as normalised (x, y) on every
    level.
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        rows = torch.arange(height, device=valid_ratios.device) + 0.5
        columns = torch.arange(width, device=valid_ratios.device) + 0.5
        y, x = torch.meshgrid(rows / height, columns / width, indexing="ij")
        centres.append(
            torch.stack((x.flatten(), y.flatten()), dim=-1) / valid_ratios[:, level, None]
        )
    return torch.cat(centres, dim=1).unsqueeze(2) * valid_ratios.unsqueeze(1)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by layer norm (Deformable DETR)."""

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = DeformableAttention(
            dim, config.num_heads, config.num_levels, config.num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, tokens: Tensor, positions: Tensor, references: Tensor, padding: Tensor, shapes: Shapes
    ) -> Tensor:
        """Update `tokens` `[batch, tokens, dim]`; on a CPU without gradients, in parts to save
        memory.
        """
        value = self.self_attn.project(tokens, padding)
        if tokens.device.type != "cpu" or torch.is_grad_enabled():
            return self._attend(tokens, positions, references, value, shapes)
        size = TOKENS_PER_PART
        parts = zip(
            tokens.split(size, 1), positions.split(size, 1), references.split(size, 1), strict=True
        )
        return torch.cat([self._attend(*part, value, shapes) for part in parts], dim=1)

    def _attend(
        self, tokens: Tensor, positions: Tensor, references: Tensor, value: Tensor, shapes: Shapes
    ) -> Tensor:
        attended = self.self_attn.attend(tokens + positions, references, value, shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(self.linear1(tokens).relu_())
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableEncoder(nn.Module):
    """Deformable DETR's encoder, which ignores the labels; used by RLIPv1 and by networks without
    fusion.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, image: ImageFeatures, labels: LabelFeatures) -> tuple[Tensor, Tensor]:
        """Image tokens `[batch, tokens, dim]`, and the labels unchanged, `[1, batch, labels,
        label_dim]`.
        """
        tokens = image.tokens
        references = pixel_centres(image.shapes, image.valid_ratios)
        for layer in self.layers:
            tokens = layer(tokens, image.positions, references, image.padding, image.shapes)
        return tokens, labels.features.expand(tokens.shape[0], -1, -1).unsqueeze(0)


class ALIFEncoder(DeformableEncoder):
    """Asymmetric language-image fusion (RLIPv2, section 3.2).

    Every `fusion_interval` image layers are preceded by one fusion and one label layer.
    """

    def __init__(self, config: RLIPConfig) -> None:
        super().__init__(config)
        self.interval = config.fusion_interval
        self.last_level = config.fusion_last_level
        fusions = range(config.num_fusions)
        self.fusion_layers = nn.ModuleList(VisionLanguageFusion(config) for _ in fusions)
        self.label_layers = nn.ModuleList(LabelLayer(config.text_config) for _ in fusions)

    def forward(self, image: ImageFeatures, labels: LabelFeatures) -> tuple[Tensor, Tensor]:
        """Image tokens `[batch, tokens, dim]` and label states `[fusions, batch, labels,
        label_dim]`.
        """
        tokens = image.tokens
        language = labels.features.expand(tokens.shape[0], -1, -1)
        ignored = labels.ignored(tokens.shape[0])
        references = pixel_centres(image.shapes, image.valid_ratios)
        states = []
        for index, layer in enumerate(self.layers):
            if index % self.interval == 0:
                fusion = index // self.interval
                tokens, language = self._fuse(fusion, tokens, image, language, labels.absent)
                language = self.label_layers[fusion](language, ignored)
                states.append(language)
            tokens = layer(tokens, image.positions, references, image.padding, image.shapes)
        return tokens, torch.stack(states)

    def _fuse(
        self,
        fusion: int,
        tokens: Tensor,
        image: ImageFeatures,
        language: Tensor,
        absent: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        height, width = image.shapes[-1]
        start = tokens.shape[1] - height * width if self.last_level else 0
        positions = image.positions[:, start:]
        fused, language = self.fusion_layers[fusion](tokens[:, start:], positions, language, absent)
        return torch.cat((tokens[:, :start], fused), dim=1), language
