"""Build a tiny BLIP for the miniworld (transformers' model and tokenizer with a small vocabulary),
and its recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn
from transformers import (  # type: ignore[attr-defined]
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    PreTrainedTokenizerBase,
)

from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.figures import PEOPLE
from sgpipe.miniworld.scene import NOUNS, WORDINGS, Fact, Scene, names_of
from sgpipe.recipe import Config
from sgpipe.stages.caption.captioner import PROMPT
from sgpipe.stages.score.scorer import with_article

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ARTICLES = ("a", "an", "another")
# Maximum length of a sequence: [DEC], the prompt, a caption and [SEP].
_POSITIONS = 32
_MIN_VARIANCE = 1e-2


def nouns_of(kind: str) -> tuple[str, ...]:
    """The canonical nouns of a class: one, or four for people."""
    return PEOPLE if kind == "person" else (NOUNS.get(kind, (kind,))[0],)


def canonical_caption(scene: Scene, fact: Fact) -> str:
    """The simplest caption of a fact: "a man riding a horse"; "a dog chasing another dog"."""
    subject, object_ = (names_of(scene.things[thing])[0] for thing in (fact.subject, fact.object))
    second = f"another {object_}" if subject == object_ else with_article(object_)
    return f"{with_article(subject)} {WORDINGS[fact.predicate].participle} {second}"


def caption_words() -> tuple[str, ...]:
    """Every word of the prompt and of the miniworld's canonical captions."""
    nouns = [noun for kind in KINDS for noun in nouns_of(kind)]
    wordings = [wording.participle for wording in WORDINGS.values()]
    phrases = [PROMPT, *_ARTICLES, *nouns, *wordings]
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def save_tokenizer(folder: Path, words: Iterable[str]) -> PreTrainedTokenizerBase:
    """Save BLIP's tokenizer in `folder`: BERT's WordPiece with whole words only, plus [DEC] and
    [ENC].
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*_SPECIAL, *words]) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.save_pretrained(folder)
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first tokens of every caption: [DEC] and the default prompt of `sgpipe generate`."""
    return [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]


def build_captioner(
    config: CaptionerModelConfig, tokenizer: PreTrainedTokenizerBase
) -> BlipForConditionalGeneration:
    """A model with random weights from PyTorch's default generator, and sinusoidal patch
    positions.
    """
    end = tokenizer.sep_token_id
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": config.text_width,
                "encoder_hidden_size": config.vision_width,
                "intermediate_size": 4 * config.text_width,
                "num_hidden_layers": config.text_layers,
                "num_attention_heads": config.heads,
                "max_position_embeddings": _POSITIONS,
                "bos_token_id": tokenizer.bos_token_id,
                "sep_token_id": end,
                "eos_token_id": end,
                "pad_token_id": tokenizer.pad_token_id,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            vision_config={
                "hidden_size": config.vision_width,
                "intermediate_size": 4 * config.vision_width,
                "num_hidden_layers": config.vision_layers,
                "num_attention_heads": config.heads,
                "image_size": config.image_size,
                "patch_size": config.patch_size,
            },
        )
    )
    _initialise(model)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = sine_positions(
            config.grid, config.vision_width
        )
    return model


def _initialise(model: BlipForConditionalGeneration) -> None:
    """Scale random weights by their number of inputs. BLIP's own initialisation, meant for a ViT,
    is nearly 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    vision_layers: Any = model.vision_model.encoder.layers
    for layer in vision_layers:
        # Keys equal queries, so that a patch first attends to similar patches, such as its
        # neighbours.
        query, key, _ = layer.self_attn.qkv.weight.data.chunk(3)
        key.copy_(query)
        # Keeps the scale of the residual stream over all layers.
        for last in (layer.self_attn.projection, layer.mlp.fc2):
            last.weight.data *= (2 * len(vision_layers)) ** -0.5


@torch.no_grad()
def whiten_patches(model: BlipForConditionalGeneration, pixels: torch.Tensor) -> None:
    """Initialise the patch embedding with the principal components of patches, scaled to equal
    variance.

    Most of an image is of uniform colour, so random filters respond to little else; these also
    respond to edges (Coates and Ng, 2012, section 3).

    Args:
        pixels: [images, 3, side, side], normalised.
    """
    embedding: Any = model.vision_model.embeddings.patch_embedding
    side = embedding.kernel_size[0]
    width = embedding.out_channels
    patches = F.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    variances, components = torch.linalg.eigh((patches - mean).T.cov())
    largest = slice(-min(width, len(variances)), None)
    filters = (components[:, largest] / (variances[largest] + _MIN_VARIANCE).sqrt()).T
    embedding.weight[: len(filters)] = filters.unflatten(1, (3, side, side))
    embedding.bias[: len(filters)] = -filters @ mean


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """[grid * grid, width] in row-major order: sines and cosines of the row, then of the column.

    Vaswani et al., 2017, section 3.5, in two dimensions, with wavelengths for a grid of a few
    patches.
    """
    wavelengths = 2.0 * grid ** torch.linspace(0, 1, width // 4)
    angles = 2 * torch.pi * torch.arange(grid)[:, None] / wavelengths
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def save_captioner(model: BlipForConditionalGeneration, folder: Path) -> None:
    """Save the weights in half precision with their configuration, next to the tokenizer in
    `folder`.
    """
    copy.deepcopy(model).half().save_pretrained(folder)
    vision_config: Any = model.config.vision_config
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    BlipImageProcessor(size=size).save_pretrained(folder)


class CaptionerModelConfig(Config):
    """The sizes of the BLIP model. Images are resized to squares of `image_size` pixels."""

    image_size: int = Field(112, ge=16)
    patch_size: int = Field(14, ge=4)
    vision_width: int = Field(128, ge=16, multiple_of=4)
    vision_layers: int = Field(4, ge=1)
    text_width: int = Field(128, ge=16)
    text_layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> CaptionerModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.vision_width % self.heads or self.text_width % self.heads:
            raise ValueError("vision_width and text_width must be multiples of heads")
        return self

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size


class CaptionerConfig(Config):
    """The captioner and its training. The first `dense_share` of the steps are without captions."""

    model: CaptionerModelConfig = CaptionerModelConfig()
    seed: int = Field(0, ge=0)
    train_images: int = Field(
        40_000, ge=1, description="first images of the train split, randomly mirrored"
    )
    steps: int = Field(12_000, ge=1)
    batch_size: int = Field(16, ge=1)
    dense_share: float = Field(0.3, ge=0, lt=1)
    dense_weight: float = Field(
        0.2, ge=0, description="weight of the dense loss relative to the caption loss"
    )
    learning_rate: float = Field(
        2e-3, gt=0, description="for embeddings, norms, biases and heads (AdamW)"
    )
    matrix_learning_rate: float = Field(
        0.01, gt=0, description="for the matrices of the layers (Muon)"
    )
    weight_decay: float = Field(0.02, ge=0, description="for the matrices of the layers")
    warmup: int = Field(100, ge=0, description="steps")
