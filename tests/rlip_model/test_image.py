"""Resizing rule and normalisation of images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from rlip_model.image import MEAN, STD, enlarge, normalise, normalised, resized, to_pixel_values, to_pixels


@pytest.mark.parametrize(("size", "expected"), [
    ((640, 480), (1066, 800)), ((480, 640), (800, 1066)), ((500, 500), (800, 800)), ((1333, 800), (1333, 800)),
    ((2000, 500), (1332, 333)), ((500, 2000), (333, 1332)), ((5000, 1), (1333, 1)),
])  # fmt: skip
def test_shorter_side_800_longer_at_most_1333(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(*size) == expected


def test_pixels_equal_torchvision() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (123, 77, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    width, height = resized(77, 123, 64, 90)
    expected = functional.normalize(functional.to_tensor(functional.resize(image, [height, width])), MEAN, STD)
    torch.testing.assert_close(to_pixel_values(image, 64, 90), expected, atol=1e-6, rtol=0)


SIDES = st.one_of(st.integers(1, 70), st.integers(1, 900))
ADDED = st.one_of(st.integers(0, 3), SIDES)


@settings(deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(ADDED, ADDED), st.integers(0, 2**32 - 1))
def test_devices_enlarge_as_pillow_does_bit_for_bit(old: tuple[int, int], more: tuple[int, int], seed: int) -> None:
    new = (old[0] + more[0], old[1] + more[1])
    noise = np.random.default_rng(seed).integers(0, 256, (old[1], old[0], 3), dtype=np.uint8)
    noise[noise > 127] = 255  # as much white as noise
    image = Image.fromarray(noise)
    expected = np.asarray(image.resize(new, Image.Resampling.BILINEAR))
    whole = torch.from_numpy(np.asarray(image.convert("RGBX")).copy())
    assert np.array_equal(enlarge(whole, new)[..., :3].numpy(), expected)
    assert np.array_equal(enlarge(to_pixels(image, new), new)[..., :3].numpy(), expected)


def test_images_larger_than_what_the_network_reads_are_made_smaller_before_they_are_copied() -> None:
    assert to_pixels(Image.new("RGB", (64, 48)), (106, 80)).shape == (48, 64, 4)
    large = to_pixels(Image.new("RGB", (640, 480)), (106, 80))
    assert large.shape == (80, 106, 4)
    with pytest.raises(ValueError, match="106×80 pixels are not smaller than 105×80"):
        enlarge(large, (105, 80))


def test_pixels_are_normalised_bit_for_bit() -> None:
    """All values of all channels, as divided and subtracted in float32."""
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_pixels(Image.fromarray(values), (16, 16))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels[..., :3].numpy(), values)
    mean, deviation = np.float32(MEAN), np.float32(STD)
    expected = (values.astype(np.float32) / np.float32(255) - mean) / deviation
    assert np.array_equal(normalise(pixels).permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(normalised(Image.fromarray(values)).permute(1, 2, 0).numpy(), expected)
