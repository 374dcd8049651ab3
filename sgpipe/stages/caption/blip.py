"""A BLIP checkpoint (Li et al., ICML 2022) as a captioner, by nucleus sampling or beam search.

Matrix products round by their number of rows: on a CPU each image is computed alone, and the result
is reproducible bit for bit. On a GPU images are computed in groups, with whose size scores differ
in their last digits. A nucleus sample (Holtzman et al., ICLR 2020) is the argmax of the kept
tokens' scores plus Gumbel noise, a pure function of (image, sample, step, token), the same on every
device, in every batch and in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessor
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rlip_model.gpu_memory import is_out_of_memory
from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages import checkpoint
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.blip_decoder import (
    BlipDecoder,
    RecordedCaptions,
    beam_captions,
    sample_captions,
)
from sgpipe.stages.caption.captioner import Captioner, CaptionInput
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu import GpuMemory, one_line
from sgpipe.utils.prefetch import prefetch

GPU_GROUP = 32
_REMEDY = (
    "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"
)

_Prepared = tuple[Tensor, int]  # pixels, as by `BlipCaptioner._prepare`, and key of an image


class BlipCaptioner(Captioner):
    def __init__(self, config: CaptionConfig) -> None:
        """`config`: with `prompt` and `max_tokens`, see `captioner.settings_of`."""
        self.config = config
        self.source = str(config.captioner)
        self.uses_graphs = False
        self.graph_error = ""
        self.recorded: RecordedCaptions | None = None
        self.full_groups: Counter[tuple[int, int]] = Counter()  # by size and the decoder's width

    def check(self) -> None:
        """Raise UserError if `caption.system` is set, or the model is for another task than
        captions.
        """
        if self.config.system is not None:
            raise UserError(
                "caption.system is set, but BLIP is not a chat model: set caption.prompt, or omit"
                " both"
            )
        config = checkpoint.read_config(self.source)
        checkpoint.check_architecture(
            f"captioner {self.source!r}", config, "BlipForConditionalGeneration"
        )

    def setup(self) -> None:
        """Load the model.

        Raises:
            UserError: like `check`, `_load`, or if `max_tokens` leaves no room.
        """
        config = self.config
        self.check()
        self.device = pick_device(config.device, config.resources.gpus)
        self.dtype = pick_dtype(config.dtype, self.device)
        self._load(self.dtype)
        self.decoder = BlipDecoder(self.model)
        self.prompt = self.prompt_ids(config.prompt or "")
        on_gpu = self.device.type == "cuda"
        self.uses_graphs = on_gpu and config.decoding == "nucleus"
        self.gpu_threads = 1 if on_gpu else 0  # graphs hardly need the host, and are of one thread
        self.memory = GpuMemory(self.device, _REMEDY, 1, GPU_GROUP if on_gpu else 1)
        min_length = max(config.min_tokens, len(self.prompt) + 1)
        max_position_embeddings = self.text_config.max_position_embeddings
        if not min_length <= (config.max_tokens or 0) <= max_position_embeddings:
            raise UserError(
                f"caption.max_tokens is {config.max_tokens}: expected {min_length} (caption.min_tokens,"
                f" and more than [DEC] and the prompt) to {max_position_embeddings}, the positions of this captioner"
            )

    def _load(self, dtype: torch.dtype) -> None:
        """Load the network, its tokenizer and how it prepares images.

        Raises:
            UserError: parts are missing, damaged or of another model, or its patches do not fit
                `image_size`.
        """
        source, name = self.source, f"captioner {self.source!r}"
        model: Any = checkpoint.load_weights(
            BlipForConditionalGeneration, source, dtype=torch.float32
        )
        self.text_config = model.config.text_config
        vision = model.config.vision_config
        size = self.text_config.vocab_size
        for token in ("bos_token_id", "sep_token_id"):
            number = getattr(self.text_config, token)
            if not isinstance(number, int) or not 0 <= number < size:
                raise UserError(
                    f"{name}: text_config.{token} is {number}, outside its vocabulary of {size}"
                )
        side = self.config.image_size or vision.image_size
        if side % vision.patch_size:
            raise UserError(
                f"{name}: image_size {side} is not a multiple of its patch size {vision.patch_size}"
            )
        self.tokenizer: Tokenizer = checkpoint.load_part(AutoTokenizer, source)
        # Only the model may know [DEC] and [ENC], and its vocabulary may be padded.
        checkpoint.check_vocabulary(name, len(self.tokenizer), (0.9 * size - 2, size + 2))
        has_file = any(
            Path(source, f"{kind}_config.json").is_file() for kind in ("preprocessor", "processor")
        )
        with checkpoint.loading(f"{name}: preprocessor_config.json"):
            values = BlipImageProcessor.get_image_processor_dict(source)[0] if has_file else {}
            mean = values.get("image_mean") or OPENAI_CLIP_MEAN
            std = values.get("image_std") or OPENAI_CLIP_STD
            if min(std) <= 0:
                raise ValueError(f"image_std {std} is not positive")
            resample = Image.Resampling(values.get("resample") or 3)
            self.prepare = ImagePreparation(side, tuple(mean), tuple(std), resample)
            self.prepare(Image.new("RGB", (8, 8)))
        fuse_vision_attention(model)
        self.model = torch.nn.Module.to(model, device=self.device, dtype=dtype).eval()

    def to_device(self, images: Sequence[Tensor]) -> Tensor:
        """Return images as by `prepare`, or only resized, on the model's device as float32 [images,
        3, size, size].
        """
        pixels = torch.stack([image.to(self.model.device, non_blocking=True) for image in images])
        return self.prepare.normalise(pixels) if pixels.dtype == torch.uint8 else pixels

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[images, 3, size, size] to image states [images, 1 + patches, vision width]."""
        return self.model.vision_model(
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            interpolate_pos_encoding=self.prepare.size
            != self.model.config.vision_config.image_size,
        ).last_hidden_state

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the decoder's first tokens: [DEC], then the prompt."""
        return [
            self.text_config.bos_token_id,
            *self.tokenizer(prompt, add_special_tokens=False)["input_ids"],
        ]

    def text(self, ids: list[int]) -> str:
        """Return the text of generated tokens, without special tokens and with single spaces."""
        known = [token for token in ids if token < len(self.tokenizer)]
        words = str(
            self.tokenizer.decode(
                known, skip_special_tokens=True, clean_up_tokenization_spaces=True
            )
        )
        # A word piece that continues the last word of the prompt keeps its "##" when decoded
        # without that word.
        return " ".join(words.split()).removeprefix("##").strip()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str]]:
        threads = image_threads(self.config.resources, elsewhere=self.device.type != "cpu")
        ahead = max(self.config.batch_size, self.memory.batch_size) + 2 * threads
        with prefetch(self._prepare, inputs, threads, ahead) as prepared:
            groups = iter(lambda: list(islice(prepared, self.memory.batch_size)), [])
            with prefetch(
                self._compute, groups, self.gpu_threads, self.gpu_threads + 1
            ) as computed:
                for samples in chain.from_iterable(computed):
                    yield [self.text(tokens) for tokens in samples]

    def _prepare(self, source: CaptionInput) -> _Prepared:
        """Return what is copied to the device: for a GPU bytes, which it normalises, else
        normalised pixels.
        """
        if self.device.type == "cpu":
            return self.prepare(source.image), source.key
        pixels = self.prepare.resize(source.image)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels, source.key

    def _compute(self, group: list[_Prepared]) -> list[list[list[int]]]:
        if self.uses_graphs and len(group) == self.memory.batch_size:
            self.full_groups[len(group), self.decoder.width] += 1
            if self.full_groups[len(group), self.decoder.width] == 2:
                self._record(group)
        return self.memory.compute(self._caption, group)

    def _record(self, group: Sequence[_Prepared]) -> None:
        """Record how groups of this size are computed, if the memory suffices; note why if the GPU
        cannot.
        """
        self.recorded = None  # its memory is needed
        try:
            with self.memory.alone():
                self.recorded = RecordedCaptions(
                    self.decoder, *self._encode(group), self.prompt, self.config
                )
        except RuntimeError as reason:
            if not is_out_of_memory(reason):
                self.uses_graphs = False
                self.graph_error = one_line(reason)

    def _encode(self, group: Sequence[_Prepared]) -> tuple[Tensor, list[int]]:
        return self.encode(self.to_device([pixels for pixels, _ in group])), [
            key for _, key in group
        ]

    def _caption(self, group: Sequence[_Prepared]) -> list[list[list[int]]]:
        try:
            states, keys = self._encode(group)
            if self.config.decoding == "beam":
                return beam_captions(self.model, states, self.prompt, self.config)
            return sample_captions(
                self.decoder, states, self.prompt, keys, self.config, self.recorded
            )
        except RuntimeError:
            self.recorded = None  # its memory is needed, if that is full
            raise


