"""The ALIF encoder: when it fuses, what it touches, and where tokens look from."""

import pytest
import torch

from rlip_model import encoder
from rlip_model.encoder import pixel_centres
from rlip_model.model import RTagger
from rlip_model.text import LabelFeatures


def test_fusions_alternate_with_image_layers(tagger: RTagger) -> None:
    order: list[str] = []
    for name, module in tagger.encoder.named_modules():
        if name.count(".") == 1:
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    image = tagger.encode_image(torch.randn(1, 3, 64, 64))
    tagger.fuse(image, tagger.encode_labels(["dog", "no objects"], ["riding"]))
    expected = []
    for fusion in range(3):
        expected += [f"fusion_layers.{fusion}", f"label_layers.{fusion}"]
        expected += [f"layers.{2 * fusion}", f"layers.{2 * fusion + 1}"]
    assert order == expected


def test_only_the_coarsest_level_is_fused(tagger: RTagger) -> None:
    image = tagger.encode_image(torch.randn(1, 3, 64, 96))
    labels = torch.randn(1, 4, 64)
    height, width = image.shapes[-1]
    fused, _ = tagger.encoder._fuse(0, image.tokens, image, labels, None)
    assert torch.equal(fused[:, : -height * width], image.tokens[:, : -height * width])
    assert not torch.equal(fused[:, -height * width :], image.tokens[:, -height * width :])
    tagger.encoder.last_level = False
    fused, _ = tagger.encoder._fuse(0, image.tokens, image, labels, None)
    assert not (fused == image.tokens).all(-1).any()


def test_labels_are_fused_even_where_padded_or_masked(tagger: RTagger) -> None:
    """The published masks of padding and labels have no effect in the fusion; only label layers mask."""
    image = tagger.encode_image(torch.randn(1, 3, 64, 64))
    labels = torch.randn(1, 4, 64)
    masked = LabelFeatures(labels, 2, torch.tensor([[False, False, True, False]]))
    _, states = tagger.encoder(image, LabelFeatures(labels, 2))
    _, with_mask = tagger.encoder(image, masked)
    assert states.shape == (3, 1, 4, 64)
    assert not torch.allclose(states, with_mask)


def test_pixel_centres_by_hand() -> None:
    ratios = torch.tensor([[[0.5, 1.0], [0.75, 0.8]]])
    centres = pixel_centres([(2, 4), (1, 2)], ratios)
    assert centres.shape == (1, 10, 2, 2)
    x, y = (2 + 0.5) / 4 / 0.5, (1 + 0.5) / 2 / 1.0
    torch.testing.assert_close(centres[0, 4 + 2, 1], torch.tensor([x * 0.75, y * 0.8]))
    torch.testing.assert_close(centres[0, 4 + 2, 0], torch.tensor([x * 0.5, y]))


def test_a_layer_in_parts_equals_the_whole(tagger: RTagger, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tagger.encode_image(torch.randn(2, 3, 64, 96))
    references = pixel_centres(image.shapes, image.valid_ratios)
    inputs = (image.tokens, image.positions, references, image.padding, image.shapes)
    layer = tagger.encoder.layers[0]
    whole = layer(*inputs)
    monkeypatch.setattr(encoder, "TOKENS_PER_PART", 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(*inputs), whole.detach())
