"""Convert images to network input as in evaluation: resized by their shorter side, normalised, not augmented."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def resized(width: int, height: int, short_side: int = 800, long_side: int = 1333) -> tuple[int, int]:
    """The resized (width, height): the shorter side is `short_side`, or less if the longer would exceed `long_side`.

    The longer side is rounded down, as in DETR. Every side is at least one pixel.
    """
    shorter, longer = min(width, height), max(width, height)
    if longer / shorter * short_side > long_side:
        short_side = round(long_side * shorter / longer)
        if not short_side:
            return (1, long_side) if width < height else (long_side, 1)
    if width < height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def normalised(image: Image.Image) -> Tensor:
    """`[3, height, width]`, float32, normalised by the mean and standard deviation of the backbones' training.

    Args:
        image: RGB.
    """
    mean, deviation = (np.array(value, dtype=np.float32)[:, None, None] for value in (MEAN, STD))
    pixels = np.array(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= 255  # in place, which takes a quarter of the time for an image of 800 pixels
    pixels -= mean
    pixels /= deviation
    return torch.from_numpy(pixels)


def to_pixel_values(image: Image.Image, short_side: int = 800, long_side: int = 1333) -> Tensor:
    """`[3, height, width]`, float32, resized bilinearly (with antialiasing) and normalised.

    Args:
        image: RGB.
    """
    size = resized(*image.size, short_side, long_side)
    return normalised(image.resize(size, Image.Resampling.BILINEAR))
