"""Several images in one forward pass of a model of transformers: their inputs as those of one
batch, and samples of all of them.

A GPU computes images in groups, with which scores differ in their last digits. A CPU computes each
image alone, and the result is reproducible bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature
from transformers.generation import utils

from rlip_model.gpu_memory import send
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.nucleus import check_finite, draw, process

FIRST_WIDTH = 256  # of the likeliest tokens, which contain the nucleus
_STEPS_PER_WAIT = 6
_TOKENS = "input_ids"
# Inputs that only the prefix needs; text that follows must not repeat them.
_PREFIX_ONLY = (
    *getattr(utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ("pixel_values",)),
    "inputs_embeds",
)


def merge_inputs(inputs: Sequence[Mapping[str, Tensor]], padding: int) -> BatchFeature:
    """Return the inputs of single images as those of a batch, as processors make them.

    Tokens, and what there is one of for each token, are padded on the left. The rest, such as
    pixels, is concatenated, and filled with zeros at the end where the sizes differ.

    Args:
        inputs: what a processor returns for one text and one image, of each image.
        padding: the token before a shorter text.

    Raises:
        ValueError: a processor returns something else than tensors.
    """
    if not all(isinstance(part, Tensor) for single in inputs for part in single.values()):
        raise ValueError("the inputs of this model are not tensors, so they cannot be batched")
    lengths = [single[_TOKENS].shape[1] for single in inputs]
    merged = {}
    for name in inputs[0]:
        parts = [single[name] for single in inputs]
        is_of_tokens = all(
            part.shape[:2] == (1, length) for part, length in zip(parts, lengths, strict=True)
        )
        if is_of_tokens:
            fill = padding if name == _TOKENS else 0
            parts = [_padded_on_the_left(part, max(lengths), fill) for part in parts]
        else:
            parts = _of_one_size(parts)
        merged[name] = torch.cat(parts)
    return BatchFeature(merged)


def _padded_on_the_left(part: Tensor, length: int, fill: int) -> Tensor:
    """[1, tokens, ...] to [1, length, ...]."""
    after = [0, 0] * (part.dim() - 2)
    return F.pad(part, (*after, length - part.shape[1], 0), value=fill)


def _of_one_size(parts: Sequence[Tensor]) -> list[Tensor]:
    """Fill with zeros at the end of all dimensions but the first."""
    sizes = [max(side) for side in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        padding = [(0, size - side) for size, side in zip(sizes, part.shape[1:], strict=True)]
        last_first = [number for pair in reversed(padding) for number in pair]
        filled.append(F.pad(part, last_first))
    return filled


def send_inputs(
    inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return inputs on a device, numbers of pixels in this format; the host does not wait for a
    GPU.
    """
    sent = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            value = send(value.to(dtype) if value.is_floating_point() else value, device)
        sent[name] = value
    return sent


def first_scores(model: Any, input_ids: Tensor, *_: Any, **inputs: Any) -> Tensor:
    """Return the scores of the first token, [images, vocabulary]; for
    `generate(custom_generate=...)`.
    """
    for setting in ("logits_processor", "stopping_criteria", "generation_config"):
        inputs.pop(setting, None)
    return _forward(model, input_ids, inputs, is_first_iteration=True)[0]


def sample_nucleus(
    keys: Sequence[int],
    sampling: CaptionConfig,
    samples: int,
    width: int | None,
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> list[list[int]] | None:
    """Return the tokens of nucleus samples of images, without the end token; for
    `generate(custom_generate=...)`.

    The end and both lengths are those of `generation_config`; the repetition penalty counts the
    tokens of the caption, not those of the prompt.

    Args:
        keys: of each image, 63 bits that select its noise.
        samples: of each image.
        width: of the likeliest tokens that are looked at, so that the host seldom waits for a GPU;
            None: as many as needed.
        input_ids: [images, prompt], padded on the left.

    Returns:
        Those of the first image, those of the second, …; None: `width` is not enough.

    Raises:
        ComputationError: scores are not finite.
    """
    images, prompt = input_ids.shape
    max_new_tokens = generation_config.max_new_tokens
    scores, inputs = _forward(model, input_ids, inputs, is_first_iteration=True)
    has_encoder = model.config.is_encoder_decoder
    input_ids, inputs = model._expand_inputs_for_generation(
        samples, has_encoder, input_ids, **inputs
    )
    if samples > 1:
        cache: Any = inputs.get("cache", inputs.get("past_key_values"))
        cache.batch_repeat_interleave(samples)
    scores = scores.repeat_interleave(samples, dim=0)
    device = scores.device
    ends = generation_config.eos_token_id
    ends = send(torch.tensor([] if ends is None else ends, dtype=input_ids.dtype), device)
    ends = ends.reshape(-1)
    numbers = torch.arange(samples, device=device).repeat(images)
    row_keys = send(torch.tensor(keys).repeat_interleave(samples), device)
    lengths = torch.full_like(numbers, max_new_tokens)
    is_sound = torch.ones(2, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        scores = process(logits_processor(input_ids, scores), input_ids[:, prompt:], sampling)
        tokens, *checks = draw(scores, sampling.top_p, row_keys, numbers, step, width)
        is_sound = is_sound & torch.stack(checks)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        ended = torch.isin(tokens, ends) & (lengths > step)
        lengths = lengths.where(~ended, step)
        is_last = step + 1 == max_new_tokens
        if width is None or is_last or step % _STEPS_PER_WAIT == _STEPS_PER_WAIT - 1:
            have_ended = (lengths <= step).all().unsqueeze(0)
            is_over, is_finite, is_wide_enough = torch.cat([have_ended, is_sound]).tolist()
            check_finite(is_finite, sampling)
            if not is_wide_enough:
                return None
            if is_over or is_last:
                break
        scores, inputs = _forward(model, input_ids, inputs, next_sequence_length=1)
    rows = zip(input_ids[:, prompt:].tolist(), lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]


def _forward(
    model: Any, input_ids: Tensor, inputs: dict[str, Any], **step: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Return the scores of the next token, float32 [rows, vocabulary], and the inputs of the step
    that follows.
    """
    output = model(
        **model.prepare_inputs_for_generation(input_ids, **step, **inputs), return_dict=True
    )
    later = {name: value for name, value in inputs.items() if name not in _PREFIX_ONLY}
    later = model._update_model_kwargs_for_generation(
        output, later, is_encoder_decoder=model.config.is_encoder_decoder
    )
    return output.logits[:, -1].to(copy=True, dtype=torch.float32), later
