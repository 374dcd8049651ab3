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
from functools import cached_property, lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    GenerationConfig,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rlip_model.gpu_memory import is_out_of_memory, send
from sgpipe.errors import ComputationError, UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages import checkpoint
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.captioner import Captioner, CaptionInput
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu import GpuMemory, one_line
from sgpipe.utils.prefetch import prefetch

_UINT32 = 0xFFFFFFFF
GPU_GROUP = 32
_STEPS_PER_WAIT = 6
_REMEDY = (
    "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"
)

_Prepared = tuple[Tensor, int]  # pixels, as by `BlipCaptioner._prepare`, and key of an image


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four random words from four counter and two key
    words.

    All are int64 tensors of values in [0, 2**32) and of equally many dimensions, that broadcast
    together.
    """
    a, b, c, d = torch.broadcast_tensors(*counter)
    multiplied = torch.stack((a, c))
    rest = torch.stack((b, d))
    keys = torch.stack(tuple(key))
    factors, steps = (constant.view(2, *[1] * a.dim()) for constant in _philox_constants(a.device))
    for _ in range(10):
        # int64 products wrap around; after masking, both halves are correct
        products = (multiplied * factors).flip(0)
        multiplied = ((products >> 32) ^ rest ^ keys) & _UINT32
        rest = products
        keys = keys + steps  # its higher bits are masked with those of the products
    (a, c), (b, d) = multiplied, rest & _UINT32
    return a, b, c, d


@lru_cache
def _philox_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factors of a round, and what it adds to the key."""
    return torch.tensor([0xD2511F53, 0xCD9E8D57], device=device), torch.tensor(
        [0x9E3779B9, 0xBB67AE85], device=device
    )


