"""Sine position encodings of image tokens, and arithmetic on normalised coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


def sine_features(coordinates: Tensor, features: int) -> Tensor:
    """Interleaved sines and cosines of `coordinates * 2 pi` at several wavelengths: `[...]` to
    `[..., features]`.
    """
    pair = torch.arange(features, device=coordinates.device, dtype=torch.float32) // 2
    wavelengths = TEMPERATURE ** (2 * pair / features)
    angles = coordinates.float().unsqueeze(-1) * (2 * math.pi) / wavelengths
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def image_positions(padding: Tensor, dim: int, offset: float) -> Tensor:
    """Encode the position of each pixel within the unpadded image.

    Args:
        padding: `[batch, height, width]`, True where the image is padding.
        dim: features of the result, the first half for y, the second for x.
        offset: subtracted from the 1-based pixel counts; 0.5 (pixel centres) with Swin, 0 with
            ResNet, as in the published training.

    Returns:
        `[batch, dim, height, width]`, float32.
    """
    valid = (~padding).float()
    rows = valid.cumsum(1)
    columns = valid.cumsum(2)
    rows = (rows - offset) / (rows[:, -1:, :] + 1e-6)
    columns = (columns - offset) / (columns[:, :, -1:] + 1e-6)
    features = torch.cat((sine_features(rows, dim // 2), sine_features(columns, dim // 2)), dim=-1)
    return features.permute(0, 3, 1, 2)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to single; leave other types unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def inverse_sigmoid(probability: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of a probability, finite at 0 and 1.

    In at least float32, as `eps` vanishes in half precision.
    """
    probability = at_least_float32(probability).clamp(0, 1)
    return (probability.clamp(min=eps) / (1 - probability).clamp(min=eps)).log()
