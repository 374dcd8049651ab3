"""Random augmentation of images and their targets, as in DETR: flip, colour jitter, crop, resize.

All randomness comes from the given generator, so the augmentation of an image depends on nothing
else.
"""

from __future__ import annotations

import random
import sys

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from rlip_model.image import normalised, resized
from rlip_model.settings import Augmentation
from rlip_model.training.annotations import SceneTargets

# Left, top, right, bottom, in pixels of the image that it is cropped from.
CropWindow = tuple[float, float, float, float]


def prepare(
    image: Image.Image,
    targets: SceneTargets,
    options: Augmentation | None,
    short_side: int,
    long_side: int,
    rng: random.Random,
    flip: bool = False,
) -> tuple[Tensor, SceneTargets]:
    """Prepare an image as network input, `[3, height, width]`, normalised, together with its
    targets.

    Args:
        image: RGB.
        options: augmentation settings; None to only resize the image, to `short_side` and at most
            `long_side`.
        flip: whether to flip the image, with or without `options`; drawn by the caller with
            probability `options.flip`, because the targets of flipped images must be made from
            `SceneAnnotation.with_flipped_texts`.
    """
    if flip:
        image, targets = flipped(image, targets)
    if options is not None:
        image, targets = augment(image, targets, options, rng)
    else:
        size = resized(*image.size, short_side, long_side)
        image, targets = cut(image, targets, (0, 0, *image.size), size)
    return normalised(image), targets


def augment(
    image: Image.Image, targets: SceneTargets, options: Augmentation, rng: random.Random
) -> tuple[Image.Image, SceneTargets]:
    """Augment an image and its targets, but for the flip. Objects outside the crop are dropped with
    their relations.

    Args:
        image: RGB.
    """
    image = jittered(image, options.jitter, rng)
    window: CropWindow = (0, 0, *image.size)
    shape = image.size
    if rng.random() < options.crop_probability:
        window, shape = random_window(*image.size, options, rng)
    size = resized(*shape, rng.choice(options.short_sides), options.long_side)
    return cut(image, targets, window, size)


def flipped(image: Image.Image, targets: SceneTargets) -> tuple[Image.Image, SceneTargets]:
    """Flip an image and its boxes horizontally."""
    return functional.horizontal_flip(image), targets.flipped(image.width)


def jittered(image: Image.Image, jitter: float, rng: random.Random) -> Image.Image:
    """Change brightness, contrast and saturation in random order, each by a factor of 1 plus or
    minus `jitter`.
    """
    if jitter == 0:
        return image
    changes = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    ]
    rng.shuffle(changes)
    for change in changes:
        image = change(image, rng.uniform(1 - jitter, 1 + jitter))
    return image


def random_window(
    width: int, height: int, options: Augmentation, rng: random.Random
) -> tuple[CropWindow, tuple[int, int]]:
    """Draw a crop of an image of this size, and the width and height to which it is resized.

    The crop is drawn from the image resized to one of `crop_short_sides`, but returned in pixels of
    the original image, so that pixels are resampled only once.
    """
    columns, rows = resized(width, height, rng.choice(options.crop_short_sides), sys.maxsize)
    shortest, longest = options.crop_range
    wide = rng.randint(min(shortest, columns), min(longest, columns))
    high = rng.randint(min(shortest, rows), min(longest, rows))
    left = rng.randint(0, columns - wide)
    top = rng.randint(0, rows - high)
    across = width / columns
    down = height / rows
    right = min((left + wide) * across, width)
    bottom = min((top + high) * down, height)
    return (left * across, top * down, right, bottom), (wide, high)


def cut(
    image: Image.Image, targets: SceneTargets, window: CropWindow, size: tuple[int, int]
) -> tuple[Image.Image, SceneTargets]:
    """Crop an image and its targets to a window, and resize them to `size` (width, height)."""
    left, top, right, bottom = window
    image = image.resize(size, Image.Resampling.BILINEAR, box=window)
    targets = targets.shifted(-left, -top).resized(
        size[0] / (right - left), size[1] / (bottom - top)
    )
    return image, targets.clamped(*size)
