"""Tiny random CLIP models in the forms that open_clip and transformers save."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from tests.factories import make_tokenizer

SIDE = 32
_WORDS = "a an and the person dog cat bench cup sitting on next to holding under riding near"


def make_clip(folder: Path) -> Path:
    """A CLIP model of transformers with its processor; the tokenizer has whole words."""
    tokenizer = make_tokenizer(folder, _WORDS, blip_tokens=False)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id}
    vision = {**sizes, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig.from_dict({"text_config": text, "vision_config": vision, "projection_dim": 16})
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


def make_open_clip(folder: Path) -> Path:
    """A CLIP model of open_clip."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": SIDE,
            "patch_size": 16,
            "width": 32,
            "layers": 1,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "layers": 1,
            "heads": 2,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    description = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder
