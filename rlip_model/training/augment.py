"""Pictures and their targets changed at random, as DETR does: flipped, recoloured, cropped, resized.

All randomness comes from the generator that is given, so a picture's changes depend on nothing else.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from rlip_model.image import normalised, resized
from rlip_model.training.annotations import SceneTargets

CropWindow = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture that it is cut from


@dataclass(frozen=True)
class Augmentation:
    """Defaults: RLIPv2's, which are DETR's with other colours.

    Args:
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation are multiplied by up to this much more or less; 0: left alone.
        short_sides: lengths of the shorter side in the end, in pixels, one of which is drawn.
        long_side: of the longer side in the end, at most, in pixels.
        crop_probability: how often only a part of the picture is taken.
        crop_short_sides: lengths of the shorter side of the picture from which the part is cut.
        crop_range: least and greatest width and height of the part, cut from the picture of that size.

    Raises:
        ValueError: a setting that cannot work.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    flip: float = 0.5
    jitter: float = 0.4
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "crop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")
        for name in ("short_sides", "crop_short_sides"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} is {list(getattr(self, name))}, expected lengths of at least 1 pixel")
        if self.long_side < max(self.short_sides):
            raise ValueError(f"long_side {self.long_side} is less than {max(self.short_sides)}, one of short_sides")
        if not 1 <= self.crop_range[0] <= self.crop_range[1]:
            raise ValueError(f"crop_range is {list(self.crop_range)}, expected least and greatest length in pixels")


def prepare(
    image: Image.Image,
    targets: SceneTargets,
    options: Augmentation | None,
    short_side: int,
    long_side: int,
    rng: random.Random,
    flip: bool = False,
) -> tuple[Tensor, SceneTargets]:
    """A picture as the network takes it, `[3, height, width]`, normalised, and its targets.

    Args:
        image: RGB.
        options: of training, see `augment`; None to change only the size, to `short_side` and at most `long_side`.
        flip: in any case; see `augment`.
    """
    if options is not None:
        image, targets = augment(image, targets, options, rng, flip)
    else:
        image, targets = flipped(image, targets) if flip else (image, targets)
        size = resized(*image.size, short_side, long_side)
        image, targets = cut(image, targets, (0, 0, *image.size), size)
    return normalised(image), targets


def augment(
    image: Image.Image, targets: SceneTargets, options: Augmentation, rng: random.Random, flip: bool
) -> tuple[Image.Image, SceneTargets]:
    """A changed picture and the targets that fit it; objects out of sight are dropped with their relations.

    Args:
        image: RGB.
        flip: drawn before, with probability `options.flip`, as the targets of flipped pictures are made from
            `SceneAnnotation.with_flipped_texts`.
    """
    if flip:
        image, targets = flipped(image, targets)
    image = jittered(image, options.jitter, rng)
    window: CropWindow = (0, 0, *image.size)
    shape = image.size
    if rng.random() < options.crop_probability:
        window, shape = random_window(*image.size, options, rng)
    size = resized(*shape, rng.choice(options.short_sides), options.long_side)
    return cut(image, targets, window, size)


def flipped(image: Image.Image, targets: SceneTargets) -> tuple[Image.Image, SceneTargets]:
    """Picture and boxes in the mirror."""
    return functional.horizontal_flip(image), targets.flipped(image.width)


def jittered(image: Image.Image, jitter: float, rng: random.Random) -> Image.Image:
    """Brightness, contrast and saturation changed in random order, by factors up to `jitter` from 1."""
    if jitter == 0:
        return image
    changes = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    rng.shuffle(changes)
    for change in changes:
        image = change(image, rng.uniform(1 - jitter, 1 + jitter))
    return image


def random_window(
    width: int, height: int, options: Augmentation, rng: random.Random
) -> tuple[CropWindow, tuple[int, int]]:
    """A part of a picture of this size, and the width and height it is drawn with.

    It is drawn from the picture resized to one of `crop_short_sides`, and given in pixels of the picture as it is,
    so that the pixels need to be resampled only once.
    """
    columns, rows = resized(width, height, rng.choice(options.crop_short_sides), sys.maxsize)
    least, greatest = options.crop_range
    wide = rng.randint(min(least, columns), min(greatest, columns))
    high = rng.randint(min(least, rows), min(greatest, rows))
    left, top = rng.randint(0, columns - wide), rng.randint(0, rows - high)
    across, down = width / columns, height / rows
    right, bottom = min((left + wide) * across, width), min((top + high) * down, height)
    return (left * across, top * down, right, bottom), (wide, high)


def cut(
    image: Image.Image, targets: SceneTargets, window: CropWindow, size: tuple[int, int]
) -> tuple[Image.Image, SceneTargets]:
    """The part of a picture in the window, resized to `size` (width, height), and what of the targets is in it."""
    left, top, right, bottom = window
    image = image.resize(size, Image.Resampling.BILINEAR, box=window)
    targets = targets.shifted(-left, -top).resized(size[0] / (right - left), size[1] / (bottom - top))
    return image, targets.clamped(*size)
