"""The networks as wholes: configurations, groups, label lists, noise, gradients, half precision."""

from typing import Any

import pytest
import torch

from rlip_model import encoder
from rlip_model.checkpoint import build_model
from rlip_model.config import Fusion, ParSeDAConfig, ParSeDConfig, RLIPConfig, RTaggerConfig
from rlip_model.decoder import AnchorPositions
from rlip_model.encoder import pixel_centres
from rlip_model.fusion import Gate
from rlip_model.model import ParSeDA, RLIPModel, RTagger
from rlip_model.noise import TorchNoise, initial_seed, perturb_boxes, perturb_labels, torch_seed
from rlip_model.presets import preset, tiny_sizes
from rlip_model.text import LabelFeatures, pad_labels
from tests.rlip_model.conftest import random_pairs, tiny_network

OBJECTS = ["person", "dog", "horse", "no objects"]

# the published R-Tagger holds ParSeD's queries, which it never reads
UNREAD_QUERIES = 200 * 3 * 256


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["alif", "after_decoding", "none"])
def test_a_batch_of_images_with_label_lists_of_different_lengths(fusion: Fusion) -> None:
    """Nothing attends to what pads labels and groups: every image gets the scores that it gets
    alone.
    """
    model = tiny_network(RTagger, fusion)
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, 64, 96, generator=draw)
    lists = [
        LabelFeatures(torch.randn(1, count, 64, generator=draw), len(OBJECTS))
        for count in (5, 9, 6)
    ]
    groups = [random_pairs(count, seed=count) for count in (3, 5, 1, 4)]
    owners = [1, 0, 1, 2]
    images = model.encode_image(pixels)
    scores = model.score_pairs(model.fuse(images, pad_labels(lists)), groups, owners)
    for group, owner, of_group in zip(groups, owners, scores, strict=True):
        memory = model.fuse(model.encode_image(pixels[owner : owner + 1]), lists[owner])
        [alone] = model.score_pairs(memory, [group])
        torch.testing.assert_close(
            of_group[: len(group), : alone.shape[1]], alone, atol=1e-5, rtol=1e-5
        )
    pairs = model.score_pairs(
        model.fuse(images.of([2, 0]), pad_labels([lists[2], lists[0]])), groups[1:], [1, 1, 0]
    )
    torch.testing.assert_close(pairs[0, :5, :1], scores[1, :5, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gating", ["VXAc", "SDFXAc", "MBF"])
def test_anchor_positions_and_gates_start_as_in_the_published_transformer(
    monkeypatch: pytest.MonkeyPatch, gating: str
) -> None:
    """Xavier: every weight is uniform up to sqrt(6 / (inputs + outputs)). All others stay those of
    a seed.
    """

    def built() -> ParSeDA:
        torch.manual_seed(0)
        return ParSeDA(ParSeDAConfig(**{**tiny_sizes(20), "gating": gating}))

    network = built()
    modules = [
        (prefix, part)
        for prefix, part in network.named_modules()
        if isinstance(part, AnchorPositions | Gate)
    ]
    parameters = [named for prefix, module in modules for named in module.named_parameters(prefix)]
    changed = {name: weight.detach() for name, weight in parameters if weight.dim() > 1}
    for weight in changed.values():
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.numel() <= 500 or float(weight.std()) == pytest.approx(
            bound / 3**0.5, rel=0.1
        )
    assert {name.split(".")[0] for name in changed} >= {"entity_decoder", "relation_decoder"}
    monkeypatch.setattr(RLIPModel, "_initialise_as_published", lambda self: None)
    earlier = built().state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, earlier[name]) == (name not in changed), name


def test_a_layer_in_parts_equals_the_whole(
    tagger: RTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tagger.encode_image(torch.randn(2, 3, 64, 96))
    references = pixel_centres(image.shapes, image.valid_ratios)
    inputs = (image.tokens, image.positions, references, image.padding, image.shapes)
    layer = tagger.encoder.layers[0]
    expected = layer(*inputs)
    monkeypatch.setattr(encoder, "TOKENS_PER_PART", 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(*inputs), expected.detach())


def test_boxes_move_by_half_and_grow_by_all_of_the_scale_and_labels_are_replaced_with_the_probability() -> (
    None
):
    noise = TorchNoise(torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.1]]).expand(5000, 4)
    moved = (perturb_boxes(boxes, 0.4, noise) - boxes).abs().amax(0)
    torch.testing.assert_close(moved, torch.tensor([0.04, 0.02, 0.08, 0.04]), rtol=0.01, atol=0)
    labels = torch.full((10_000,), 7)
    replaced = perturb_labels(labels, 0.3, 5, noise)
    assert abs(float((replaced != 7).float().mean()) - 0.3) < 0.02
    assert set(replaced[replaced != 7].tolist()) == {0, 1, 2, 3, 4}
    assert labels.eq(7).all()


def test_large_seeds_give_numbers_of_their_own() -> None:
    """On a CPU, torch's generator looks at 32 bits only: 2**32 would be 0."""
    seeds = (0, 1, 42, 20240131, 2**31, 2**32, 2**32 + 1, 2**32 + 42, 2**63 - 1, 2**63)
    drawn = []
    for seed in seeds:
        numbers = (
            initial_seed(seed),
            torch_seed(seed),
            torch_seed(seed, 1),
            torch_seed(seed, 1, 1),
        )
        drawn += [
            tuple(torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist())
            for number in numbers
        ]
    assert len(set(drawn)) == len(drawn) - 1  # 0 starts and steps with 0, as ever


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (RTaggerConfig, {"gating": "open"}, "gating is 'open', expected one of GLIP, VXAc"),
        (RTaggerConfig, {"backbone": "vgg"}, "backbone is 'vgg', expected one of resnet50, swin"),
        (RTaggerConfig, {"num_queries": 7}, "num_queries 7 must be even"),
        (RTaggerConfig, {"hidden_dim": 100}, "hidden_dim 100"),
        (RTaggerConfig, {"conv_width": 12}, "conv_width 12 must be a multiple of 8"),
        (RTaggerConfig, {"dense_head": True}, "an R-Tagger gets its boxes"),
        (
            RTaggerConfig,
            {"decoder_layers": 4},
            "3 label states, expected one for each of the 4 decoder layers",
        ),
        (
            ParSeDConfig,
            {"dense_head": True, "proposals": 20},
            "only ParSeDA takes its queries from boxes",
        ),
        (ParSeDAConfig, {"proposals": 20}, "set dense_head: true"),
        (ParSeDAConfig, {"dense_head": True, "proposals": 10}, "too few pairs for num_queries 200"),
    ],
)
def test_sizes_that_contradict_each_other(
    kind: type[RLIPConfig], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**sizes)


@pytest.mark.parametrize(("kind", "backbone", "published"), [
    ("parseda", "resnet50", 213_700_624), ("parseda", "swin_tiny", 214_243_658), ("parsed", "resnet50", 206_816_500),
    ("parsed", "swin_tiny", 213_663_278), ("tagger", "resnet50", 206_642_164 - UNREAD_QUERIES),
    ("tagger", "swin_tiny", 213_715_758 - UNREAD_QUERIES), ("rlipv1", "resnet50", 171_154_420),
])  # fmt: skip
def test_as_many_parameters_as_published(kind: str, backbone: str, published: int) -> None:
    with torch.device("meta"):
        network = build_model(preset(kind, backbone))
    assert sum(parameter.numel() for parameter in network.parameters()) == published
