"""The text decoder of BLIP: captions of encoded images, token by token, by sampling or beam search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForConditionalGeneration, GenerationConfig

from rlip_model.gpu_memory import send
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.nucleus import check_finite, draw, process

_STEPS_PER_WAIT = 6


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

    Args:
        image_states: [images, 1 + patches, vision width].
        keys: one per image, 63 bits that select its noise.
        sampling: its lengths count every token of the decoder: [DEC], prompt, words and [SEP].
        recorded: of this prompt and sampling; replayed if it is of as many images and of the
            decoder's width.

    Raises:
        ComputationError: the scores are not finite.
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
        """No other thread may compute on it meanwhile.

        Raises:
            RuntimeError: this GPU cannot record it.
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
