"""In which order an epoch visits the rows of a training set, and who reads them.

Row groups are shuffled, and those of a window, which are in memory together, share a second shuffle
of their rows. An epoch can be divided into lanes of whole row groups, which supply the same places
of every step: who computes only these places reads only their lanes, and of others at most the
columns with names. Every random choice has its own generator, seeded by what it chooses, so that a
reader can jump to any position.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import pyarrow as pa

from sgpipe.files.locations import location
from sgpipe.files.stores import is_uri
from sgpipe.storage.shards import IMAGE_COLUMN, read_row_group
from sgpipe.training.data.scan import TrainingSet, UsableRowGroup
from sgpipe.utils.prefetch import prefetch

_FETCHED = 8  # row groups of a store at once
_LANE_WINDOW = 2
_RELATION = "relations.list.element"
_OBJECT = "objects.list.element"
# What the names of an image, also of a flipped or judged one, depend on.
NAME_COLUMNS = (
    "image_id",
    "split",
    f"{_OBJECT}.category",
    f"{_OBJECT}.iscrowd",
    f"{_RELATION}.subject",
    f"{_RELATION}.object",
    f"{_RELATION}.predicate",
    f"{_RELATION}.confidence",
    f"{_RELATION}.origin",
)
ROW_COLUMNS = (
    *NAME_COLUMNS,
    "dataset",
    "file_name",
    "width",
    "height",
    f"{_OBJECT}.bbox.list.element",
)
RowValues: TypeAlias = dict[str, Any]  # of a shard, by column


def generator(*key: object) -> random.Random:
    """Return a random generator seeded by the key, the same on every machine."""
    return random.Random(" ".join(map(str, key)))


@dataclass(frozen=True)
class Epoch:
    """Visits to usable rows of row groups.

    Attributes:
        visits: row groups, each with the number of rows to use
        window: number of visits whose rows are shuffled together
        key: of the shuffle; None: in their order
    """

    visits: tuple[UsableRowGroup, ...]
    window: int = 1
    key: str | None = None

    def __len__(self) -> int:
        return self.ends[-1]

    @cached_property
    def ends(self) -> list[int]:
        """The number of rows before each window, and of all."""
        starts = range(0, len(self.visits), self.window)
        rows = (sum(visit.rows for visit in self.visits[at : at + self.window]) for at in starts)
        return list(accumulate(rows, initial=0))

    def order(self, window: int, usable: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Return the rows of a window in order, as (index of the visit, row of its table).

        Args:
            usable: usable rows of each visit
        """
        order: list[tuple[int, int]] = []
        if self.key is None:
            for visit_index, rows in enumerate(usable):
                order += [(visit_index, row) for row in rows]
            return order
        rng = generator("window", self.key, window)
        visits = self.visits[window * self.window :]
        for index, (visit, rows) in enumerate(zip(visits, usable, strict=False)):
            chosen = rows if visit.rows == len(rows) else rng.sample(rows, visit.rows)
            order += [(index, row) for row in chosen]
        rng.shuffle(order)
        return order


def shuffled_epoch(training_set: TrainingSet, window: int, seed: int, epoch: int) -> Epoch:
    """Return a shuffled epoch that passes over every folder as often as its weight says.

    With weight 2.5, an epoch visits all rows of a row group twice and a random half of them,
    another one in each epoch, a third time.
    """
    rng = generator("visits", seed, epoch)
    visits: list[UsableRowGroup] = []
    for index, folder in enumerate(training_set.folders):
        row_groups = [group for group in training_set.row_groups if group.folder == index]
        rng.shuffle(row_groups)
        passes = int(folder.weight)
        visits += row_groups * passes
        visits += _fraction(row_groups, folder.weight - passes)
    rng.shuffle(visits)
    return Epoch(tuple(visits), window, f"{seed} {epoch}")


def _fraction(row_groups: Sequence[UsableRowGroup], share: float) -> list[UsableRowGroup]:
    """Return the row groups with a share of their rows, rounded so that the sum is that of all."""
    totals = accumulate((group.rows for group in row_groups), initial=0)
    ends = [round(total * share) for total in totals]
    parts = []
    for group, (start, end) in zip(row_groups, pairwise(ends), strict=True):
        if end > start:
            parts.append(replace(group, rows=end - start))
    return parts


