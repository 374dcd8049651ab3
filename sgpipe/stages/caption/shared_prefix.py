"""Many prompts with one beginning: a model computes that once, and what follows as a batch."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 32  # prompts that are computed at once, if the memory of the GPU suffices
# inputs with a number for each token
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class SharedPrompts:
    """What a model reads of several prompts about one image.

    Attributes:
        prefix: the inputs of the image, and of the tokens that all prompts begin with.
        endings: the tokens that follow in each prompt, at least one.
    """

    prefix: Mapping[str, Any]
    endings: list[list[int]]


def full_prompts(first: list[int], texts: list[list[int]]) -> list[list[int]]:
    """Return the tokens of each prompt with those of the image.

    Args:
        first: the tokens of the first prompt as the processor makes them, with many for the image.
        texts: the tokens of the text of each prompt, with a mark in place of the image, which is
            in what they share.

    Raises:
        ValueError: the processor changes more of a text than the mark.
    """
    common = common_length(texts)
    ending = texts[0][common:]
    start = first[: len(first) - len(ending)]
    if [*start, *ending] != first:
        raise ValueError("its processor writes a prompt otherwise than its tokenizer")
    return [[*start, *text[common:]] for text in texts]


def share_prompts(inputs: Mapping[str, Any], prompts: list[list[int]]) -> SharedPrompts:
    """Return prompts as what they share and what they do not.

    Args:
        inputs: of the first, by the processor.
    """
    shared = min(common_length(prompts), min(map(len, prompts)) - 1)
    prefix = dict(inputs)
    for name in prefix.keys() & set(_OF_TOKENS):
        prefix[name] = inputs[name][:, :shared]
    return SharedPrompts(prefix, [prompt[shared:] for prompt in prompts])


def common_length(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    # What these two begin with, all do that are sorted between them.
    first = min(rows)
    last = max(rows)
    for at, (token, other) in enumerate(zip(first, last, strict=False)):
        if token != other:
            return at
    return min(len(first), len(last))


def begin(model: Any, prefix: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what prompts share.

    Returns:
        The model's cache, by the name of its argument.
    """
    output = model(**prefix, use_cache=True, return_dict=True, logits_to_keep=1)
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name]}


def end(model: Any, begun: Mapping[str, Any], endings: Sequence[list[int]]) -> Tensor:
    """Return the scores of the token after each prompt, `[endings, vocabulary]`.

    Shorter endings repeat their last token, which no token before it sees.
    """
    longest = max(map(len, endings))
    padded = [[*tokens, *tokens[-1:] * (longest - len(tokens))] for tokens in endings]
    caches = copy.deepcopy(dict(begun))
    first_row = torch.zeros(len(padded), dtype=torch.long, device=model.device)
    for cache in caches.values():
        cache.reorder_cache(first_row)  # which layers with a recurrent state have, too
    scored = longest - min(map(len, endings)) + 1
    output = model(
        input_ids=torch.tensor(padded, device=model.device),
        **caches,
        use_cache=True,
        return_dict=True,
        logits_to_keep=scored,
    )
    last = [len(tokens) - 1 - (longest - scored) for tokens in endings]
    scores: Tensor = output.logits[range(len(last)), last]
    return scores
