"""Nucleus sampling with random numbers that depend on nothing but the image, the sample and the step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sgpipe.errors import ComputationError
from sgpipe.recipe import CaptionConfig

_UINT32 = 0xFFFFFFFF


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

    Equally likely tokens at the edge are taken by their ids.

    Args:
        width: how many of the most likely tokens to look at; None: as many as needed, which the
            host waits for.

    Returns:
        Tokens `[rows, width + 1]`, ascending, or fewer without a width; which of them are kept; and
        whether `width` is enough in all rows.
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
