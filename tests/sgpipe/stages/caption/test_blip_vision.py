import copy

import pytest
import torch
from transformers import BlipForConditionalGeneration

from sgpipe.stages.caption.blip import fuse_vision_attention
from tests.factories import make_blip


@pytest.mark.parametrize(("vision_width", "heads", "image_size"), [(48, 4, 32), (32, 2, 40)])
@torch.no_grad()
def test_fused_attention_gives_the_same_states(tmp_path, vision_width, heads, image_size):
    make_blip(tmp_path, vision_width=vision_width, heads=heads, image_size=image_size)
    reference = BlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    fused = copy.deepcopy(reference)
    fuse_vision_attention(fused)
    pixels = torch.randn(3, 3, image_size, image_size, generator=torch.manual_seed(0))
    expected = reference.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(fused.vision_model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
