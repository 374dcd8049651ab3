"""Conversion and overlap of boxes (tensors, normalised)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert

SMALLEST_AREA = 1e-12  # share of the image; avoids division by zero for boxes without area


def to_corners(boxes: Tensor) -> Tensor:
    """Convert cxcywh boxes `[..., 4]` to xyxy `[..., 4]`."""
    return box_convert(boxes, "cxcywh", "xyxy")


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al., CVPR 2019), from -1 (far apart) to 1
    (equal).

    Unlike torchvision's function, which takes two flat lists, it broadcasts over a whole batch of
    queries and targets.

    Args:
        first, second: normalised xyxy, broadcastable to `[..., 4]`.

    Returns:
        `[...]`.
    """
    intersection = _area(
        torch.max(first[..., :2], second[..., :2]), torch.min(first[..., 2:], second[..., 2:])
    )
    hull = _area(
        torch.min(first[..., :2], second[..., :2]), torch.max(first[..., 2:], second[..., 2:])
    )
    union = (
        _area(first[..., :2], first[..., 2:])
        + _area(second[..., :2], second[..., 2:])
        - intersection
    )
    overlap = intersection / union.clamp(min=SMALLEST_AREA)
    return overlap - (hull - union) / hull.clamp(min=SMALLEST_AREA)


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    sides = (bottom_right - top_left).clamp(min=0)
    # On a GPU the gradient of `prod` lets the host wait; on a CPU it rounds otherwise than that of
    # a product.
    return sides[..., 0] * sides[..., 1] if sides.is_cuda else sides.prod(-1)
