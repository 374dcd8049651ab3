"""Image tokens: levels, masks, frozen parameters, folded norms, windows."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet, resnet50
from torchvision.ops import FrozenBatchNorm2d

from rlip_model.backbone import ResNet50
from rlip_model.model import RTagger
from rlip_model.official import renamed
from rlip_model.swin import Swin, attend


def test_padding_is_known_to_every_level(tagger: RTagger) -> None:
    padding = torch.zeros(1, 128, 128, dtype=torch.bool)
    padding[:, 64:] = True
    padding[:, :, 96:] = True
    image = tagger.encode_image(torch.randn(1, 3, 128, 128), padding)
    torch.testing.assert_close(image.valid_ratios[0, :3], torch.tensor([[0.75, 0.5]] * 3))
    start = 0
    for height, width in image.shapes[:3]:
        level = image.padding[0, start : start + height * width].view(height, width)
        assert not level[: height // 2, : 3 * width // 4].any()
        assert level[height // 2 :].all()
        assert level[:, 3 * width // 4 :].all()
        start += height * width


@pytest.mark.parametrize(("model", "keys"), [("tagger_vxac", "keys_swint"), ("parsed", "keys_r50")])
def test_frozen_parameters_are_those_of_the_published_training(oracle: Path, model: str, keys: str) -> None:
    info = json.loads((oracle / "golden" / "model" / model / f"{keys}_info.json").read_text())
    expected = {renamed(key, 3).removeprefix("image_encoder.backbone.") for key in info["params_requires_grad_false"]}
    backbone = ResNet50() if keys.endswith("r50") else Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2)
    assert {name for name, value in backbone.named_parameters() if not value.requires_grad} == expected


def test_folded_batch_norms_follow_the_weights() -> None:
    """As torchvision's own network, in value and gradient, also after its convolutions learned or were loaded."""
    resnet, plain = ResNet50().double(), resnet50(weights=None, norm_layer=FrozenBatchNorm2d).double()
    for name, value in resnet.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value) + 0.5)
    plain.load_state_dict(resnet.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(_learn(resnet, resnet(images)[2]), _learn(plain, _last_maps(plain, images)))
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
    query, key, value = (torch.randn(6, 2, 5, 4, generator=generator).requires_grad_() for _ in range(3))
    bias = torch.randn(windows, 2, 5, 5, generator=generator)
    frozen = torch.autograd.grad(attend(query, key, value, bias).square().sum(), (query, key, value))
    plain = attend(query, key, value, bias)
    torch.testing.assert_close(attend(query, key, value, bias.requires_grad_()), plain)
    *trained, of_bias = torch.autograd.grad(attend(query, key, value, bias).square().sum(), (query, key, value, bias))
    torch.testing.assert_close(tuple(trained), frozen)
    full = bias.detach().repeat(6 // windows, 1, 1, 1).requires_grad_()
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, full).square().sum()
    (expected_gradient,) = torch.autograd.grad(expected, full)
    torch.testing.assert_close(of_bias, expected_gradient.unflatten(0, (-1, windows)).sum(0))


def test_drop_path_grows_from_zero_to_its_rate() -> None:
    swin = Swin(12, (2, 2, 6, 2), (3, 6, 12, 24), window=7, drop_path=0.2)
    rates = [block.drop_path.p for stage in swin.layers for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 12).tolist())
