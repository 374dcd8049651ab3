"""A BLIP checkpoint (Li et al., ICML 2022) as a captioner: weights, tokenizer, image preparation and captions.

Matrix products round differently for different numbers of rows, so on a CPU each image is computed alone, with all its
samples, and the result is bit-for-bit reproducible. On a GPU images are computed in padded groups of a fixed size,
halved when the memory is full. Across group sizes, devices, number formats, library versions and thread counts the
noise is the same but scores differ in their last digits, which rarely changes a caption.

The vision tower gets PyTorch's fused attention, which transformers does not support for this model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
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
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.blip_decoder import BlipDecoder, beam_captions, sample_captions
from sgpipe.stages.caption.captioner import MAX_TOKENS, CaptionInput
from sgpipe.stages.caption.decoding import NucleusSampling
from sgpipe.stages.checkpoint import (
    UNREADABLE,
    check_architecture,
    first_line,
    load_weights,
    options,
    quiet,
    read_config,
)
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu_memory import GPU_THREADS, GpuMemory
from sgpipe.utils.prefetch import prefetch

_GPU_GROUP = 8
_REMEDY = "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"

_Prepared = tuple[Tensor, int]  # pixels, as by `BlipCaptioner._prepare`, and key of an image


class BlipCaptioner:
    """Captions by BLIP, with the decoder of `blip_decoder`."""

    def __init__(self, config: CaptionConfig) -> None:
        """`config`: with `prompt` and `max_tokens`, see `captioner.settings_of`."""
        self.config = config
        self.source = str(config.captioner)
        self.max_tokens = config.max_tokens or MAX_TOKENS

    def check(self) -> None:
        """Raise UserError if there is no such captioner, it is another kind of model, or `caption.system` is set."""
        if self.config.system is not None:
            raise UserError("caption.system is set, but BLIP is not a chat model: set caption.prompt, or omit both")
        _check_config(self.source)

    def setup(self) -> None:
        """Load the model. Raises UserError like `load_blip`, or if `max_tokens` leaves no room for a caption."""
        config = self.config
        self.device = pick_device(config.device, config.resources.gpus)
        dtype = pick_dtype(config.dtype, self.device)
        self.blip: Blip = load_blip(self.source, config.image_size, self.device, dtype)
        self.decoder = BlipDecoder(self.blip.model)
        self.compiled = [self.decoder.compile()] if config.compile and self.device.type == "cuda" else []
        self.prompt = self.blip.prompt_ids(config.prompt or "")
        on_gpu = self.device.type == "cuda"
        # transformers' beam search is not known to be safe for threads
        self.gpu_threads = (GPU_THREADS if config.decoding == "nucleus" else 1) if on_gpu else 0
        self.memory = GpuMemory(self.device, _REMEDY, max(self.gpu_threads, 1), _GPU_GROUP if on_gpu else 1)
        self._check_lengths()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str]]:
        """See `Captioner.caption`."""
        threads = image_threads(self.config.resources, elsewhere=self.device.type != "cpu")
        with (
            prefetch(self._prepare, inputs, threads, self.config.batch_size + 2 * threads) as prepared,
            prefetch(self._compute, self._groups(prepared), self.gpu_threads, self.gpu_threads + 1) as computed,
        ):
            for captions in computed:
                yield from captions

    def _prepare(self, given: CaptionInput) -> _Prepared:
        """Return what is copied to the device: for a GPU bytes, which it normalises, else normalised pixels."""
        if self.device.type == "cpu":
            return self.blip.prepare(given.image), given.key
        pixels = self.blip.prepare.resize(given.image)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels, given.key

    def _groups(self, prepared: Iterator[_Prepared]) -> Iterator[list[_Prepared]]:
        while group := list(islice(prepared, min(self.memory.batch_size, self.config.batch_size))):
            yield group

    def _compute(self, group: list[_Prepared]) -> list[list[str]]:
        """Return the captions of a group, which is padded to the size of all groups."""
        padded = [*group, *[group[-1]] * (self.memory.batch_size - len(group))]
        return self.memory.compute(self._caption, padded)[: len(group)]

    def _check_lengths(self) -> None:
        most, least = self.max_tokens, self.config.min_tokens
        positions = self.blip.text_config.max_position_embeddings
        if most > positions:
            raise UserError(f"caption.max_tokens is {most}, but this captioner has only {positions} positions")
        if most <= len(self.prompt) or most < least:
            raise UserError(
                f"caption.max_tokens is {most}: expected at least min_tokens ({least}) and more than the "
                f"{len(self.prompt)} tokens of [DEC] and the prompt, which are included"
            )

    def _caption(self, group: Sequence[_Prepared]) -> list[list[str]]:
        pixels = self.blip.to_device([pixels for pixels, _ in group])
        decoded = self._decode(self.blip.encode(pixels), [key for _, key in group])
        return [[self.blip.text(tokens) for tokens in samples] for samples in decoded]

    def _decode(self, states: torch.Tensor, keys: list[int]) -> list[list[list[int]]]:
        config = self.config
        if config.decoding == "beam":
            return beam_captions(self.blip.model, states, self.prompt, config.beams, config.min_tokens, self.max_tokens)
        sampling = NucleusSampling(
            config.samples,
            config.top_p,
            config.temperature,
            config.min_tokens,
            self.max_tokens,
            end=self.blip.text_config.sep_token_id,
            repetition_penalty=config.repetition_penalty,
            top_k=config.top_k,
        )
        try:
            return sample_captions(self.decoder, states, self.prompt, keys, sampling)
        except FloatingPointError as reason:
            raise UserError(f"captioner {config.captioner!r}: {reason}") from None


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

    Raises UserError for no such model, another kind of model, missing or damaged weights, a tokenizer that does not
    belong to the model, or an `image_size` that is not a multiple of the patch size.
    """
    _check_config(source)
    model = load_weights(BlipForConditionalGeneration, source, dtype=torch.float32)
    with quiet():
        tokenizer = _load_tokenizer(source, model.config.text_config)
        prepare = _load_image_preparation(source, model.config.vision_config, image_size)
    fuse_vision_attention(model)
    torch.nn.Module.to(model, device=device, dtype=dtype)
    return Blip(model.eval(), tokenizer, prepare)


def _check_config(source: str) -> None:
    config = read_config(source)
    if (model_type := config.get("model_type")) != "blip":
        raise UserError(f"captioner {source!r} is not BLIP: model_type is {model_type!r}, expected 'blip'")
    check_architecture(source, config, "BlipForConditionalGeneration")


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
            raise UserError(f"captioner {source!r}: text_config.{name} is {token}, outside the vocabulary")
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
