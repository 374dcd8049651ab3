"""From image states to BLIP's caption tokens, with a decoder that shares the states of an image among its captions.

The weights are those of transformers' `BlipTextLMHeadModel`; only the attention is ours. The keys and values of the
cross-attention are computed once per image, and the samples of an image attend to them as additional queries, so no
image data is copied per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForConditionalGeneration, GenerationConfig

from sgpipe.stages.caption.decoding import NucleusSampling, draw, process
from sgpipe.utils.compiling import Backend, Compiled


@dataclass
class DecoderState:
    """The key-value cache of `rows = images * samples` sequences of equal length, per layer.

    `keys` and `values` belong to the self-attention: [rows, heads, capacity, head width], of which the first `length`
    positions are filled. `image_keys` and `image_values` belong to the cross-attention: [images, heads, 1 + patches,
    head width].
    """

    keys: list[Tensor]
    values: list[Tensor]
    image_keys: list[Tensor]
    image_values: list[Tensor]
    length: int = 0

    def fork(self, samples: int) -> None:
        """Turn the single sequence of each image into `samples` sequences with the same prefix."""
        self.keys = [keys.repeat_interleave(samples, dim=0) for keys in self.keys]
        self.values = [values.repeat_interleave(samples, dim=0) for values in self.values]

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences except `rows` (indices); every image must keep the same number."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


class BlipDecoder:
    """Next-token scores of a BLIP captioner, token by token."""

    def __init__(self, model: BlipForConditionalGeneration) -> None:
        decoder: Any = model.text_decoder
        self.heads: int = decoder.config.num_attention_heads
        self.embeddings = decoder.bert.embeddings
        self.head = decoder.cls
        self.layers = [_Layer(layer, self.heads) for layer in decoder.bert.encoder.layer]
        self._step: Callable[[Tensor, DecoderState], Tensor] = self._next_scores

    @torch.no_grad()  # not inference_mode, in which PyTorch 2.13's inductor cannot compile the step
    def start(self, image_states: Tensor, capacity: int) -> DecoderState:
        """An empty cache with room for `capacity` tokens, given image states [images, 1 + patches, vision width]."""
        image_keys, image_values = zip(*(layer.project_image(image_states) for layer in self.layers), strict=True)
        images, heads, _, width = image_keys[0].shape
        empty = image_states.new_empty(images, heads, capacity, width)
        return DecoderState(
            [empty.clone() for _ in self.layers],
            [empty.clone() for _ in self.layers],
            list(image_keys),
            list(image_values),
        )

    def compile(self, backend: Backend = "inductor") -> Compiled[Tensor]:
        """Let PyTorch compile the step of one token, for any number of tokens before it."""
        compiled: Compiled[Tensor] = Compiled(self._next_scores, backend=backend)
        self._step = compiled
        return compiled

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: DecoderState) -> Tensor:
        """Append `ids` [rows, tokens]; returns the scores of the next token, float32 [rows, vocabulary]."""
        return self._step(ids, state) if ids.shape[1] == 1 else self._next_scores(ids, state)

    def _next_scores(self, ids: Tensor, state: DecoderState) -> Tensor:
        hidden = self._embed(ids, state.length)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, state, index)
        state.length += ids.shape[1]
        return self.head(hidden[:, -1]).float()

    def _embed(self, ids: Tensor, start: int) -> Tensor:
        positions = self.embeddings.position_embeddings.weight[start : start + ids.shape[1]]
        return self.embeddings.LayerNorm(self.embeddings.word_embeddings(ids) + positions)


class _Layer:
    """One decoder layer: causal self-attention, attention to the image, feed-forward."""

    def __init__(self, layer: Any, heads: int) -> None:
        self.layer = layer
        self.heads = heads
        inner, cross = layer.attention.self, layer.crossattention.self
        self.query_key_value = _joined(inner.query, inner.key, inner.value)
        self.image_key_value = _joined(cross.key, cross.value)

    def project_image(self, image_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the images, each [images, heads, 1 + patches, head width]."""
        keys, values = F.linear(image_states, *self.image_key_value).chunk(2, dim=-1)
        return self._split(keys).contiguous(), self._split(values).contiguous()

    def __call__(self, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        """[rows, tokens, width] to the same shape; adds the tokens' keys and values to `state`."""
        hidden = self.layer.attention.output(self._attend_text(hidden, state, index), hidden)
        hidden = self.layer.crossattention.output(self._attend_image(hidden, state, index), hidden)
        return self.layer.output(self.layer.intermediate(hidden), hidden)

    def _attend_text(self, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        query, key, value = map(self._split, F.linear(hidden, *self.query_key_value).chunk(3, dim=-1))
        start, stop = state.length, state.length + hidden.shape[1]
        keys, values = state.keys[index], state.values[index]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        # Several tokens are the start of the sequence and need a mask; a single token attends to all before it.
        causal = hidden.shape[1] > 1
        attended = F.scaled_dot_product_attention(query, keys[:, :, :stop], values[:, :, :stop], is_causal=causal)
        return attended.transpose(1, 2).flatten(2)

    def _attend_image(self, hidden: Tensor, state: DecoderState, index: int) -> Tensor:
        keys, values = state.image_keys[index], state.image_values[index]
        query = self.layer.crossattention.self.query(hidden)
        by_image = self._split(query.reshape(len(keys), -1, query.shape[-1]))
        attended = F.scaled_dot_product_attention(by_image, keys, values)
        return attended.transpose(1, 2).reshape(query.shape)

    def _split(self, states: Tensor) -> Tensor:
        """[batch, tokens, width] to [batch, heads, tokens, head width]."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(*linears: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """The concatenated weights and biases of several projections of the same states."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return weight, torch.cat([linear.bias.detach() for linear in linears])


@torch.no_grad()
def sample_captions(
    decoder: BlipDecoder, image_states: Tensor, prompt: list[int], keys: list[int], sampling: NucleusSampling
) -> list[list[list[int]]]:
    """The tokens after `prompt` of each sample of each image, without the end token.

    Args:
        image_states: [images, 1 + patches, vision width].
        keys: one per image, 63 bits that select its noise.

    With one image, sequences that have ended are dropped from the computation. With several images they stay, so that
    tensor shapes do not depend on the length of other images' captions.

    Raises FloatingPointError: the model's scores are not finite.
    """
    images, device = len(image_states), image_states.device
    rows = torch.arange(images * sampling.samples, device=device)
    row_keys = torch.tensor(keys, device=device).repeat_interleave(sampling.samples)
    row_samples = rows % sampling.samples
    drawn = torch.full((len(rows), sampling.max_tokens), sampling.end, device=device)
    drawn[:, : len(prompt)] = torch.tensor(prompt, device=device)

    state = decoder.start(image_states, sampling.max_tokens)
    scores = decoder(torch.tensor([prompt] * images, device=device), state)
    if not bool(scores.isfinite().all()):
        raise FloatingPointError("the captioner's scores are not finite: its weights are damaged")
    state.fork(sampling.samples)
    scores = scores.repeat_interleave(sampling.samples, dim=0)
    for length in range(len(prompt), sampling.max_tokens):
        scores = process(scores, drawn[rows, :length], sampling)
        tokens = draw(scores, sampling.top_p, row_keys[rows], row_samples[rows], length - len(prompt))
        drawn[rows, length] = tokens
        active = (drawn[rows, len(prompt) : length + 1] != sampling.end).all(dim=-1)
        if length + 1 == sampling.max_tokens or not bool(active.any()):
            break
        if images == 1 and not bool(active.all()):
            rows, tokens = rows[active], tokens[active]
            state.keep(active.nonzero().squeeze(-1))
        scores = decoder(tokens.unsqueeze(-1), state)
    captions = [_until(row, sampling.end) for row in drawn[:, len(prompt) :].tolist()]
    return [captions[first : first + sampling.samples] for first in range(0, len(captions), sampling.samples)]


def beam_captions(
    model: BlipForConditionalGeneration,
    image_states: Tensor,
    prompt: list[int],
    beams: int,
    min_tokens: int,
    max_tokens: int,
) -> list[list[list[int]]]:
    """The tokens after `prompt` of the best caption of each image, by transformers' beam search (1: greedy).

    Lengths count as in `NucleusSampling`. The result is nested as in `sample_captions`, with one sample per image.
    """
    text_config: Any = model.config.text_config
    end = text_config.sep_token_id
    sequences = model.text_decoder.generate(
        input_ids=torch.tensor([prompt] * len(image_states), device=image_states.device),
        attention_mask=image_states.new_ones(len(image_states), len(prompt), dtype=torch.long),
        encoder_hidden_states=image_states,
        encoder_attention_mask=image_states.new_ones(image_states.shape[:2], dtype=torch.long),
        generation_config=GenerationConfig(
            num_beams=beams,
            do_sample=False,
            min_length=min_tokens,
            max_new_tokens=max_tokens - len(prompt),
            bos_token_id=text_config.bos_token_id,
            eos_token_id=end,
            pad_token_id=text_config.pad_token_id,
        ),
    )
    return [[_until(row, end)] for row in sequences[:, len(prompt) :].tolist()]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
