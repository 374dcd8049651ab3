"""SQL over a run: its shards as tables of an in-process DuckDB, which reads them from disk as needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.files.remote import ShardFileSystem, name_of, uri_of
from sgpipe.records import SCHEMA
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import AGREEMENT, IMAGE_COLUMN, OPINION, open_shard
from sgpipe.utils.locking import temporary_folder

_MEMORY = "800MB"  # beyond it, DuckDB spills to disk
_THREADS = 8  # more do not fit into that memory
_OPENED = 16  # shards of a store at once
# These errors are bugs in a query; all others come from the files or the disk.
_BUGS = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)

_TABLES = (
    # Names as enums: tables and groups take a fraction of the memory that strings take.
    """create type category as enum (
        select distinct name from (select unnest(objects).category as name from records)
        where name is not null order by name)""",
    """create type predicate as enum (
        select distinct name from (select unnest(relations).predicate as name from records)
        where name is not null order by name)""",
    """create table images as
    select image, image_id, dataset, split, status, error,
        coalesce(len(objects), 0) as objects, coalesce(len(captions), 0) as captions,
        coalesce(list_unique(list_transform(captions, lambda c: c.text)), 0) as different_captions,
        coalesce(len(triplets), 0) as triplets, coalesce(len(list_filter(triplets,
            lambda t: t.subject_category is not null and t.object_category is not null)), 0) as matched_triplets,
        coalesce(len(pairs), 0) as pairs,
        coalesce(list_sum(list_transform(pairs, lambda p: len(p.predicates))), 0) as candidate_texts,
        coalesce(len(relations), 0) as relations
    from records""",
    """create table objects as
    select image, number, object.category::category as category, object.iscrowd, object.bbox[1] as x,
        object.bbox[2] as y, object.bbox[3] as w, object.bbox[4] as h
    from (select image, unnest(objects) as object, unnest(range(len(objects)))::int as number from records)""",
    """create view captions as
    select image, caption.text as caption, caption.scope, caption.boxes
    from (select image, unnest(captions) as caption from records)""",
    """create table relations as
    select image, relation.subject, relation.object, relation.predicate::predicate as predicate, relation.confidence,
        coalesce(relation.confidence, 1)::float as certainty,
        objects[relation.subject + 1].category::category as subject_category,
        objects[relation.object + 1].category::category as object_category
    from (select image, objects, unnest(relations) as relation from records)""",
    """create table triplet_counts as
    select subject_category, predicate, object_category, count(*) as relations, avg(confidence) as confidence
    from relations group by all""",
)
_BY_CERTAINTY = (
    """create or replace table related_images as
    select image, count(*) as relations, max(certainty) as certainty from relations group by all""",
    """create or replace table related_pairs as
    select image, subject, object, count(*) as relations, max(certainty) as certainty from relations group by all""",
    """create or replace table predicates as
    select predicate, lower(trim(predicate)) as word, count(*) as relations, max(certainty) as certainty,
        avg(confidence) as confidence
    from relations group by all""",
)


class Database:
    """SQL over one run.

    Views and tables, all with `image`, the number of the image in the run:
        records: one row per image, with the columns of the shards; each use reads them from disk.
        images: one row per image, with its names, `status` and `error`, and how many `objects`, `captions`,
            `different_captions`, `triplets`, `matched_triplets`, `pairs`, `candidate_texts` and `relations` it has.
        objects: one row per object, with its `number` in the image, `category`, `iscrowd`, and its box as `x`, `y`,
            `w`, `h` in pixels.
        captions: one row per caption, with `caption` (its text), `scope` and `boxes`.
        relations: one row per relation: `subject` and `object` (numbers), `subject_category`, `object_category`,
            `predicate`, `confidence`, and `certainty`, which is 1 where there is no confidence.
        related_images, related_pairs: those with relations, their number, and the highest `certainty`.

    Tables of counts: `predicates` and `triplet_counts` (by categories and predicate).

    Attributes:
        run: the header of the manifest.
        files: the shards, and `firsts`: the number of the first image of each.
        scored, has_opinion: whether `records` has the columns `agreement` and `opinion` of `sgpipe score`.
    """

    def __init__(self, manifest: Manifest, connection: duckdb.DuckDBPyConnection) -> None:
        self.root = manifest.root
        self.run, self.image_roots = manifest.run, manifest.image_roots
        self._connection = connection
        self.scored = self.has_opinion = False
        self.measure = "confidence"  # what the certainty of relations is
        self.files = [self.root / shard.file for shard in manifest.shards]
        self._remote: ShardFileSystem | None = None
        if uri := uri_of(self.root):
            self._remote = ShardFileSystem(uri, {shard.file: shard.bytes for shard in manifest.shards})
            connection.register_filesystem(self._remote)
        self._attach()
        for statement in (*_TABLES, *_BY_CERTAINTY):
            self.execute(statement)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a small result; `values` replace the query's `?`.

        Raises UserError: a shard is damaged.
        """
        try:
            with interruptible():
                return self._connection.execute(query, values).fetchall()
        except _BUGS:
            raise
        except duckdb.Error as error:
            raise self._damaged(error) from None

    def table(self, query: str, *values: Any) -> pa.Table:
        """A result as an Arrow table.

        Raises UserError: a shard is damaged.
        """
        try:
            with interruptible():
                return self._connection.sql(query, params=values).to_arrow_table()
        except _BUGS:
            raise
        except duckdb.Error as error:
            raise self._damaged(error) from None

    def execute(self, statement: str, *values: Any) -> None:
        """Run a statement without a result, such as one that creates a table."""
        self.rows(statement, *values)

    def insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert a few rows into a table."""
        self._connection.executemany(f"insert into {table} values ({', '.join('?' * len(rows[0]))})", rows)

    def replace_certainty(self, expression: str) -> None:
        """Replace the certainty of all relations by that of an SQL expression of their columns and `predicates`."""
        self.execute(f"create or replace table relations as select * replace (({expression})::float as certainty) "
                     "from relations")  # fmt: skip
        for statement in _BY_CERTAINTY:
            self.execute(statement)

    def _attach(self) -> None:
        with ThreadPoolExecutor(_OPENED if self._remote else 1) as pool:
            shards = list(pool.map(_open, self.files))
        self.firsts = list(accumulate((rows for rows, _ in shards), initial=0))[:-1]
        columns = [names for _, names in shards]
        self.scored, self.has_opinion = (
            bool(columns) and all(score in names for names in columns) for score in (AGREEMENT, OPINION)
        )
        if not self.files:
            self._connection.register("nothing", SCHEMA.empty_table())
            self.execute(f"create view records as select 0 as image, null as {IMAGE_COLUMN}, * from nothing")
            return
        names = self._remote.names() if self._remote else [str(file) for file in self.files]
        self.execute("create table shards as select unnest(?) as filename, unnest(?) as first", names, self.firsts)
        further = IMAGE_COLUMN if any(IMAGE_COLUMN in there for there in columns) else f"null as {IMAGE_COLUMN}"
        further += f", {AGREEMENT}" if self.scored else ""
        further += f", {OPINION}" if self.has_opinion else ""
        self.execute(
            f"""create view records as
            select (first + file_row_number)::int as image, {", ".join(SCHEMA.names)}, {further}
            from read_parquet([{", ".join(map(quoted, names))}],
                              filename = true, file_row_number = true, union_by_name = true)
            join shards using (filename)"""
        )

    def _damaged(self, error: Exception) -> UserError:
        if self._remote:
            self._remote.raise_failure()
        return UserError(f"the shards of {name_of(self.root)} cannot be read ({str(error).splitlines()[0]})")


@contextmanager
def open_run(root: Path) -> Iterator[Database]:
    """The database of the run in `root`.

    Raises UserError: it is not a run, or a shard is missing or damaged.
    """
    manifest = Manifest.load(root)
    with scratch() as connection:
        yield Database(manifest, connection)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C during a query interrupt the program: DuckDB makes a RuntimeError of it."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


@contextmanager
def scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database that spills to a temporary folder."""
    with temporary_folder() as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "preserve_insertion_order": False,
            "memory_limit": _MEMORY,
            "temp_directory": str(folder),
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(config=settings) as connection:
            [(cores,)] = connection.execute("select current_setting('threads')").fetchall()
            connection.execute(f"set threads = {min(cores, _THREADS)}")
            yield connection


def _open(file: Path) -> tuple[int, list[str]]:
    """The rows and columns of a shard. Raises UserError: it is missing, damaged or of another version."""
    with open_shard(file, SCHEMA.names) as shard:
        return shard.metadata.num_rows, shard.schema_arrow.names


def quoted(name: str) -> str:
    """A file name as an SQL literal, with glob characters escaped."""
    literal = re.sub(r"[*?\[]", r"[\g<0>]", name)
    return "'" + literal.replace("'", "''") + "'"
