"""What prompts share is computed once, in every kind of language model that sees images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from sgpipe.stages.caption.shared_prefix import (
    begin,
    common_length,
    end,
    full_prompts,
    share_prompts,
)

IMAGE = 290  # the token of a part of the image
TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PROMPTS = [
    [2, 5, 6, IMAGE, IMAGE, IMAGE, IMAGE, *[7, 8, 9, 10] * 6, 11, *[last] * (last % 5 + 1), 12, 13]
    for last in range(20, 32)
]


def gemma() -> tuple[Any, dict[str, Tensor]]:
    """Tokens of the image see each other, and half of the layers only what is near."""
    layers = ["sliding_attention", "full_attention"] * 2
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**TEXT, "sliding_window": 16, "layer_types": layers},
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return config, {"pixel_values": torch.randn(1, 3, 32, 32)}


def llava() -> tuple[Any, dict[str, Tensor]]:
    config = AutoConfig.for_model(
        "llava",
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "patch_size": 16, "model_type": "clip_vision_model"},
        image_token_index=IMAGE,
    )
    return config, {"pixel_values": torch.randn(1, 3, 32, 32)}


def qwen() -> tuple[Any, dict[str, Tensor]]:
    """Half of the layers have a recurrent state."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    linear = {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
    linear |= {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
    text = {**TEXT, **linear, "layer_types": ["linear_attention", "full_attention"] * 2}
    vision = {"depth": 2, "num_heads": 4, "num_position_embeddings": 64, "out_hidden_size": 32}
    config = AutoConfig.for_model(
        "qwen3_5",
        text_config={**text, "rope_parameters": {**rope, "mrope_section": [1, 1, 0]}},
        vision_config={**vision, "hidden_size": 32, "intermediate_size": 64},
        image_token_id=IMAGE,
    )
    grid = torch.tensor([[1, 4, 4]])
    return config, {"pixel_values": torch.randn(16, 1536), "image_grid_thw": grid}


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Tensor]]]] = {
    "gemma3": gemma,
    "llava": llava,
    "qwen3_5": qwen,
}
KINDS = {"gemma3": "token_type_ids", "qwen3_5": "mm_token_type_ids"}


def inputs_of(family: str, prompt: list[int], image: dict[str, Tensor]) -> dict[str, Tensor]:
    tokens = torch.tensor([prompt])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **image}
    if family in KINDS:
        inputs[KINDS[family]] = (tokens == IMAGE).long()
    return inputs


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_scores_are_those_of_whole_prompts(family: str) -> None:
    torch.manual_seed(0)
    config, image = FAMILIES[family]()
    model = AutoModelForImageTextToText.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.7 * weight[0].numel() ** -0.5)
    prompts = share_prompts(inputs_of(family, PROMPTS[0], image), PROMPTS)
    begun = begin(model, prompts.prefix)
    together = torch.cat(
        [end(model, begun, prompts.endings[:5]), end(model, begun, prompts.endings[5:])]
    )
    alone = [model(**inputs_of(family, prompt, image)).logits[0, -1] for prompt in PROMPTS]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=2e-5)
    assert (together[0] - together[1]).abs().max() > 0.05, "endings count"


def test_what_rows_begin_with() -> None:
    assert common_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 2
    assert common_length([[1, 2], [1, 2]]) == 2
    assert common_length([[3], [1, 2]]) == 0


def test_the_image_is_in_what_prompts_share() -> None:
    first = [7, 9, 9, 9, 1, 2]  # 9 is the image
    assert full_prompts(first, [[7, 9, 1, 2], [7, 9, 1, 5, 6]]) == [first, [7, 9, 9, 9, 1, 5, 6]]
    with pytest.raises(ValueError, match="otherwise than its tokenizer"):
        full_prompts(first, [[7, 9, 4], [7, 9, 5]])
