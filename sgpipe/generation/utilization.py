"""Utilization: the share of time in which the actors of each pool compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sgpipe.generation.pools import Pool


class Utilization:
    """Adds up the seconds that stages computed for each shard.

    Time counts from the start of the first unit, which leaves out starting Ray and loading models. An actor is idle
    while it reads or writes, waits for another pool, or has no unit left.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools
        self.seconds: Counter[str] = Counter()
        self.began, self.ended = math.inf, -math.inf

    def add(self, written: float, seconds: Mapping[str, float]) -> None:
        """A shard: when it was written, in seconds since the epoch, and the seconds each stage computed for it."""
        self.began = min(self.began, written - sum(seconds.values()))
        self.ended = max(self.ended, written)
        self.seconds.update(seconds)

    def __str__(self) -> str:
        elapsed = max(self.ended - self.began, 1e-9)
        shares = []
        for pool in self.pools:
            computed = sum(self.seconds[stage.name] for stage in pool.stages)
            shares.append(f"{pool.name} {computed / (pool.actors * elapsed):.0%}")
        return f"utilization: {', '.join(shares)}"