def divide(epoch: Epoch, sizes: Sequence[int], steps: int) -> list[Epoch]:
    """Return lanes of an epoch, which have no row in common.

    A lane has whole row groups, but for those on its borders, whose rows are divided at random. Its
    window is its part of the epoch's window, but at least two row groups; one, if a lane has one row
    in a step, as the rows of a step are then of different lanes anyway.

    Args:
        sizes: rows of each lane in a step; a single lane is the epoch itself
        steps: steps of the epoch, which has rows for all of them
    """
    if len(sizes) == 1:
        return [epoch]
    fewest = min(max(sizes), _LANE_WINDOW)
    window = max(fewest, -(-epoch.window // len(sizes)))
    visits = deque(epoch.visits)
    lanes = []
    for number, size in enumerate(sizes):
        key = f"{epoch.key} {number}"
        lane = _take_rows(visits, size * steps, generator("lane", key))
        lanes.append(Epoch(lane, window, key))
    return lanes


def _take_rows(
    visits: deque[UsableRowGroup], rows: int, rng: random.Random
) -> tuple[UsableRowGroup, ...]:
    """Take visits with this many rows from the left; what is left of the last one remains there."""
    taken = []
    missing = rows
    while missing:
        visit = visits.popleft()
        if visit.rows > missing:
            visit, remainder = visit.divided(missing, rng)
            visits.appendleft(remainder)
        taken.append(visit)
        missing -= visit.rows
    return tuple(taken)


@dataclass(frozen=True)
class EpochRow:
    """A row of an epoch in the table of its row group.

    Attributes:
        folder: number of its folder
    """

    folder: int
    table: pa.Table
    row: int

    def values(self) -> RowValues:
        """Return the values of all columns that were read; the image, if any, remains in Arrow."""
        table = self.table
        if IMAGE_COLUMN not in table.column_names:
            return _row_values(table, self.row)
        values = _row_values(table.drop_columns([IMAGE_COLUMN]), self.row)
        values[IMAGE_COLUMN] = table[IMAGE_COLUMN][self.row]
        return values


def _row_values(table: pa.Table, row: int) -> RowValues:
    values: RowValues = table.slice(row, 1).to_pylist()[0]
    return values


class RowGroupReader:
    """Reads row groups of shards; one that is in use is not read again.

    Args:
        only_names: read `NAME_COLUMNS`; otherwise `ROW_COLUMNS` and images, if any
    """

    def __init__(self, *, only_names: bool = False) -> None:
        self._columns = NAME_COLUMNS if only_names else ROW_COLUMNS
        self._optional = () if only_names else (IMAGE_COLUMN,)
        self._tables: WeakValueDictionary[tuple[str, int], pa.Table] = WeakValueDictionary()

    def read(self, visit: UsableRowGroup) -> pa.Table:
        """Return the table of a row group.

        Raises:
            UserError, StoreError: the shard is lost or changed
        """
        key = visit.file, visit.group
        table = self._tables.get(key)
        if table is None:
            path = location(visit.file)
            table = read_row_group(path, visit.group, self._columns, self._optional)
            self._tables[key] = table
        return table


def iter_epoch(
    training_set: TrainingSet,
    epoch: Epoch,
    position: int = 0,
    reader: RowGroupReader | None = None,
    lanes: int = 1,
) -> Iterator[EpochRow]:
    """Yield the rows of an epoch, or of a lane, from a position on.

    Args:
        lanes: number of lanes that are read together, which share the requests to a store

    Raises:
        UserError, StoreError: a shard is lost or changed
    """
    reader = reader or RowGroupReader()
    window = bisect_right(epoch.ends, position) - 1
    visits = epoch.visits[window * epoch.window :]
    skipped = position - epoch.ends[window]
    in_store = any(is_uri(folder.root) for folder in training_set.folders)
    threads = -(-_FETCHED // lanes) if in_store else 0  # they read one window in advance
    with prefetch(reader.read, visits, threads, epoch.window + 1) as read_tables:
        for start in range(0, len(visits), epoch.window):
            window_visits = visits[start : start + epoch.window]
            tables = list(islice(read_tables, epoch.window))
            usable = []
            for visit, table in zip(window_visits, tables, strict=True):
                usable.append(visit.usable_rows(len(table)))
            for index, row in epoch.order(window, usable)[skipped:]:
                yield EpochRow(window_visits[index].folder, tables[index], row)
            window += 1
            skipped = 0
