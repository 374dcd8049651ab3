"""The search index of a run: a DuckDB file in RUN/.sgpipe/view/, opened read-only by any number of servers.

Its name says what it is of: the shards with their checksums, sizes and times. A run that has changed has no index of
its name yet, so a stale one is never read. One process builds it while others wait; it is renamed into place when it is
whole, and the earlier one, which servers may still have open, is deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.utils.console import Progress
from sgpipe.utils.locking import temporary_folder
from sgpipe.view.build import DEFINITION, FAULTS, build_index
from sgpipe.view.query import RunNames
from sgpipe.view.run_files import RunFiles, store_errors_named

_MEMORY = "500MB"  # of searches; beyond it, DuckDB spills to disk
_REMEMBERED = 64

# split, image_id, subject, object, predicate, state: right | wrong | unsure | changed | conflict
JudgedRow = tuple[str, str, int, int, str, str]
Key = tuple[str, str, int, int, str]
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


@dataclass(frozen=True)
class _Opened:
    """An index as `run`, and the table `judged` in memory."""

    path: Path
    connection: duckdb.DuckDBPyConnection
    folder: ExitStack

    def close(self) -> None:
        self.connection.close()
        self.folder.close()


class Index:
    """The search index of a run. Threads may share it.

    Attributes:
        root: the run's folder or URI, as given.
        files: of the run.
        run: the header of the manifest.
        fingerprint: of the run; empty if it has none.
        images, relations: how many are indexed.
        problems: shards that are left out because they are damaged or missing, one message each.
        scored: whether `sgpipe score` measured the agreement of relations.
        has_opinion: whether it also, or instead, asked a model for a second opinion.
        annotated: whether no relation has a confidence.
        vocabulary: the run's predicates and classes, the most frequent first.
        image_roots: of each split.
        cache: folder for whatever else is worth keeping, such as thumbnails: RUN/.sgpipe/view, or one in the user's
            cache folder for a run in a store or one that cannot be written.
        generation: changes whenever a refresh found something, and with judgements.
    """

    def __init__(self, root: Path | str, files: RunFiles, opened: _Opened) -> None:
        """Use `open`."""
        self.root, self.files, self.cache = root, files, files.cache
        self.generation = 0
        self._refreshing, self._judging = threading.Lock(), threading.Lock()
        self._judged: dict[Key, str] = {}
        self._remembered: dict[Hashable, Any] = {}
        self._load(opened)

    @classmethod
    def open(cls, root: Path | str, progress: Progress | None = None) -> Index:
        """Open the index of a run; build it first if there is none or the run has changed.

        Args:
            root: a run's folder, or the URI of one in an object store.

        Raises UserError: not a run, the manifest is damaged, the store cannot be reached, or the disk is full.
        """
        with store_errors_named():
            files = RunFiles(root)
            return cls(root, files, _make(files, progress or Progress()))

    def refresh(self) -> bool:
        """Index what was committed since; True if there was anything. Quick if nothing has changed.

        Raises UserError: as `open`; what was indexed before stays usable.
        """
        with self._refreshing, store_errors_named():
            self.files.refresh()
            if self._opened.path == _path(self.files, self.files.states()):
                return False
            self._load(_make(self.files, Progress(Console(quiet=True))))
            return True

    def close(self) -> None:
        """Close the index; the file stays."""
        self._opened.close()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The result of a query over the tables of `run`; `values` replace its `?`.

        Raises UserError: the file of the index is damaged.
        """
        try:
            return self._opened.connection.cursor().execute(query, list(values)).fetchall()
        except FAULTS as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._opened.path} cannot be read ({reason}); delete it, and it is built again"
            ) from None

    def remember(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` returns, kept until the index or the judgements change or others were asked for since."""
        key = (self.generation, key)
        if key not in self._remembered:
            value = compute()
            while len(self._remembered) >= _REMEMBERED:
                with suppress(KeyError, StopIteration, RuntimeError):  # another thread did so
                    del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = value
            return value
        value = self._remembered[key]
        return value

    def predicates(self, prefix: str = "", limit: int = 20) -> list[tuple[str, int]]:
        """The predicates that start with `prefix`, in any case, and how often they occur; most frequent first."""
        query = "select predicate::varchar, times from run.predicates where starts_with(lower(predicate), lower(?))"
        return self.rows(f"{query} order by times desc, predicate limit ?", [prefix, limit])

    def times_of_triplet(self, number: int) -> int:
        """How often the run has the triplet that is at this place by frequency, counted from 1; 0: it has fewer."""
        return sum(times for (times,) in self.rows("select times from run.triplets where triplet = ?", [number]))

    @property
    def has_judgements(self) -> bool:
        """Whether any relation is judged."""
        return bool(self._judged)

    def judgement(self, split: str, image_id: str, subject: int, object_: int, predicate: str) -> str | None:
        """The state of judgement of a relation."""
        return self._judged.get((split, image_id, subject, object_, predicate))

    def set_judged(self, rows: Iterable[JudgedRow]) -> None:
        """Replace what is known of judgements; relations that the run does not have are ignored."""
        with self._judging:
            self._judged = {row[:5]: row[5] for row in rows}
            self._write_judged(self._opened.connection)
            self.generation += 1

    def _load(self, opened: _Opened) -> None:
        """Let an opened index take the place of the present one, which searches may still be reading."""
        with self._judging:
            self._write_judged(opened.connection)
            self._opened = opened
        self.run = self.files.manifest.run
        self.fingerprint = str(self.run.get("fingerprint", ""))
        self.image_roots = self.files.manifest.image_roots
        self._describe()
        self._remembered.clear()
        self.generation += 1

    def _describe(self) -> None:
        [(self.images, self.relations, self.scored, self.has_opinion, self.annotated)] = self.rows(
            "select images, relations, scored, has_opinion, annotated from run.about"
        )
        damaged = self.rows("select problem from run.shards where problem is not null order by file")
        self.problems = [*self.files.problems, *(problem for (problem,) in damaged)]
        names = [
            tuple(name for (name,) in self.rows(f"select {column}::varchar from run.{table} order by times desc, 1"))
            for table, column in (("predicates", "predicate"), ("categories", "category"))
        ]
        self.vocabulary = RunNames(*names)

    def _write_judged(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let the table `judged` of an opened index hold what is known of judgements."""
        rows = ((*key, state) for key, state in self._judged.items())
        columns = [list(column) for column in zip(*rows, strict=True)]
        cursor = connection.cursor()
        cursor.execute("begin")
        cursor.execute("delete from judged")
        if columns:
            cursor.execute(f"insert into judged select distinct * from ({_RESOLVED})", columns)
        cursor.execute("commit")


def _path(files: RunFiles, states: Mapping[str, str]) -> Path:
    """Where the index of these shards is."""
    return files.cache / f"index-{_digest(DEFINITION)}-{_digest(json.dumps(sorted(states.items())))}.duckdb"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _make(files: RunFiles, progress: Progress) -> _Opened:
    """The index of a run as it is now; built if there is none."""
    states = files.states()
    path = _path(files, states)
    if opened := _open(path):
        return opened
    with _one_builder(files.cache, progress):
        opened = _open(path)
        if opened is None:
            earlier = next(filter(_is_readable, files.cache.glob(f"index-{_digest(DEFINITION)}-*.duckdb")), None)
            with temporary_folder(files.cache) as folder:
                os.replace(build_index(files, states, folder, earlier, progress), path)
            opened = _open(path)
        for other in files.cache.glob("index-*.duckdb"):
            if other != path:
                other.unlink(missing_ok=True)
    if opened is None:
        raise UserError(f"{path} cannot be read, though it was just written: is the disk damaged?")
    return opened


def _open(path: Path) -> _Opened | None:
    """Open an index; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    opened, connection = ExitStack(), duckdb.connect()
    spill = opened.enter_context(temporary_folder())
    for setting, value in (
        ("memory_limit", _MEMORY),
        ("temp_directory", str(spill)),
        ("autoinstall_known_extensions", False),
        ("enable_progress_bar", False),
    ):
        connection.execute(f"set {setting} = ?", [value])
    try:
        connection.execute("attach '" + str(path).replace("'", "''") + "' as run (read_only)")
    except duckdb.Error:
        connection.close()
        opened.close()
        return None
    connection.execute("create table judged (image int, number int, state varchar)")
    return _Opened(path, connection, opened)


def _is_readable(path: Path) -> bool:
    if opened := _open(path):
        opened.close()
    return opened is not None


@contextmanager
def _one_builder(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process builds in this folder; on a file system without locks, two may build the same."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another process is building the index: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
