"""Build a tiny SigLIP for the miniworld, whose image encoder starts as the packaged captioner's,
and its settings.

SigLIP is a CLIP whose layers are those of BLIP's image encoder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (  # type: ignore[attr-defined]
    BertTokenizerFast,
    BlipForConditionalGeneration,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import PREDICATES
from sgpipe.recipe import Config, packaged_model

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ARTICLES = ("a", "an", "and")
_POSITIONS = 12  # [CLS], the words of a text and [SEP]
_SCALE = 20.0  # of cosines, at first


class JudgeConfig(Config):
    """The model, its data and its training.

    Attributes:
        pairs: of each image, how many ordered pairs of things it shows at most.
        related: share of related pairs among them, if there are enough.
    """

    seed: int = 0
    images: int = 8_000
    pairs: int = 5
    related: float = 0.6
    steps: int = 1_200
    batch_size: int = 32
    learning_rate: float = 0.001
    matrix_learning_rate: float = 0.005
    weight_decay: float = 0.02
    warmup: int = 50
    side: int = 84
    text_width: int = 64
    text_layers: int = 2
    heads: int = 4


def judge_words() -> tuple[str, ...]:
    """Every word of the texts of relations."""
    return tuple(
        dict.fromkeys(word for text in (*_ARTICLES, *KINDS, *PREDICATES) for word in text.split())
    )


def save_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Save a tokenizer of whole words in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(
        "\n".join([*_SPECIAL, *judge_words()]) + "\n", encoding="utf-8"
    )
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=_POSITIONS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_judge(config: JudgeConfig, tokenizer: PreTrainedTokenizerBase) -> SiglipModel:
    """A model with random weights, but for its image encoder."""
    captioner = BlipForConditionalGeneration.from_pretrained(packaged_model("captioner")).float()
    seen: Any = captioner.config.vision_config
    shared = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "patch_size",
    )
    vision = {name: getattr(seen, name) for name in (*shared, "hidden_act", "layer_norm_eps")}
    text = {
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "projection_size": seen.hidden_size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _POSITIONS,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = SiglipModel(
        SiglipConfig.from_dict(
            {"text_config": text, "vision_config": {**vision, "image_size": config.side}}
        )
    )
    _initialise(model)
    _copy_encoder(captioner, model)
    return model


@torch.no_grad()
def _initialise(model: SiglipModel) -> None:
    """Scale random weights by their number of inputs: SigLIP's own initialisation is meant for
    large models.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    encoder: Any = model.text_model.encoder
    for layer in encoder.layers:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            last.weight *= (2 * len(encoder.layers)) ** -0.5
    model.logit_scale.fill_(math.log(_SCALE))


@torch.no_grad()
def _copy_encoder(captioner: BlipForConditionalGeneration, model: SiglipModel) -> None:
    """Copy the image encoder of a BLIP, without its class token; positions are interpolated."""
    weights = dict(captioner.vision_model.state_dict())
    positions = weights.pop("embeddings.position_embedding")[:, 1:]
    del weights["embeddings.class_embedding"]
    before, side = (round(math.sqrt(count)) for count in (positions.shape[1], _patches(model)))
    grid = positions.transpose(1, 2).unflatten(2, (before, before))
    resized = F.interpolate(grid, (side, side), mode="bilinear", align_corners=True)
    copied = {"embeddings.position_embedding.weight": resized[0].flatten(1).T}
    for name, value in weights.items():
        if ".qkv." in name:
            for part, part_value in zip("qkv", value.chunk(3), strict=True):
                copied[name.replace("qkv", f"{part}_proj")] = part_value
        else:
            copied[name.replace("self_attn.projection", "self_attn.out_proj")] = value
    missing, unexpected = model.vision_model.load_state_dict(copied, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("head.") for name in missing), missing


def _patches(model: SiglipModel) -> int:
    embedding: Any = model.vision_model.embeddings.position_embedding
    return int(embedding.num_embeddings)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 `[images, 3, side, side]` as the processor normalises them."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels.float() / 255 - mean) / std


def save_judge(
    model: SiglipModel, config: JudgeConfig, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Save the weights in half precision, and the processor."""
    model.half().save_pretrained(folder)
    size = {"height": config.side, "width": config.side}
    images = SiglipImageProcessor(size=size, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD)
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
