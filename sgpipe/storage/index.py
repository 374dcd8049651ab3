"""The index of a run: a DuckDB file in RUN/.sgpipe/cache, opened read-only by any number of
processes.

Its name is a hash of the shards' checksums, sizes and times, so a stale one is never read. One
process builds it while others wait, and deletes the earlier one, which others may still have open.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
from filelock import FileLock
from rich.console import Console

from sgpipe.errors import UserError, first_line
from sgpipe.files.locations import Location
from sgpipe.records import Record, from_table
from sgpipe.storage.datasets import open_files
from sgpipe.storage.health_rules import quoted
from sgpipe.storage.index_build import DEFINITION, FAULTS, build_index
from sgpipe.storage.run_folder import RunFiles
from sgpipe.storage.shard_file import ShardFile
from sgpipe.storage.shards import IMAGE_COLUMN, SCORES, embedded_images
from sgpipe.utils.atomic import temporary_folder, write_text
from sgpipe.utils.console import Progress
from sgpipe.utils.database import configure, interruptible
from sgpipe.utils.hashing import fingerprint

_REMEMBERED = 64
_MEMORY = "800MB"
_NAME = f"index-{fingerprint({'definition': DEFINITION})}"  # of those that are made as now

# split, image_id, subject, object, predicate, state: right | wrong | unsure | changed | conflict
JudgedRow = tuple[str, str, int, int, str, str]
Value = TypeVar("Value")

_RESOLVED = """
    select r.image, r.number, state from (
        select image, given.* exclude (split, image_id) from run.images join (
            select unnest(?) as split, unnest(?) as image_id, unnest(?) as subject, unnest(?) as object,
                unnest(?) as predicate, unnest(?) as state) given
        on images.image_id = given.image_id and images.split = given.split) given
    join run.relations r on r.image = given.image and r.subject = given.subject and r.object = given.object
        and r.predicate = given.predicate
"""

# An index that is open: its file; a connection that has it as `run`, and a table `judged` in
# memory; what ends both.
_Opened = tuple[Path, duckdb.DuckDBPyConnection, Callable[[], None]]

_RELATIONS = """create or replace view relations as
    select image, number, subject, object, predicate, subject_category, object_category, confidence,
        ({certainty})::float as certainty, clip_score, swapped, rank, contrasts, vlm_score, origin
    from (select *, if(annotated, null, certainty) as confidence from run.relations) raw"""
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


@dataclass(frozen=True)
class RunNames:
    """The predicates and classes of a run, the most frequent first."""

    predicates: tuple[str, ...]
    categories: tuple[str, ...]

    @cached_property
    def names(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The predicates and the classes as the run spells them, by their form in lower case."""
        forms: dict[str, dict[str, tuple[str, ...]]] = {"predicate": {}, "class": {}}
        for kind, names in zip(forms, (self.predicates, self.categories), strict=True):
            for name in names:
                forms[kind][name_form(name)] = (*forms[kind].get(name_form(name), ()), name)
        return forms

    @cached_property
    def most_words(self) -> int:
        """Of a name."""
        return max(
            (form.count(" ") + 1 for forms in self.names.values() for form in forms), default=1
        )


def name_form(name: str) -> str:
    """Return a name in lower case, with single spaces."""
    return " ".join(name.casefold().split())


