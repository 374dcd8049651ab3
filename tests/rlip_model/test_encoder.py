"""The ALIF encoder: when it fuses, what it touches, and where tokens look from."""

import pytest
import torch

from rlip_model import encoder
from rlip_model.encoder import pixel_centres
from rlip_model.model import RTagger
from rlip_model.text import LabelFeatures


def test_labels_are_fused_even_where_padded_or_masked(tagger: RTagger) -> None:
    """The published masks of padding and labels have no effect in the fusion; only label layers mask."""
    image = tagger.encode_image(torch.randn(1, 3, 64, 64))
    labels = torch.randn(1, 4, 64)
    masked = LabelFeatures(labels, 2, torch.tensor([[False, False, True, False]]))
    _, states = tagger.encoder(image, LabelFeatures(labels, 2))
    _, with_mask = tagger.encoder(image, masked)
    assert states.shape == (3, 1, 4, 64)
    assert not torch.allclose(states, with_mask)


def test_a_layer_in_parts_equals_the_whole(tagger: RTagger, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tagger.encode_image(torch.randn(2, 3, 64, 96))
    references = pixel_centres(image.shapes, image.valid_ratios)
    inputs = (image.tokens, image.positions, references, image.padding, image.shapes)
    layer = tagger.encoder.layers[0]
    whole = layer(*inputs)
    monkeypatch.setattr(encoder, "TOKENS_PER_PART", 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(*inputs), whole.detach())
