"""Listings of prefixes of object stores: the names, sizes and versions of the objects, in an index
that a run keeps.

Several requests list one prefix at once, each a span of names. The driver holds a page of each; the
objects are sorted on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.files.index import (
    NAME,
    ROWS_PER_PART,
    FileIndex,
    IndexFolder,
    IndexReference,
    place_index,
    write_parts,
)
from sgpipe.files.stores import PAGE, ObjectInfo, StorePath
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.console import Progress, count
from sgpipe.utils.database import configure, interruptible

_REQUESTS = 16  # at once
_PARALLEL = "s3://"  # of other stores, a listing that begins behind a name reads all before it
_BEHIND_ALL = "\U0010ffff"
_PLAIN = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_OBJECTS_AT_ONCE = 1 << 16
_ROWS_PER_BATCH = 1 << 17
_MEMORY = "256MB"
_COLUMNS = pa.schema({NAME: pa.large_string(), "size": pa.int64(), "version": pa.large_string()})
_LISTED = _COLUMNS.append(pa.field("modified", pa.float64()))
_SORTED = "SELECT name, size, version FROM read_parquet(?) ORDER BY name, modified, size, version"
_DIFFERENCES = """
    SELECT
        count(*) FILTER (before.name IS NULL),
        count(*) FILTER (now.name IS NULL),
        count(*) FILTER (
            before.name = now.name
            AND (before.size, before.version) IS DISTINCT FROM (now.size, now.version)
        )
    FROM before FULL JOIN now ON before.name = now.name
"""


def prefix_index(text: str, prefix: StorePath, indexes: IndexFolder) -> IndexReference:
    """Return the index of a prefix as the run listed it before, or as it is now if it did not, or
    lists it again. Says what has changed.
    """
    say = indexes.progress.say
    before = indexes.kept_reference(text)
    if before is None:
        return _listed(text, prefix, indexes)
    when = indexes.kept[text].listed
    if indexes.relists:
        reference = _listed(text, prefix, indexes)
        changes = differences(before.opened, reference.opened)
        if changes:
            say(f"NOTE: {text} has changed since {when}: {changes}")
        return reference
    say(f"{text} was listed {when}: {count(len(before.opened), 'object')}; --relist lists it again")
    if _starts_otherwise(prefix, before.opened):
        say(f"NOTE: {text} has changed since; --relist takes the objects that it has now")
    return before


def _starts_otherwise(prefix: StorePath, index: FileIndex) -> bool:
    """Return whether one of the first objects is not in the index as it is now."""
    for info in islice(prefix.list(), PAGE):
        now = {"name": info.name, "size": info.size, "version": info.version}
        if now not in index.find(info.name):
            return True
    return False


def differences(before: FileIndex, now: FileIndex) -> str:
    """Return how many objects are new, gone and replaced, in words; "": none."""
    with temporary_folder() as folder, interruptible(), duckdb.connect() as database:
        configure(database, folder, _MEMORY)
        for name, index in (("before", before), ("now", now)):
            database.register(name, pa.concat_tables(index.tables()))
        [numbers] = database.sql(_DIFFERENCES).fetchall()
    states = zip(numbers, ("new", "gone", "replaced"), strict=True)
    return ", ".join(f"{number:,} {state}" for number, state in states if number)


def _listed(text: str, prefix: StorePath, indexes: IndexFolder) -> IndexReference:
    """List a prefix; return its index, which is in this machine's cache."""
    indexes.progress.say(f"listing {text}")
    cache = indexes.reference("").path.parent
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder(cache) as folder:
        _write_pages(folder / "listed.parquet", listed_pages(prefix), indexes.progress)
        parts = sorted_parts(folder / "listed.parquet", folder)
        digest = write_parts(folder / "index", parts, {})
        reference = indexes.reference(digest)
        if not reference.exists:
            place_index(folder / "index", reference.path)
    return reference


def listed_pages(prefix: StorePath) -> Iterator[Sequence[ObjectInfo]]:
    """Yield the objects of a prefix in any order, in S3 by several requests at once.

    A store that does not sort its objects is listed by one request after the other, after which
    some objects have come twice.
    """
    if prefix.uri.startswith(_PARALLEL):
        try:
            yield from _parallel_pages(prefix)
        except _UnsortedError:
            pass
        else:
            return
    yield from prefix.pages()


class _UnsortedError(Exception):
    """A store does not sort its objects."""


