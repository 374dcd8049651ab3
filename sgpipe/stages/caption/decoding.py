"""Exact nucleus sampling with counter-based noise.

Nucleus sampling: Holtzman et al., ICLR 2020. A sample is the argmax of the kept tokens' scores plus Gumbel noise, and
the noise of a token is a pure function of (image, sample, step, token). It is therefore the same on every device, in
every batch and in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgpipe.recipe import CaptionConfig

_UINT32 = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four random words from four counter and two key words.

    All are int64 tensors of values in [0, 2**32) that broadcast together.
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around; after masking, both halves are correct.
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b = ((right >> 32) & _UINT32) ^ b ^ k0, right & _UINT32
        c, d = ((left >> 32) & _UINT32) ^ d ^ k1, left & _UINT32
        k0, k1 = (k0 + 0x9E3779B9) & _UINT32, (k1 + 0xBB67AE85) & _UINT32
    return a, b, c, d


def gumbel(keys: Tensor, samples: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise (float64) of each (key, sample, step, token); `keys` hold 63 random bits."""
    counter = (tokens, torch.full_like(tokens, step), samples, torch.zeros_like(tokens))
    high, low, _, _ = philox(counter, (keys & _UINT32, keys >> 32))
    uniform = ((high >> 5) * 2**26 + (low >> 6) + 0.5).double() * 2**-53
    return -torch.log(-torch.log(uniform))


def process(scores: Tensor, tokens: Tensor, sampling: CaptionConfig, end: int | None = None) -> Tensor:
    """The scores [rows, vocabulary] from which a nucleus is taken; -inf for tokens that cannot follow.

    Applies in this order, as transformers does: repetition penalty (Keskar et al., 2019, as CTRL's code), minimum
    length, temperature, top_k. Tokens that tie with the last of the top_k stay.

    `tokens`: all tokens so far, int64 [rows, length], with [DEC] and the prompt; the penalty counts each once. `end`:
    the token that captions shorter than `min_tokens` do not get; None: of any length they may end.
    """
    if sampling.repetition_penalty != 1:
        seen, penalty = scores.gather(1, tokens), sampling.repetition_penalty
        scores = scores.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))
    if end is not None and tokens.shape[1] < sampling.min_tokens:
        scores = scores.index_fill(1, torch.tensor([end], device=scores.device), -torch.inf)
    scores = scores / sampling.temperature
    if sampling.top_k:
        last = scores.topk(min(sampling.top_k, scores.shape[1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < last, -torch.inf)
    return scores


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The kept tokens, bool [rows, vocabulary]: the smallest set of most likely tokens that reaches `top_p`.

    Equally likely tokens at the edge are taken in the order of their ids.
    """
    if top_p == 1:  # rounded sums may reach 1 before the last token
        return scores > -torch.inf
    probabilities = scores.softmax(dim=-1)
    # All tokens below this probability sum to less than 1 - top_p, so none is kept and none needs sorting.
    negligible = (1 - top_p) / scores.shape[-1]
    most = max(1, int((probabilities > negligible).sum(dim=-1).max()))
    likeliest = probabilities.topk(most, dim=-1).values.double()
    before = likeliest.cumsum(dim=-1) - likeliest
    kept = (before < top_p).sum(dim=-1, keepdim=True)
    edge = likeliest.gather(-1, kept - 1)
    above, at = probabilities > edge, probabilities == edge
    room = kept - above.sum(dim=-1, keepdim=True)
    return above | (at & (at.cumsum(dim=-1) <= room))


def draw(scores: Tensor, top_p: float, keys: Tensor, samples: Tensor, step: int) -> Tensor:
    """Sample a token of the nucleus for each row of [rows, vocabulary]; `keys` and `samples` select the noise.

    Raises FloatingPointError: a row has no finite largest score.
    """
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise FloatingPointError(
            "the captioner's scores are not finite: its weights are damaged, or caption.temperature or "
            "caption.repetition_penalty is close to 0"
        )
    rows, tokens = nucleus(scores, top_p).nonzero(as_tuple=True)
    noisy = torch.full_like(scores, -torch.inf, dtype=torch.float64)
    noisy[rows, tokens] = scores[rows, tokens].double() + gumbel(keys[rows], samples[rows], step, tokens)
    return noisy.argmax(dim=-1)
