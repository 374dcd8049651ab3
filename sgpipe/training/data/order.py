"""The order in which an epoch goes through the rows.

Row groups are shuffled; a window of some of them is in memory at a time, and its rows are shuffled together. Each
random choice has a generator of its own, known by what it chooses. So any place of any epoch can be gone to at once,
and nothing depends on who reads how much.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from sgpipe.training.data.contents import TrainSet


def generator(*key: object) -> random.Random:
    """The random numbers of this key, the same on every machine."""
    return random.Random(" ".join(map(str, key)))


@dataclass(frozen=True)
class Visit:
    """`rows` of the usable rows of a chunk (index into the chunks of the set), in an epoch that visits it."""

    chunk: int
    rows: int


@dataclass(frozen=True)
class Epoch:
    """Windows of visits, one after the other.

    Args:
        key: of the generators that shuffle windows; None to leave rows in the order of the shards.
    """

    visits: tuple[Visit, ...]
    window: int
    key: str | None

    def __len__(self) -> int:
        """Rows."""
        return self._ends[-1] if self.visits else 0

    @cached_property
    def _ends(self) -> list[int]:
        """The rows up to the end of each window."""
        rows = [sum(visit.rows for visit in self.visits[at : at + self.window]) for at in self._starts]
        return list(accumulate(rows))

    @property
    def _starts(self) -> range:
        return range(0, len(self.visits), self.window)

    def find(self, position: int) -> tuple[int, int]:
        """The window that holds the row at this position, and the row's position in it."""
        window = bisect_right(self._ends, position)
        return window, position - (self._ends[window - 1] if window else 0)

    def visits_of(self, window: int) -> Sequence[Visit]:
        """Empty after the last window."""
        return self.visits[window * self.window : (window + 1) * self.window]

    def order(self, window: int, usable: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """The rows of a window as (visit of the window, row of its table), in order.

        Args:
            usable: for each visit, the usable rows of its table.
        """
        if self.key is None:
            return [(visit, row) for visit, rows in enumerate(usable) for row in rows]
        rng = generator("window", self.key, window)
        drawn = [
            (index, row)
            for index, (visit, rows) in enumerate(zip(self.visits_of(window), usable, strict=True))
            for row in (rows if visit.rows == len(rows) else rng.sample(rows, visit.rows))
        ]
        rng.shuffle(drawn)
        return drawn


def one_pass(trainset: TrainSet) -> Epoch:
    """All usable rows in the order of the shards, whatever the weights."""
    return Epoch(tuple(Visit(number, chunk.rows) for number, chunk in enumerate(trainset.chunks)), 1, None)


def shuffled_epoch(trainset: TrainSet, window: int, seed: int, epoch: int) -> Epoch:
    """Every folder as often as it weighs, in an order of the epoch's own.

    Of weight 2.5, two visits are to all rows of a chunk and one is to half of them, other ones in every epoch. How
    many rows an epoch has does not depend on the epoch.
    """
    rng = generator("visits", seed, epoch)
    visits = []
    for number, folder in enumerate(trainset.folders):
        chunks = [Visit(index, chunk.rows) for index, chunk in enumerate(trainset.chunks) if chunk.folder == number]
        rng.shuffle(chunks)
        whole = int(folder.weight)
        visits += chunks * whole + _share(chunks, folder.weight - whole)
    rng.shuffle(visits)
    return Epoch(tuple(visits), window, f"{seed} {epoch}")


def _share(visits: Sequence[Visit], share: float) -> list[Visit]:
    """The same visits to a part of the rows; rounded such that the sum is the part of all rows."""
    ends = [round(end * share) for end in accumulate((visit.rows for visit in visits), initial=0)]
    parts = [Visit(visit.chunk, end - start) for visit, start, end in zip(visits, ends, ends[1:], strict=False)]
    return [part for part in parts if part.rows]