@dataclass(eq=False)
class _Span:
    """The names behind `after`, up to `stop`, that are still to be listed.

    Attributes:
        pages: that have come.
        upper: the half that was split off last.
    """

    after: str = ""
    stop: str = _BEHIND_ALL
    pages: int = 0
    upper: _Span | None = None

    @property
    def splits(self) -> bool:
        """Whether something is in it, and it is known whether something is in its last half."""
        return self.pages > 0 and (self.upper is None or self.upper.pages > 0)

    def split(self) -> _Span | None:
        """Split off the upper half; None: there are no plain names in it."""
        middle = name_between(self.after, self.stop)
        if middle is None:
            return None
        self.upper = _Span(middle, self.stop)
        self.stop = middle
        return self.upper

    def take(self, page: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        """Return the objects of a page that are in the span, which goes on behind them.

        Raises:
            _UnsortedError: they are not sorted, or not behind `after`.
        """
        names = [info.name for info in page]
        is_behind = not names or names[0] > self.after
        if names != sorted(names) or not is_behind:
            raise _UnsortedError
        self.pages += 1
        objects = [info for info in page if info.name <= self.stop]
        is_last = len(page) < PAGE - 1 or len(objects) < len(page)
        self.after = self.stop if is_last else names[-1]
        return objects


def name_between(after: str, stop: str) -> str | None:
    """Return a name about halfway between two, or None if there is none of plain characters."""
    common = 0
    while after[common : common + 1] == stop[common]:
        common += 1
    limit = stop[common]
    for depth in range(common, len(after) + 1):
        lower = after[depth : depth + 1]
        choices = [character for character in _PLAIN if lower < character < limit]
        if choices:
            return after[:depth] + choices[len(choices) // 2]
        limit = _BEHIND_ALL
    return None


def _parallel_pages(prefix: StorePath) -> Iterator[Sequence[ObjectInfo]]:
    """Yield the objects by pages; spans are split as long as requests are idle."""

    def first_page(after: str) -> Sequence[ObjectInfo]:
        return next(prefix.pages(after), [])

    with ThreadPoolExecutor(_REQUESTS, "listing") as pool:
        spans: dict[Future[Sequence[ObjectInfo]], _Span] = {pool.submit(first_page, ""): _Span()}
        while spans:
            done, _ = wait(spans, return_when=FIRST_COMPLETED)
            for page in done:
                span = spans.pop(page)
                yield span.take(page.result())
                if span.after < span.stop:
                    spans[pool.submit(first_page, span.after)] = span
            splitting = [span for span in spans.values() if span.splits]
            for span in splitting[: _REQUESTS - len(spans)]:
                upper = span.split()
                if upper is not None:
                    spans[pool.submit(first_page, upper.after)] = upper


def _write_pages(path: Path, pages: Iterator[Sequence[ObjectInfo]], progress: Progress) -> None:
    """Write the objects of pages into a Parquet file, as they come."""
    objects: list[ObjectInfo] = []
    with (
        pq.ParquetWriter(path, _LISTED) as writer,
        progress.images(None, "listing") as advance,
    ):
        for page in pages:
            objects += page
            if len(objects) >= _OBJECTS_AT_ONCE:
                writer.write_table(_table(objects))
                advance(len(objects), {})
                objects = []
        writer.write_table(_table(objects))


def _table(objects: Sequence[ObjectInfo]) -> pa.Table:
    """Return objects in Arrow's memory, with when they were modified."""
    columns = {
        NAME: [info.name for info in objects],
        "size": [info.size for info in objects],
        "version": [info.version for info in objects],
        "modified": [info.modified and info.modified.timestamp() for info in objects],
    }
    return pa.table(columns, _LISTED)


def sorted_parts(path: Path, folder: Path) -> Iterator[pa.Table]:
    """Yield listed objects by name, those of a part of an index at a time; of several of one name,
    the one that was modified last.

    Args:
        folder: for what does not fit into memory.
    """
    with interruptible(), duckdb.connect() as database:
        configure(database, folder / "sorting", _MEMORY, ordered=True)
        objects = database.sql(_SORTED, params=[str(path)])
        waiting = _COLUMNS.empty_table()
        for table in _last_of_name(objects.to_arrow_reader(_ROWS_PER_BATCH)):
            waiting = pa.concat_tables([waiting, table])
            if len(waiting) >= ROWS_PER_PART:
                yield waiting.slice(0, ROWS_PER_PART)
                waiting = waiting.slice(ROWS_PER_PART)
        if len(waiting):
            yield waiting


def _last_of_name(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield sorted rows without those that are before one of the same name."""
    last = _COLUMNS.empty_table()
    for batch in batches:
        rows = pa.concat_tables([last, pa.Table.from_batches([batch]).cast(_COLUMNS)])
        names = rows[NAME].combine_chunks()
        is_last = pc.not_equal(names[:-1], names[1:])
        yield rows[:-1].filter(is_last)
        last = rows[-1:]
    yield last
