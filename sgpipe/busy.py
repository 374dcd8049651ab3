"""How busy the actors of a run are."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sgpipe.engine import Pool


class BusyMeter:
    """Adds up what the stages took for each shard.

    Time counts from when the first unit was begun, so that starting Ray and loading models is left out. Idle is
    reading and writing, waiting for another pool, and having nothing left to do while others finish.
    """

    def __init__(self, pools: Sequence[Pool], clock: Callable[[], float] = time.monotonic) -> None:
        self.pools, self.clock = pools, clock
        self.seconds: Counter[str] = Counter()
        self.began, self.ended = math.inf, -math.inf

    def add(self, seconds: Mapping[str, float]) -> None:
        """A shard is there now, for which the stages took so long."""
        self.ended = self.clock()
        self.began = min(self.began, self.ended - sum(seconds.values()))
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
