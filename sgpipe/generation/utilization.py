"""How busy the actors of a run are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sgpipe.generation.ray_engine import Pool


class BusyMeter:
    """Adds up what the stages took for each shard.

    Time counts from when the first unit was begun, so that starting Ray and loading models is left out. Idle is
    reading and writing, waiting for another pool, and having nothing left to do while others finish.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools
        self.seconds: Counter[str] = Counter()
        self.began, self.ended = math.inf, -math.inf

    def add(self, written: float, seconds: Mapping[str, float]) -> None:
        """A shard that was written at a time, in seconds since some day, and for which the stages took so long."""
        self.began = min(self.began, written - sum(seconds.values()))
        self.ended = max(self.ended, written)
        self.seconds.update(seconds)

    @property
    def text(self) -> str:
        """The share of each pool, of all its actors together."""
        elapsed = max(self.ended - self.began, 1e-9)
        shares = []
        for pool in self.pools:
            computed = sum(self.seconds[stage.name] for stage in pool.stages)
            names = " + ".join(stage.name for stage in pool.stages)
            shares.append(f"{names} {computed / (pool.actors * elapsed):.0%}")
        return f"busy once started: {', '.join(shares)}"
