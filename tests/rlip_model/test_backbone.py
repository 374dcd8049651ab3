"""Images and their tokens: resizing and normalisation, folded norms, windows."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet, resnet50
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import functional

from rlip_model.backbone import ResNet50
from rlip_model.image import (
    MEAN,
    STD,
    enlarge,
    normalise,
    normalised,
    resized,
    to_pixel_values,
    to_pixels,
)
from rlip_model.official import renamed
from rlip_model.swin import Swin, attend

SIDES = st.one_of(st.integers(1, 70), st.integers(1, 900))
ADDED = st.one_of(st.integers(0, 3), SIDES)


def test_frozen_parameters_are_those_of_the_published_training(oracle: Path) -> None:
    swin = Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2)
    for name, network in (("tagger_vxac/keys_swint", swin), ("parsed/keys_r50", ResNet50())):
        info = json.loads((oracle / f"golden/model/{name}_info.json").read_text())
        keys = {
            renamed(key, 3).removeprefix("image_encoder.backbone.")
            for key in info["params_requires_grad_false"]
        }
        assert {key for key, value in network.named_parameters() if not value.requires_grad} == keys


@pytest.mark.slow
def test_folded_batch_norms_follow_the_weights() -> None:
    """As torchvision's own network, in value and gradient, also after its convolutions learned or
    were loaded.
    """
    resnet = ResNet50().double()
    plain = resnet50(weights=None, norm_layer=FrozenBatchNorm2d).double()
    for name, value in resnet.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value) + 0.5)
    plain.load_state_dict(resnet.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(
            _learn(resnet, resnet(images)[2]), _learn(plain, _last_maps(plain, images))
        )
    other = deepcopy(resnet)
    assert torch.equal(other(images)[0], resnet(images)[0])
    other.load_state_dict(ResNet50().state_dict())
    assert not torch.equal(other(images)[0], resnet(images)[0])
    assert resnet.to(torch.bfloat16)(images.bfloat16())[0].dtype == torch.bfloat16


def _learn(network: ResNet, maps: torch.Tensor) -> torch.Tensor:
    """A large step of two convolutions; returns the loss and the gradients."""
    weights = [network.layer2[0].conv2.weight, network.layer4[2].conv3.weight]
    loss = maps.square().mean()
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.1 * weight.norm() * gradient / gradient.norm()
    return torch.cat([loss.detach().view(1), *(gradient.flatten() for gradient in gradients)])


def _last_maps(network: ResNet, images: torch.Tensor) -> torch.Tensor:
    stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(stem))))


@pytest.mark.parametrize("windows", [1, 3])
def test_a_trained_bias_changes_nothing_but_the_way(windows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(6, 2, 5, 4, generator=generator).requires_grad_() for _ in range(3)
    )
    bias = torch.randn(windows, 2, 5, 5, generator=generator)
    frozen = torch.autograd.grad(
        attend(query, key, value, bias).square().sum(), (query, key, value)
    )
    plain = attend(query, key, value, bias)
    torch.testing.assert_close(attend(query, key, value, bias.requires_grad_()), plain)
    *trained, of_bias = torch.autograd.grad(
        attend(query, key, value, bias).square().sum(), (query, key, value, bias)
    )
    torch.testing.assert_close(tuple(trained), frozen)
    full = bias.detach().repeat(6 // windows, 1, 1, 1).requires_grad_()
    expected = (
        torch.nn.functional.scaled_dot_product_attention(query, key, value, full).square().sum()
    )
    (expected_gradient,) = torch.autograd.grad(expected, full)
    torch.testing.assert_close(of_bias, expected_gradient.unflatten(0, (-1, windows)).sum(0))


def test_drop_path_grows_from_zero_to_its_rate() -> None:
    swin = Swin(12, (2, 2, 6, 2), (3, 6, 12, 24), window=7, drop_path=0.2)
    rates = [block.drop_path.p for stage in swin.layers for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 12).tolist())


@pytest.mark.parametrize(("size", "expected"), [
    ((640, 480), (1066, 800)), ((480, 640), (800, 1066)), ((500, 500), (800, 800)), ((1333, 800), (1333, 800)),
    ((2000, 500), (1332, 333)), ((500, 2000), (333, 1332)), ((5000, 1), (1333, 1)),
])  # fmt: skip
def test_shorter_side_800_longer_at_most_1333(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized(*size) == expected


def test_pixels_equal_torchvision() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (123, 77, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    width, height = resized(77, 123, 64, 90)
    expected = functional.normalize(
        functional.to_tensor(functional.resize(image, [height, width])), MEAN, STD
    )
    torch.testing.assert_close(to_pixel_values(image, 64, 90), expected, atol=1e-6, rtol=0)


@settings(deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(ADDED, ADDED), st.integers(0, 2**32 - 1))
def test_devices_enlarge_as_pillow_does_bit_for_bit(
    old: tuple[int, int], more: tuple[int, int], seed: int
) -> None:
    new = (old[0] + more[0], old[1] + more[1])
    noise = np.random.default_rng(seed).integers(0, 256, (old[1], old[0], 3), dtype=np.uint8)
    noise[noise > 127] = 255  # as much white as noise
    image = Image.fromarray(noise)
    expected = np.asarray(image.resize(new, Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.asarray(image.convert("RGBX")).copy())
    assert np.array_equal(enlarge(pixels, new)[..., :3].numpy(), expected)
    assert np.array_equal(enlarge(to_pixels(image, new), new)[..., :3].numpy(), expected)


def test_images_larger_than_what_the_network_reads_are_made_smaller_before_they_are_copied() -> (
    None
):
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
    mean = np.float32(MEAN)
    deviation = np.float32(STD)
    expected = (values.astype(np.float32) / np.float32(255) - mean) / deviation
    assert np.array_equal(normalise(pixels).permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(normalised(Image.fromarray(values)).permute(1, 2, 0).numpy(), expected)