@dataclass(frozen=True)
class ImagePreparation:
    """Turns an image into the input of the vision tower: resized to a square, scaled and
    normalised.
    """

    size: int
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image) -> Tensor:
        """Return an RGB image of any size as float32 [3, size, size]."""
        return self.normalise(self.resize(image))

    def resize(self, image: Image.Image) -> Tensor:
        """Return the pixels of an RGB image, uint8 [size, size, 3]: a quarter of the bytes to copy
        to a GPU.
        """
        return torch.from_numpy(np.array(image.resize((self.size, self.size), self.resample)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Resized pixels [..., size, size, 3] as float32 [..., 3, size, size], equally on all
        devices.
        """
        full, mean, std = _constants(self.mean, self.std, pixels.device)
        return ((pixels.movedim(-1, -3).float() / full - mean) / std).contiguous()


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors, because a GPU multiplies by the rounded inverse of a number."""
    full, *of_channels = (torch.tensor(value, device=device) for value in (255.0, mean, std))
    return full, of_channels[0].view(3, 1, 1), of_channels[1].view(3, 1, 1)


def fuse_vision_attention(model: BlipForConditionalGeneration) -> None:
    """Let no vision layer store the [heads, patches, patches] matrix of scores of its attention; in
    place.
    """
    layers: Any = model.vision_model.encoder.layers
    for layer in layers:
        layer.self_attn.forward = partial(_attend, layer.self_attn)


def _attend(attention: Any, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
    """[images, 1 + patches, width] to the same shape, and no attention map."""
    parts = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1))
    attended = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
    return attention.projection(attended.transpose(1, 2).flatten(2)), None