class Index:
    """The index of a run in one state: what is committed later is in another one, see `newer`.
    Threads may share it.

    `run`: the header of the manifest, with its `fingerprint`. `problems`: lines of the manifest and
    shards that are left out. `scored`, `has_vlm_scores`: whether `sgpipe score` asked CLIP, or a
    vision-language model. `version`: changes with judgements. `connection`: has the index as `run`,
    read-only; tables of its own are in memory.
    """

    def __init__(self, root: str | Location, progress: Progress | None = None) -> None:
        """Open the index of a run as it is, built first if need be. Raises as `RunFiles`;
        UserError: a full disk.
        """
        self.files = files = open_files(root)
        self.root = files.place
        self.version = 0
        self._judging = threading.Lock()
        self._remembered: dict[Hashable, Any] = {}
        self._path, self.connection, close = _make(files, progress or Progress())
        self.close = weakref.finalize(self, close)  # when the last request that reads it has ended
        self.run = files.manifest.run
        self.fingerprint = str(self.run.get("fingerprint", ""))
        self.image_roots = files.manifest.image_roots
        [(self.images, self.relations, self.scored, self.has_vlm_scores)] = self.rows(
            "from run.about"
        )
        damaged = self.rows(
            "select problem from run.shards where problem is not null order by file"
        )
        self.problems = [*files.problems, *(problem for (problem,) in damaged)]

    def newer(self) -> Index | None:
        """Index what was committed since, without judgements; None, quickly, if nothing has. Raises
        as `__init__`.
        """
        return (
            None
            if self._path == _path(open_files(self.root))
            else Index(self.root, Progress(Console(quiet=True)))
        )

    @cached_property
    def vocabulary(self) -> RunNames:
        queries = (
            f"select {column}::varchar from run.{table} order by times desc, 1"
            for table, column in (("predicates", "predicate"), ("categories", "category"))
        )
        return RunNames(*(tuple(name for (name,) in self.rows(query)) for query in queries))

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query with `values` for its `?`.

        Raises:
            UserError: a damaged index, or no memory.
        """
        try:
            with interruptible():
                return self.connection.cursor().execute(query, list(values)).fetchall()
        except duckdb.OutOfMemoryException:
            raise UserError(
                f"a query over {self.root} needs more than {_MEMORY} of memory: ask for less"
            ) from None
        except FAULTS as error:
            raise UserError(
                f"{self._path} cannot be read ({first_line(error)}); delete it to build it anew"
            ) from None

    def remember(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return what `compute` returns, kept until the judgements change or many others were asked
        for.
        """
        key = (self.version, key)
        remembered = self._remembered
        value: Value = remembered[key] if key in remembered else compute()
        self._remembered = {**(remembered if len(remembered) < _REMEMBERED else {}), key: value}
        return value

    def predicates(self, prefix: str = "", limit: int = 20) -> list[tuple[str, int]]:
        """Return the predicates that start with `prefix`, in any case, the most frequent first, and
        their numbers.
        """
        query = (
            "select predicate::varchar, times from run.predicates where"
            " starts_with(lower(predicate), lower(?))"
        )
        return self.rows(f"{query} order by times desc, predicate limit ?", [prefix, limit])

    def read_rows(
        self, images: Iterable[int], only: str | None = None, without: str | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows of images, as tables of `only` or not `without`.

        Raises:
            UserError: a damaged shard.
        """
        wanted = list(images)
        query = """select image, file, row from run.images join run.shards using (shard)
            where image in (select unnest(?::int[]))"""
        places = {image: (file, row) for image, file, row in self.rows(query, [wanted])}
        for file, members in groupby(
            (places[image] for image in wanted), key=lambda place: place[0]
        ):
            with self.files.open(file) as shard:
                names = [
                    name
                    for name in shard.schema_arrow.names
                    if name != without and only in (None, name)
                ]
                yield from _slices(shard, [row for _, row in members], names)

    def set_judged(self, rows: Iterable[JudgedRow]) -> None:
        """Replace what is known of judgements (`judged`); relations that the run does not have are
        ignored.
        """
        columns = [list(column) for column in zip(*rows, strict=True)]
        with self._judging:
            cursor = self.connection.cursor()
            cursor.execute("begin")
            cursor.execute("delete from judged")
            if columns:
                cursor.execute(f"insert into judged select distinct * from ({_RESOLVED})", columns)
            cursor.execute("commit")
            self.version += 1


class Database(Index):
    """SQL for measures of one run, over its index: `images`, `objects` and `captions`, and

        relations: one row per relation: `subject` and `object` (numbers), `subject_category`,
            `object_category`, `predicate`, `confidence`, `certainty`, which is 1 where there is no
            confidence, and scores.
        related_images, related_pairs, predicates: those with relations, their number, and the
        highest `certainty`.

    They are made when a query reads them. What `sums` returned is kept in a file beside the index,
    so that it is computed once for each state of a run.

    `measure`: what the certainty of relations is: confidence or probability.
    """

    measure = "confidence"

    def __init__(self, root: str | Location, progress: Progress | None = None) -> None:
        self._definitions: list[tuple[str, list[object]]] = []
        self._defined = 0
        super().__init__(root, progress)
        self._sums_file = self._path.with_suffix(".sums.json")
        self._sums: dict[str, list[Sequence[Any]]] = {}
        with suppress(OSError, ValueError):  # there is none, or a damaged one
            self._sums = json.loads(self._sums_file.read_bytes())
        for table in ("images", "objects", "captions"):
            self.define(f"create view {table} as from run.{table}")
        self.replace_certainty("coalesce(confidence, 1)")

    def define(self, statement: str, values: Sequence[object] = ()) -> None:
        """Execute a statement, which makes a table or a view, before the next query."""
        self._definitions.append((statement, list(values)))

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        pending = self._definitions[self._defined :]
        self._defined = len(self._definitions)
        for statement, of_statement in pending:
            super().rows(statement, of_statement)
        return super().rows(query, values)

    def sums(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, those that are kept if it was asked before.

        Raises:
            UserError: as `rows`.
        """
        asked = {"definitions": self._definitions, "query": query, "values": list(values)}
        key = fingerprint(asked)
        if key not in self._sums:
            self._sums[key] = [*self.rows(query, values)]
        return [tuple(row) for row in self._sums[key]]

    def keep_sums(self) -> None:
        """Keep what `sums` has returned; a full disk keeps what was kept before."""
        with suppress(OSError):
            write_text(self._sums_file, json.dumps(self._sums))

    def replace_certainty(self, expression: str) -> None:
        """Let the certainty of all relations be that of an SQL expression of their columns."""
        for statement in (_RELATIONS.format(certainty=expression), *_BY_CERTAINTY):
            self.define(statement)


@contextmanager
def open_run(root: str | Location) -> Iterator[Database]:
    """Yield the database of the run in `root`.

    Raises:
        UserError: it is not a run, or a shard is missing or damaged.
    """
    database = Database(root, Progress(Console(quiet=True)))
    try:
        if database.problems:
            raise UserError(database.problems[0])
        yield database
    finally:
        database.close()


def _slices(shard: ShardFile, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield each of some rows of a shard as a table; a row group is read once for neighbours."""
    groups = range(shard.num_row_groups)
    starts = np.cumsum([0, *(shard.metadata.row_group(group).num_rows for group in groups)])

    def group_of(row: int) -> int:
        return int(np.searchsorted(starts, row, "right")) - 1

    for group, inside in groupby(rows, key=group_of):
        table = shard.read_row_group(group, columns=list(columns))
        for row in inside:
            yield table.slice(row - int(starts[group]), 1)


def _path(files: RunFiles) -> Path:
    return files.cache / f"{_NAME}-{fingerprint(files.states())}.duckdb"


def _make(files: RunFiles, progress: Progress) -> _Opened:
    """Open the index of a run as it is now; build it if there is none."""
    path = _path(files)
    opened = _open(path)
    if opened:
        return opened
    with FileLock(files.cache / "lock", thread_local=False):  # one process builds it
        opened = _open(path)
        if opened is None:
            with temporary_folder(files.cache) as folder:
                os.replace(build_index(files, folder, progress), path)
            opened = _open(path)
        for outdated in set(files.cache.glob("index-*")) - {path}:
            outdated.unlink(missing_ok=True)
    if opened is None:
        raise UserError(f"{path} cannot be read, though it was just written: is the disk damaged?")
    return opened


def _open(path: Path) -> _Opened | None:
    """Open an index; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    opened = ExitStack()
    connection = duckdb.connect()
    configure(connection, opened.enter_context(temporary_folder()), _MEMORY)
    opened.callback(connection.close)
    try:
        connection.execute(f"attach {quoted(path)} as run (read_only)")
    except duckdb.Error:
        opened.close()
        return None
    connection.execute("create table judged (image int, number int, state varchar)")
    return path, connection, opened.close


@dataclass(frozen=True)
class IndexedImage:
    """What the index knows of an image; `shard` and `row`: where it is; `embedded`: whether its
    file is there, too.

    `why`: the reason why it has no relations; None if it has some.
    """

    number: int
    dataset: str
    split: str
    image_id: str
    file_name: str
    width: int
    height: int
    embedded: bool
    why: str | None
    shard: str
    row: int


@dataclass(frozen=True)
class RecordView:
    """A row of a run, and what the index knows of its image.

    `scores`: the columns of `sgpipe score` that the run has, with an entry for each relation, None
    where it could not be scored: `clip_score` dictionaries of `score` (cosine), `swapped`, `rank`,
    `contrasts`; `vlm_score` probabilities.
    """

    record: Record
    image: IndexedImage
    scores: dict[str, list[Any]]


def find_image(index: Index, split: str, image_id: str) -> IndexedImage | None:
    """Return an image by its name, from the index alone; None if the index has no such image."""
    rows = index.rows(
        """select image, dataset::varchar, split::varchar, image_id, file_name, width, height, embedded, why, file, row
        from run.images join run.shards using (shard) where image_id = ? and split = ? limit 1""",
        [image_id, split],
    )
    return IndexedImage(*rows[0]) if rows else None


def read_record(index: Index, split: str, image_id: str) -> RecordView | None:
    """Return the row of an image; None if the index has no such image.

    Raises:
        UserError: as `Index.read_rows`.
    """
    image = find_image(index, split, image_id)
    if image is None:
        return None
    [table] = index.read_rows([image.number], without=IMAGE_COLUMN)
    [record] = from_table(table)
    if (record.split, record.image_id) != (split, image_id):
        raise UserError(
            f"shard {image.shard} has changed since it was indexed: `sgpipe verify {index.root}`"
        )
    scores = {name: table[name][0].as_py() or [] for name in SCORES if name in table.column_names}
    return RecordView(record, image, scores)


def read_embedded(index: Index, split: str, image_id: str) -> bytes | None:
    """Return the image file in the image's row; None if there is none.

    Raises:
        UserError: as `Index.read_rows`.
    """
    image = find_image(index, split, image_id)
    if image is None or not image.embedded:
        return None
    [table] = index.read_rows([image.number], only=IMAGE_COLUMN)
    [data] = embedded_images(table)
    return data