def gumbel(keys: Tensor, samples: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise (float64) of each (key, sample, step, token); `keys` hold 63 random
    bits.
    """
    counter = (tokens, torch.full_like(tokens, step), samples, torch.zeros_like(tokens))
    high, low, _, _ = philox(counter, (keys & _UINT32, keys >> 32))
    uniform = ((high >> 5) * 2**26 + (low >> 6) + 0.5).double() * 2**-53
    return -torch.log(-torch.log(uniform))


def process(
    scores: Tensor, tokens: Tensor, sampling: CaptionConfig, end: int | None = None
) -> Tensor:
    """Return the scores [rows, vocabulary] from which a nucleus is taken; -inf for tokens that
    cannot follow.

    Applies in this order, as transformers does: repetition penalty (Keskar et al., 2019, as CTRL's
    code; once for each of `tokens`, int64 [rows, length]), minimum length (no `end` before it),
    temperature, top_k and what ties with it.
    """
    if sampling.repetition_penalty != 1:
        seen = scores.gather(1, tokens)
        penalty = sampling.repetition_penalty
        scores = scores.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))
    if end is not None and tokens.shape[1] < sampling.min_tokens:
        scores = scores.clone()
        scores[:, end] = -torch.inf
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.top_k:
        last = scores.topk(min(sampling.top_k, scores.shape[1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < last, -torch.inf)
    return scores


def nucleus(
    scores: Tensor, top_p: float, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smallest set of most likely tokens that reaches `top_p`, of scores `[rows,
    vocabulary]`.

    Equally likely tokens at the edge are taken by their ids. `width`: how many of the most likely
    tokens to look at;
    None: as many as needed, which the host waits for. Returns tokens `[rows, width + 1]`,
    ascending, or fewer without a width; which of them are kept; and whether `width` is enough in
    all rows.
    """
    probabilities = scores.softmax(dim=-1)
    vocabulary = scores.shape[-1]
    requested_width = width
    if width is None:
        # All tokens below this probability sum to less than 1 - top_p, so none is kept and none
        # needs sorting.
        negligible = (1 - top_p) / vocabulary
        width = (
            max(1, int((probabilities > negligible).sum(dim=-1).max())) if top_p < 1 else vocabulary
        )
    likeliest, tokens = probabilities.topk(min(width + 1, vocabulary), dim=-1)
    if top_p == 1:  # rounded sums may reach 1 before the last token
        return (
            tokens,
            scores.gather(-1, tokens) > -torch.inf,
            torch.full_like(tokens[0, 0], width >= vocabulary) > 0,
        )
    shares = likeliest.double()
    before = shares.cumsum(dim=-1) - shares
    count = (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # of scores that are NaN, too
    edge = likeliest.gather(-1, count - 1)
    is_cut = requested_width is not None and requested_width < vocabulary
    enough = (
        (likeliest[:, -1:] < edge).all()
        if is_cut
        else torch.ones_like(count[0, 0], dtype=torch.bool)
    )
    if requested_width is None:  # leave out what is in no nucleus
        longest = max(1, int((likeliest >= edge).sum(dim=-1).max()))
        likeliest = likeliest[:, :longest]
        tokens = tokens[:, :longest]
    tokens, order = tokens.sort(dim=-1)
    probabilities = likeliest.gather(-1, order)
    above = probabilities > edge
    at = probabilities == edge
    room = count - above.sum(dim=-1, keepdim=True)
    return tokens, above | (at & (at.cumsum(dim=-1) <= room)), enough


def check_finite(finite: bool, sampling: CaptionConfig) -> None:
    if not finite:
        raise ComputationError(
            f"the scores of {sampling.captioner} are not finite: its weights are damaged, or"
            " caption.temperature or caption.repetition_penalty is close to 0"
        )


def draw(
    scores: Tensor, top_p: float, keys: Tensor, samples: Tensor, step: int, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a token of the nucleus for each row of `[rows, vocabulary]`; `keys` and `samples`
    select the noise.

    Returns tokens `[rows]`; whether the largest score of every row is finite; whether `width` is
    enough (`nucleus`).
    """
    tokens, in_nucleus, enough = nucleus(scores, top_p, width)
    noisy = scores.gather(-1, tokens).double() + gumbel(
        keys.unsqueeze(-1), samples.unsqueeze(-1), step, tokens
    )
    drawn = noisy.masked_fill(~in_nucleus, -torch.inf).argmax(dim=-1, keepdim=True)
    return tokens.gather(-1, drawn).squeeze(-1), scores.amax(dim=-1).isfinite().all(), enough


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
        """Load the model. Raises UserError like `check`, `_load`, or if `max_tokens` leaves no
        room.
        """
        config = self.config
        self.check()
        self.device = pick_device(config.device, config.resources.gpus)
        self._load(pick_dtype(config.dtype, self.device))
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
        """Raises UserError: parts are missing, damaged or of another model, or its patches do not
        fit `image_size`.
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


@dataclass
class DecoderState:
    """The keys and values of `rows = images * samples` sequences of equal length, per layer."""

    # [rows, heads, capacity, head width], of which `length` positions are filled
    own: list[tuple[Tensor, Tensor]]
    image: list[tuple[Tensor, Tensor]]  # [images, heads, 1 + patches, head width]
    length: int = 0

    def take(self, rows: Tensor) -> None:
        """Continue with these sequences (indices, some of them repeatedly); every image must keep
        the same number.
        """
        self.own = [(keys[rows], values[rows]) for keys, values in self.own]


class BlipDecoder:
    """Next-token scores of a BLIP captioner, token by token."""

    def __init__(self, model: BlipForConditionalGeneration) -> None:
        decoder: Any = model.text_decoder
        self.heads: int = decoder.config.num_attention_heads
        self.end: int = decoder.config.sep_token_id
        self.embeddings = decoder.bert.embeddings
        self.head = decoder.cls
        self.layers = [_Layer(layer, self.heads) for layer in decoder.bert.encoder.layer]
        # of the likeliest tokens, which contain the nucleus; it grows where they do not
        self.width = 256

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Return the stream that graphs are recorded on: always the same, as libraries keep memory
        for each.
        """
        return torch.cuda.Stream(self.embeddings.word_embeddings.weight.device)

    @torch.no_grad()
    def start(self, image_states: Tensor, capacity: int) -> DecoderState:
        """Return an empty cache for `capacity` tokens, given image states [images, 1 + patches,
        vision width].
        """
        image = [layer.project_image(image_states) for layer in self.layers]
        images, heads, _, width = image[0][0].shape
        shape = images, heads, capacity, width
        past = [(image_states.new_empty(shape), image_states.new_empty(shape)) for _ in self.layers]
        return DecoderState(past, image)

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: DecoderState) -> Tensor:
        """Append `ids` [rows, tokens]; returns the scores of the next token, float32 [rows,
        vocabulary].
        """
        positions = self.embeddings.position_embeddings.weight[
            state.length : state.length + ids.shape[1]
        ]
        hidden = self.embeddings.LayerNorm(self.embeddings.word_embeddings(ids) + positions)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, state, index)
        state.length += ids.shape[1]
        return self.head(hidden[:, -1]).float()


class _Layer:
    """One decoder layer: causal self-attention, attention to the image, feed-forward."""

    def __init__(self, layer: Any, heads: int) -> None:
        self.layer = layer
        self.heads = heads
        inner = layer.attention.self
        cross = layer.crossattention.self
        self.query_key_value = _joined(inner.query, inner.key, inner.value)
        self.image_key_value = _joined(cross.key, cross.value)

    def project_image(self, image_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the images, each [images, heads, 1 + patches, head width]."""
        keys, values = F.linear(image_states, *self.image_key_value).chunk(2, dim=-1)
        return self._split(keys).contiguous(), self._split(values).contiguous()

    def __call__(self, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        """[rows, tokens, width] to the same shape; adds the tokens' keys and values to `state`."""
        query, key, value = map(
            self._split, F.linear(hidden, *self.query_key_value).chunk(3, dim=-1)
        )
        start = state.length
        stop = state.length + hidden.shape[1]
        keys, values = state.own[index]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        # Several tokens are the start of the sequence and need a mask; a single token attends to
        # all before it.
        causal = hidden.shape[1] > 1
        attended = F.scaled_dot_product_attention(
            query, keys[:, :, :stop], values[:, :, :stop], is_causal=causal
        )
        hidden = self.layer.attention.output(attended.transpose(1, 2).flatten(2), hidden)

        keys, values = state.image[index]
        query = self.layer.crossattention.self.query(hidden)
        by_image = self._split(query.reshape(len(keys), -1, query.shape[-1]))
        attended = F.scaled_dot_product_attention(by_image, keys, values)
        hidden = self.layer.crossattention.output(
            attended.transpose(1, 2).reshape(query.shape), hidden
        )
        return self.layer.output(self.layer.intermediate(hidden), hidden)

    def _split(self, states: Tensor) -> Tensor:
        """[batch, tokens, width] to [batch, heads, tokens, head width]."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(*linears: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return weight, torch.cat([linear.bias.detach() for linear in linears])


@torch.no_grad()
def sample_captions(
    decoder: BlipDecoder,
    image_states: Tensor,
    prompt: list[int],
    keys: list[int],
    sampling: CaptionConfig,
    recorded: RecordedCaptions | None = None,
) -> list[list[list[int]]]:
    """Return the tokens after `prompt` of each sample of each image, without the end token.

    `image_states`: [images, 1 + patches, vision width]. `keys`: one per image, 63 bits that select
    its noise. `sampling`: its lengths count every token of the decoder: [DEC], prompt, words and
    [SEP]. `recorded`: of this prompt and sampling; replayed if it is of as many images and of the
    decoder's width.

    Raises ComputationError: the scores are not finite.
    """
    samples = sampling.samples
    width = decoder.width
    if recorded is not None and recorded.of == (len(keys), width):
        parts = recorded.replay(image_states, keys)
    else:
        parts = _draw(
            decoder,
            image_states,
            prompt,
            send(torch.tensor(keys), image_states.device),
            sampling,
            width,
        )
    for flags, drawn in parts:  # noqa: B007 - the last ones are read below
        ended, finite, enough = flags.tolist()
        check_finite(finite, sampling)
        if not enough:
            # From now on; other threads may have done so.
            decoder.width = max(decoder.width, 4 * width)
            return sample_captions(decoder, image_states, prompt, keys, sampling)
        if ended:
            break
    captions = [_until(row, decoder.end) for row in drawn[:, len(prompt) :].tolist()]
    return [captions[first : first + samples] for first in range(0, len(captions), samples)]


def _draw(
    decoder: BlipDecoder,
    image_states: Tensor,
    prompt: list[int],
    keys: Tensor,
    sampling: CaptionConfig,
    width: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield after every few tokens, on a CPU after each, without waiting for a GPU; for callers
    without gradients.

    Yields whether all sequences have ended, scores are finite, and `width` is enough; and all
    tokens [rows, most].
    """
    images = len(image_states)
    device = image_states.device
    samples = sampling.samples
    end = decoder.end
    on_cpu = device.type == "cpu"
    count = images * samples
    max_length = sampling.max_tokens or 0
    row_keys = keys.repeat_interleave(samples)
    row_samples = torch.arange(count, device=device) % samples
    drawn = torch.full((count, max_length), end, device=device)
    _write_prompt(drawn, prompt)

    state = decoder.start(image_states, max_length)
    scores = decoder(drawn[::samples, : len(prompt)], state).repeat_interleave(samples, dim=0)
    state.take(torch.arange(count, device=device) // samples)
    rows: Tensor | slice = slice(None)  # that are computed
    active = torch.ones(count, dtype=torch.bool, device=device)
    sound = torch.ones(2, dtype=torch.bool, device=device)
    for length in range(len(prompt), max_length):
        scores = process(scores, drawn[rows, :length], sampling, end)
        step = length - len(prompt)
        noise = row_keys[rows], row_samples[rows], step
        tokens, *fine = draw(scores, sampling.top_p, *noise, None if on_cpu else width)
        drawn[rows, length] = tokens
        active = active & (tokens != end)
        sound = sound & torch.stack(fine)
        is_last = length + 1 == max_length
        if on_cpu or is_last or step % _STEPS_PER_WAIT == _STEPS_PER_WAIT - 1:
            yield torch.cat((~active.any().unsqueeze(0), sound)), drawn
            if is_last:
                return
            # With several images, shapes do not depend on others.
            if on_cpu and images == 1 and not bool(active.all()):
                left = active.nonzero().squeeze(-1)
                rows = left if isinstance(rows, slice) else rows[left]
                tokens = tokens[left]
                active = active[left]
                state.take(left)
        scores = decoder(tokens.unsqueeze(-1), state)


def _write_prompt(tokens: Tensor, prompt: list[int]) -> None:
    for position, token in enumerate(prompt):
        tokens[:, position] = token


class RecordedCaptions:
    """How a GPU captions a group of images: a CUDA graph, which is one launch, of every part that
    `_draw` yields.

    They are replayed in this order, for other groups of the size. `of`: how many images, and the
    decoder's width.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: BlipDecoder,
        image_states: Tensor,
        keys: list[int],
        prompt: list[int],
        sampling: CaptionConfig,
    ) -> None:
        """Raises RuntimeError: this GPU cannot record it. No other thread may compute on it
        meanwhile.
        """
        device = image_states.device
        self.of = (len(keys), decoder.width)
        # no inference tensors
        self._image_states = image_states.clone()
        self._keys = send(torch.tensor(keys), device)
        arguments = decoder, self._image_states, prompt, self._keys, sampling, decoder.width
        self._parts: list[tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]] = []
        stream = decoder.stream
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            # what libraries do once is not to be recorded
            count = sum(1 for _ in _draw(*arguments))
            # which keeps the graphs' tensors
            pool = torch.cuda.graph_pool_handle()
            self._generator = _draw(*arguments)
            for _ in range(count):
                graph = torch.cuda.CUDAGraph()
                # Other threads may pin memory meanwhile.
                with torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ):
                    part = next(self._generator)
                self._parts.append((graph, part))
        current.wait_stream(stream)

    def replay(self, image_states: Tensor, keys: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same as `_draw`, in tensors that the next group overwrites."""
        self._image_states.copy_(image_states)
        self._keys.copy_(send(torch.tensor(keys), self._keys.device))
        for graph, part in self._parts:
            graph.replay()
            yield part


def beam_captions(
    model: BlipForConditionalGeneration,
    image_states: Tensor,
    prompt: list[int],
    config: CaptionConfig,
) -> list[list[list[int]]]:
    """Return the same of one caption of each image, by transformers' beam search (1 beam:
    greedy).
    """
    text_config: Any = model.config.text_config
    end = text_config.sep_token_id
    tokens = {
        "bos_token_id": text_config.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": text_config.pad_token_id,
    }
    lengths = {
        "min_length": config.min_tokens,
        "max_new_tokens": (config.max_tokens or 0) - len(prompt),
    }
    sequences = model.text_decoder.generate(
        input_ids=torch.tensor([prompt] * len(image_states), device=image_states.device),
        attention_mask=image_states.new_ones(len(image_states), len(prompt), dtype=torch.long),
        encoder_hidden_states=image_states,
        encoder_attention_mask=image_states.new_ones(image_states.shape[:2], dtype=torch.long),
        generation_config=GenerationConfig(
            num_beams=config.beams, do_sample=False, **lengths, **tokens
        ),
    )
    return [[_until(row, end)] for row in sequences[:, len(prompt) :].tolist()]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
