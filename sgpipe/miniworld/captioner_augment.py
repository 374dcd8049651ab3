"""Varying the captioner's pictures: mirrored, moved, stretched and tinted, with what their patches show.

What is true of a scene stays so. Without this, twenty thousand pictures are learned by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Parts of the picture's own width and height that are shown; more than all shows its border stretched.
_SHOWN = (0.95, 1.2)
_MOVED = 0.06  # at most so far, in half widths
_TINT = 0.15


@dataclass(frozen=True)
class Views:
    """How each picture of a batch is looked at.

    Attributes:
        windows: [pictures, 2, 3], from places in the view to places in the picture, both from -1 to 1.
        tints: [pictures, 3], a factor per channel.
    """

    windows: Tensor
    tints: Tensor

    def pixels(self, pixels: Tensor) -> Tensor:
        """[pictures, 3, side, side] between 0 and 1, as seen."""
        seen = self._look(pixels, "bilinear", "border")
        return (seen * self.tints[:, :, None, None]).clamp(0, 1)

    def labels(self, labels: Tensor) -> Tensor:
        """[pictures, labels, grid, grid] of the patches that are seen; beyond the border there is nothing."""
        return self._look(labels, "nearest", "zeros")

    def _look(self, picture: Tensor, mode: str, padding: str) -> Tensor:
        places = F.affine_grid(self.windows, list(picture.shape), align_corners=False)
        return F.grid_sample(picture, places, mode=mode, padding_mode=padding, align_corners=False)


def plain_views(count: int) -> Views:
    """The pictures as they are."""
    return Views(torch.eye(2, 3).expand(count, 2, 3).contiguous(), torch.ones(count, 3))


def random_views(count: int, generator: Generator) -> Views:
    """Half of the pictures mirrored, all a little moved, stretched and tinted."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *size, generator=generator)

    mirrored = torch.rand(count, generator=generator) < 0.5
    scales = uniform(*_SHOWN, 2)
    scales[:, 0] *= torch.where(mirrored, -1.0, 1.0)
    windows = torch.cat([torch.diag_embed(scales), uniform(-_MOVED, _MOVED, 2, 1)], dim=2)
    return Views(windows, uniform(1 - _TINT, 1 + _TINT, 3))
