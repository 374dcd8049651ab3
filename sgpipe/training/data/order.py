"""The order in which an epoch visits the rows.

Row groups are shuffled. A window of several row groups is in memory at a time, and its rows are shuffled together.
Every random choice has its own generator, seeded by what it chooses. So a reader can jump to any position of any
epoch, and the order does not depend on which worker reads how much.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import numpy as np

from sgpipe.training.data.training_set import TrainingSet


def generator(*key: object) -> random.Random:
    """A random generator seeded by the key, the same on every machine."""
    return random.Random(" ".join(map(str, key)))


@dataclass(frozen=True)
class Visit:
    """A visit to `rows` of the usable rows of a row group (an index into those of the training set)."""

    row_group: int
    rows: int


@dataclass(frozen=True)
class Epoch:
    """Visits, grouped into windows.

    Args:
        window: visits per window.
        key: seeds the generators that shuffle windows; None: rows stay in the order of the shards.
        step: rows per step, if those of a step are to be similar.
    """

    visits: tuple[Visit, ...]
    window: int
    key: str | None
    step: int | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self.visits else 0

    @cached_property
    def _ends(self) -> list[int]:
        """Number of rows up to the end of each window."""
        rows = [sum(visit.rows for visit in self.visits[at : at + self.window]) for at in self._starts]
        return list(accumulate(rows))

    @property
    def _starts(self) -> range:
        return range(0, len(self.visits), self.window)

    def find(self, position: int) -> tuple[int, int]:
        """The window that contains the row at this position, and the row's position in the window."""
        window = bisect_right(self._ends, position)
        return window, position - (self._ends[window - 1] if window else 0)

    def visits_of(self, window: int) -> Sequence[Visit]:
        """The visits of a window; empty after the last window."""
        return self.visits[window * self.window : (window + 1) * self.window]

    def order(
        self, window: int, usable: Sequence[Sequence[int]], shapes: Sequence[np.ndarray] = ()
    ) -> list[tuple[int, int]]:
        """The rows of a window in order, as (index of the visit in the window, row of its table).

        Args:
            usable: for each visit, the usable rows of its table.
            shapes: for each visit, a number for each row of its table, equal for similar rows; needed with `step`.
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
        return drawn if self.step is None else self._similar(window, drawn, shapes, rng)

    def _similar(
        self, window: int, drawn: list[tuple[int, int]], shapes: Sequence[np.ndarray], rng: random.Random
    ) -> list[tuple[int, int]]:
        """The rows sorted by shape, cut into steps, and the steps shuffled. Steps of two windows stay as drawn."""
        assert self.step is not None
        first = min(-(self._ends[window - 1] if window else 0) % self.step, len(drawn))
        last = len(drawn) - (len(drawn) - first) % self.step
        inner = sorted(drawn[first:last], key=lambda place: float(shapes[place[0]][place[1]]))
        steps = [inner[at : at + self.step] for at in range(0, len(inner), self.step)]
        rng.shuffle(steps)
        return [*drawn[:first], *chain.from_iterable(steps), *drawn[last:]]


def one_pass(training_set: TrainingSet) -> Epoch:
    """All usable rows once, in the order of the shards, whatever the weights of the folders."""
    return Epoch(tuple(Visit(index, each.rows) for index, each in enumerate(training_set.row_groups)), 1, None)


def shuffled_epoch(training_set: TrainingSet, window: int, seed: int, epoch: int, step: int | None = None) -> Epoch:
    """A shuffled epoch that passes over every folder as often as its weight says.

    With weight 2.5, an epoch visits all rows of a row group twice and half of them a third time; the half differs
    between epochs. The number of rows is the same in every epoch.

    Args:
        step: see `Epoch`.
    """
    rng = generator("visits", seed, epoch)
    visits = []
    for index, folder in enumerate(training_set.folders):
        own = [Visit(number, each.rows) for number, each in enumerate(training_set.row_groups) if each.folder == index]
        rng.shuffle(own)
        whole = int(folder.weight)
        visits += own * whole + _fraction(own, folder.weight - whole)
    rng.shuffle(visits)
    return Epoch(tuple(visits), window, f"{seed} {epoch}", step)


def _fraction(visits: Sequence[Visit], fraction: float) -> list[Visit]:
    """The same visits to a fraction of the rows, rounded so that the sum is the fraction of all rows."""
    ends = [round(end * fraction) for end in accumulate((visit.rows for visit in visits), initial=0)]
    parts = [Visit(visit.row_group, end - start) for visit, start, end in zip(visits, ends, ends[1:], strict=False)]
    return [part for part in parts if part.rows]
