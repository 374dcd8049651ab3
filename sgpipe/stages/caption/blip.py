"""Load a BLIP captioning checkpoint (Li et al., ICML 2022): weights, tokenizer and image preparation.

A checkpoint is checked completely before the first image. The vision tower gets PyTorch's fused attention, which
transformers does not support for this model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sgpipe.errors import UserError
from sgpipe.stages.caption.checkpoint import UNREADABLE, check_architecture, first_line, options, quiet, read_config

ARCHITECTURE = "BlipForConditionalGeneration"


@dataclass(frozen=True)
class ImagePreparation:
    """Turns an image into the input of the vision tower: resized to a square, scaled and normalised."""

    size: int
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image of any size as float32 [3, size, size]."""
        return self.normalise(self.resize(image))

    def resize(self, image: Image.Image) -> Tensor:
        """The pixels of an RGB image of any size, uint8 [size, size, 3]: a quarter of the bytes to copy to a GPU."""
        return torch.from_numpy(np.array(image.resize((self.size, self.size), self.resample)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Resized pixels [..., size, size, 3] as float32 [..., 3, size, size], equally on all devices."""
        full, mean, std = _constants(self.mean, self.std, pixels.device)
        return ((pixels.movedim(-1, -3).float() / full - mean) / std).contiguous()


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors, because a GPU multiplies by the rounded inverse of a number."""
    full, *of_channels = (torch.tensor(value, device=device) for value in (255.0, mean, std))
    return full, of_channels[0].view(3, 1, 1), of_channels[1].view(3, 1, 1)


@dataclass(frozen=True)
class Blip:
    """A loaded captioner. `prepare` makes pixels, `encode` runs the vision tower, `text` decodes tokens."""

    model: BlipForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    prepare: ImagePreparation

    @property
    def text_config(self) -> Any:
        """The decoder's settings, a `BlipTextConfig`."""
        return self.model.config.text_config

    def to_device(self, images: Sequence[Tensor]) -> Tensor:
        """Images as by `prepare`, or only resized, on the model's device as float32 [images, 3, size, size]."""
        pixels = torch.stack([each.to(self.model.device, non_blocking=True) for each in images])
        return self.prepare.normalise(pixels) if pixels.dtype == torch.uint8 else pixels

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[images, 3, size, size] to image states [images, 1 + patches, vision width]."""
        vision_config: Any = self.model.config.vision_config
        return self.model.vision_model(
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            interpolate_pos_encoding=self.prepare.size != vision_config.image_size,
        ).last_hidden_state

    def prompt_ids(self, prompt: str) -> list[int]:
        """The decoder's first tokens: [DEC], then the prompt."""
        return [self.text_config.bos_token_id, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"]]

    def text(self, ids: list[int]) -> str:
        """The text of generated tokens, without special tokens and with single spaces."""
        known = [token for token in ids if token < len(self.tokenizer)]
        words = str(self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=True))
        # A word piece that continues the last word of the prompt keeps its "##" when decoded without that word.
        return " ".join(words.split()).removeprefix("##").strip()


def load_blip(source: str, image_size: int | None, device: torch.device, dtype: torch.dtype) -> Blip:
    """Load a captioner from a folder or a hub id (from the local cache when offline).

    `image_size` is the side in pixels; None is the side that the position embeddings were trained for. Other sizes
    interpolate them.

    Raises UserError: no such model, another kind of model, missing or damaged weights, a tokenizer that does not
    belong to the model, or an `image_size` that is not a multiple of the patch size.
    """
    with quiet():
        _check_config(source)
        model = _load_model(source)
        tokenizer = _load_tokenizer(source, model.config.text_config)
        prepare = _load_image_preparation(source, model.config.vision_config, image_size)
    fuse_vision_attention(model)
    torch.nn.Module.to(model, device=device, dtype=dtype)
    return Blip(model.eval(), tokenizer, prepare)


def check_captioner(source: str) -> None:
    """Raises UserError: no such model, or one of another kind, as far as its configuration tells."""
    with quiet():
        _check_config(source)


def _check_config(source: str) -> None:
    config = read_config(source)
    if (model_type := config.get("model_type")) != "blip":
        raise UserError(f"captioner {source!r} is not BLIP: model_type is {model_type!r}, expected 'blip'")
    check_architecture(source, config, ARCHITECTURE)


def _load_model(source: str) -> BlipForConditionalGeneration:
    try:
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options(source)
        )
    except UNREADABLE as reason:
        raise UserError(f"captioner {source!r}: cannot load its weights: {first_line(reason)}") from None
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        count = f"{len(missing)} weights are" if len(missing) > 1 else "1 weight is"
        raise UserError(f"captioner {source!r}: {count} missing, such as {missing[0]}")
    return model


def _load_tokenizer(source: str, text_config: Any) -> PreTrainedTokenizerBase:
    fast = Path(source) / "tokenizer.json"
    try:
        if fast.is_file():
            json.loads(fast.read_text(encoding="utf-8"))  # the tokenizers library raises a bare Exception
        tokenizer = AutoTokenizer.from_pretrained(source, **options(source))
    except UNREADABLE as reason:
        raise UserError(f"captioner {source!r}: cannot load its tokenizer: {first_line(reason)}") from None
    vocabulary = text_config.vocab_size
    # Without its files transformers returns a tokenizer of special tokens only. The tolerance allows for [DEC] and
    # [ENC], which only the model may know, and for a padded vocabulary of the model.
    if not 0.9 * vocabulary - 2 <= len(tokenizer) <= vocabulary + 2:
        raise UserError(
            f"captioner {source!r}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary {vocabulary}; "
            "tokenizer.json or vocab.txt is missing or belongs to another model"
        )
    for name in ("bos_token_id", "sep_token_id"):
        token = getattr(text_config, name)
        if token is None or not 0 <= token < vocabulary:
            raise UserError(
                f"captioner {source!r}: text_config.{name} is {token}, outside the vocabulary of {vocabulary}"
            )
    return tokenizer


def _load_image_preparation(source: str, vision_config: Any, image_size: int | None) -> ImagePreparation:
    size, patch = image_size or vision_config.image_size, vision_config.patch_size
    if size % patch:
        raise UserError(f"captioner {source!r}: image_size {size} is not a multiple of its patch size {patch}")
    try:
        values, _ = BlipImageProcessor.get_image_processor_dict(source, local_files_only=Path(source).is_dir())
    except OSError as reason:
        if "JSON" in str(reason):
            raise UserError(f"captioner {source!r}: {first_line(reason)}") from None
        return ImagePreparation(size)
    mean, std = values.get("image_mean") or OPENAI_CLIP_MEAN, values.get("image_std") or OPENAI_CLIP_STD
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"captioner {source!r}: image_mean {mean} and image_std {std} are not values for RGB")
    return ImagePreparation(size, tuple(mean), tuple(std), Image.Resampling(values.get("resample") or 3))


class FusedAttention(nn.Module):
    """The weights of a `BlipAttention`, without storing its [heads, patches, patches] matrix of scores."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.num_heads
        self.qkv: nn.Linear = attention.qkv
        self.projection: nn.Linear = attention.projection

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        """[images, 1 + patches, width] to the same shape, and no attention map."""
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).flatten(2)), None


def fuse_vision_attention(model: BlipForConditionalGeneration) -> None:
    """Replace the attention of every vision layer in place. The model can no longer be saved."""
    layers: Any = model.vision_model.encoder.layers
    for layer in layers:
        layer.self_attn = FusedAttention(layer.self_attn)
