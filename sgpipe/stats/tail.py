"""How unevenly relations are spread over predicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HEAD = 10


@dataclass(frozen=True)
class Tail:
    """The long tail of a frequency table.

    Attributes:
        kinds: how many there are; `total`: the sum of their counts.
        head_share: share of the total that the ten most frequent have.
        half: how many of the most frequent have half of the total.
        singletons: kinds that occur once.
        gini: 0 where all are equally frequent, towards 1 where one has everything.
        entropy: in bits; `effective_kinds` is 2 to its power.
    """

    kinds: int
    total: int
    head_share: float
    half: int
    singletons: int
    gini: float
    entropy: float
    effective_kinds: float


def measure_tail(counts: Sequence[int]) -> Tail:
    """The long tail of these counts, in any order."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total = ordered.sum()
    if not total:
        return Tail(0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0)
    shares = ordered / total
    ranks = np.arange(len(ordered), 0, -1)  # 1 for the rarest
    gini = (2 * (ranks * shares).sum() - (len(ordered) + 1)) / len(ordered)
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) + 0.0  # no -0.0
    return Tail(
        kinds=len(ordered),
        total=int(total),
        head_share=float(shares[:_HEAD].sum()),
        half=int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-12)) + 1,
        singletons=int((ordered == 1).sum()),
        gini=float(gini),
        entropy=entropy,
        effective_kinds=2.0**entropy,
    )
