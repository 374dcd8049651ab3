"""Nucleus samples of one image with any model of transformers: the image and the prompt are computed once.

`generate` prepares inputs, cache and score processors for its own decoding loop; `custom_generate` replaces that loop.
Ours computes the prefix for one row, copies its cache for every sample, and draws tokens with the keyed noise of
`decoding`, so that a sample is the argmax of its scores plus noise and needs no random state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import utils

from sgpipe.stages.caption.decoding import NucleusSampling, draw, process

# Inputs that only the prefix needs; text that follows must not repeat them.
_PREFIX_ONLY = (*getattr(utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ("pixel_values",)), "inputs_embeds")


@dataclass(frozen=True)
class SharedPrefix:
    """For `generate(custom_generate=...)`; returns the tokens of each sample, without the end token.

    `key` has 63 bits that select the noise of the image. The end and the shortest length are those of
    `generation_config`; the repetition penalty counts the tokens of the caption, not those of the prompt.
    """

    key: int
    sampling: NucleusSampling

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> list[list[int]]:
        """`input_ids` [1, prompt] and `inputs` of one image. Raises FloatingPointError: scores are not finite."""
        samples, prompt = self.sampling.samples, input_ids.shape[1]
        scores, inputs = _forward(model, input_ids, inputs, is_first_iteration=True)
        input_ids, inputs = _copied(model, samples, input_ids, inputs)
        scores = scores.expand(samples, -1)
        numbers = torch.arange(samples, device=scores.device)
        keys = torch.full_like(numbers, self.key)
        lengths = torch.full_like(numbers, self.sampling.max_tokens)
        for step in range(self.sampling.max_tokens):
            scores = process(logits_processor(input_ids, scores), input_ids[:, prompt:], self.sampling)
            tokens = draw(scores, self.sampling.top_p, keys, numbers, step)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            ended = _at_end(tokens, generation_config) & (lengths > step)
            lengths = lengths.where(~ended, step)
            if step + 1 == self.sampling.max_tokens or bool((lengths <= step).all()):
                break
            scores, inputs = _forward(model, input_ids, inputs, next_sequence_length=1)
        rows = zip(input_ids[:, prompt:].tolist(), lengths.tolist(), strict=True)
        return [tokens[:length] for tokens, length in rows]


def _forward(model: Any, input_ids: Tensor, inputs: dict[str, Any], **step: Any) -> tuple[Tensor, dict[str, Any]]:
    """Scores of the next token, float32 [rows, vocabulary], and the inputs of the step that follows."""
    output = model(**model.prepare_inputs_for_generation(input_ids, **step, **inputs), return_dict=True)
    later = {name: value for name, value in inputs.items() if name not in _PREFIX_ONLY}
    later = model._update_model_kwargs_for_generation(output, later, is_encoder_decoder=model.config.is_encoder_decoder)
    return output.logits[:, -1].to(copy=True, dtype=torch.float32), later


def _copied(model: Any, samples: int, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """One row as `samples` equal rows, with its cache."""
    input_ids, inputs = model._expand_inputs_for_generation(
        samples, model.config.is_encoder_decoder, input_ids, **inputs
    )
    cache: Any = inputs.get("cache", inputs.get("past_key_values"))
    if samples > 1:
        cache.batch_repeat_interleave(samples)
    return input_ids, inputs


def _at_end(tokens: Tensor, generation_config: Any) -> Tensor:
    ends = generation_config.eos_token_id
    ends = [] if ends is None else torch.as_tensor(ends, device=tokens.device).reshape(-1)
    return torch.isin(tokens, torch.as_tensor(ends, device=tokens.device, dtype=tokens.dtype))
