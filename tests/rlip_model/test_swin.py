"""Swin: windows, shifts and merging, against brute force and against torchvision's classifier."""

from itertools import pairwise

import pytest
import torch
from torchvision.models.swin_transformer import SwinTransformer

from rlip_model.swin import Swin, attend, relative_position_index


@pytest.mark.parametrize("windows", [1, 3])
def test_a_trained_bias_changes_nothing_but_the_way(windows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(6, 2, 5, 4, generator=generator).requires_grad_() for _ in range(3))
    bias = torch.randn(windows, 2, 5, 5, generator=generator)
    frozen = torch.autograd.grad(attend(query, key, value, bias).square().sum(), (query, key, value))
    torch.testing.assert_close(
        attend(query, key, value, bias.requires_grad_()), attend(query, key, value, bias.detach())
    )
    *trained, of_bias = torch.autograd.grad(attend(query, key, value, bias).square().sum(), (query, key, value, bias))
    torch.testing.assert_close(tuple(trained), frozen)
    full = bias.detach().repeat(6 // windows, 1, 1, 1).requires_grad_()
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, full).square().sum()
    (expected_gradient,) = torch.autograd.grad(expected, full)
    torch.testing.assert_close(of_bias, expected_gradient.unflatten(0, (-1, windows)).sum(0))


@pytest.mark.parametrize("size", [(32, 32), (61, 83), (9, 200)])
def test_maps_have_strides_8_16_32_for_any_size(size: tuple[int, int]) -> None:
    swin = Swin(12, (1, 1, 2, 1), (3, 6, 12, 24), window=7, drop_path=0.1).eval()
    maps = swin(torch.randn(2, 3, *size))
    for stride, channels, level in zip((8, 16, 32), (24, 48, 96), maps, strict=True):
        assert level.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_equals_torchvision() -> None:
    torch.manual_seed(0)
    ours = Swin(24, (1, 1, 2, 1), (3, 6, 12, 24), window=7, drop_path=0.0).eval()
    theirs = SwinTransformer(
        [4, 4], 24, [1, 1, 2, 1], [3, 6, 12, 24], window_size=[7, 7], stochastic_depth_prob=0.0
    ).eval()
    ours.patch_embed.load_state_dict(
        {f"{ours_}.{kind}": getattr(theirs.features[0][index], kind) for ours_, index, kind in PATCH}
    )
    for stage in range(4):
        for block in range(len(ours.layers[stage].blocks)):
            state = theirs.features[2 * stage + 1][block].state_dict()
            renamed = {key.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2"): state[key] for key in state}
            renamed["attn.relative_position_index"] = relative_position_index(7)
            ours.layers[stage].blocks[block].load_state_dict(renamed)
        if stage < 3:
            ours.layers[stage].downsample.load_state_dict(theirs.features[2 * stage + 2].state_dict())
    images = torch.randn(1, 3, 260, 200)  # torchvision does not shift maps that fit one window
    expected = images
    for index, part in enumerate(theirs.features):
        expected = part(expected)
        if index in (3, 5, 7):
            level = (index - 3) // 2
            norm = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
            torch.testing.assert_close(ours(images)[level], norm.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


PATCH = [("proj", 0, "weight"), ("proj", 0, "bias"), ("norm", 2, "weight"), ("norm", 2, "bias")]


def test_drop_path_grows_from_zero_to_its_rate() -> None:
    swin = Swin(12, (2, 2, 6, 2), (3, 6, 12, 24), window=7, drop_path=0.2)
    rates = [block.drop_path.p for stage in swin.layers for block in stage.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert all(later - earlier == pytest.approx(0.2 / 11) for earlier, later in pairwise(rates))
