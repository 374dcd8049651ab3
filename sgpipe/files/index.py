"""An index of the files of a place by their names: sorted Arrow files of up to a million rows, the
parts, in a folder with a description, which names the first file of each.

Processes map the parts that they need into their memory; a machine fetches one at most once. The
name of an index is a hash of the names and versions of the files in it, so an index that exists is
never outdated.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import pyarrow as pa
from filelock import FileLock

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location, absolute_location
from sgpipe.files.model_cache import cache_folder
from sgpipe.files.stores import StorePath
from sgpipe.utils.atomic import atomic_write, temporary_folder
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import file_sha256

NAME = "name"
DESCRIPTION = "index.json"
ROWS_PER_PART = 1 << 20
_ROWS_PER_BATCH = 1 << 16

IndexRow: TypeAlias = dict[str, Any]  # a file, by the names of the columns
IndexValues: TypeAlias = tuple[Any, ...]  # the same in the order of the columns


class PartInfo(TypedDict):
    """A part of an index: its file, and how many bytes it has; the name in its first row."""

    file: str
    bytes: int
    first: str
    rows: int


class FileIndex:
    """Rows by name. `meta`: what was said of all of them."""

    def __init__(self, folder: Path, copy: StorePath | None = None) -> None:
        """Open an index.

        Args:
            copy: where files that the folder lacks are fetched from, when they are needed.

        Raises:
            OSError, ValueError: a file is missing or damaged.
            StoreError: the copy cannot be reached.
        """
        self._folder = folder
        self._copy = copy
        if copy is not None:
            _fetch(copy / DESCRIPTION, folder / DESCRIPTION)
        with open(folder / DESCRIPTION, encoding="utf-8") as file:
            described = json.load(file)
        self.meta: dict[str, Any] = described["meta"]
        self._parts: list[PartInfo] = described["parts"]
        self._firsts = [part["first"] for part in self._parts]
        self._tables: dict[int, pa.Table] = {}
        if copy is None:
            for part in self._parts:
                _check_size(folder, part)

    def __len__(self) -> int:
        return sum(part["rows"] for part in self._parts)

    def find(self, name: str) -> list[IndexRow]:
        start = max(bisect_left(self._firsts, name) - 1, 0)
        stop = bisect_right(self._firsts, name)
        rows: list[IndexRow] = []
        for number in range(start, stop):
            rows += _find_in(self._table(number), name)
        return rows

    def __iter__(self) -> Iterator[IndexRow]:
        for table in self.tables():
            for batch in table.to_batches(_ROWS_PER_BATCH):
                yield from batch.to_pylist()

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of each part, as they are on disk."""
        return map(self._table, range(len(self._parts)))

    def _table(self, number: int) -> pa.Table:
        if number not in self._tables:
            part = self._parts[number]
            path = self._folder / part["file"]
            if self._copy is not None:
                _fetch(self._copy / part["file"], path)
                try:
                    _check_size(self._folder, part)
                except ValueError as error:
                    raise _damaged(self._copy, error) from None
            with pa.memory_map(str(path)) as file:
                self._tables[number] = pa.ipc.open_file(file).read_all()
        return self._tables[number]


def _check_size(folder: Path, part: PartInfo) -> None:
    """Raise OSError if the file of a part is missing, ValueError if it is damaged."""
    size = (folder / part["file"]).stat().st_size
    if size != part["bytes"]:
        raise ValueError(f"{part['file']} has {size:,} of {part['bytes']:,} bytes")


def _find_in(table: pa.Table, name: str) -> list[IndexRow]:
    names = table[NAME].chunk(0)
    places = range(len(names))
    start = bisect_left(places, name, key=lambda place: names[place].as_py())
    named_so = takewhile(lambda place: names[place].as_py() == name, places[start:])
    columns = {column: table[column].chunk(0) for column in table.column_names}
    return [{column: columns[column][place].as_py() for column in columns} for place in named_so]


def _fetch(source: StorePath, path: Path) -> None:
    """Download a file unless it is there; other processes that need it wait."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            try:
                with atomic_write(path) as temporary:
                    source.get_file(temporary)
            except FileNotFoundError:
                raise StoreError(f"{source} is missing") from None


def _damaged(copy: StorePath, error: Exception) -> UserError:
    return UserError(f"{copy} cannot be read ({error}); delete it, and run again")


def index_table(columns: Mapping[str, pa.DataType], rows: Iterator[IndexValues]) -> pa.Table:
    """Return rows of a name and `columns` in Arrow's memory; what UTF-8 has no form of becomes a
    question mark.
    """
    schema = pa.schema({NAME: pa.large_string(), **columns})
    batches = []
    while chunk := list(islice(rows, _ROWS_PER_BATCH)):
        names, *columns_of_chunk = zip(*chunk, strict=True)
        printable = [name.encode("utf-8", "replace").decode() for name in names]
        values = [printable, *columns_of_chunk]
        arrays = [pa.array(value, field.type) for value, field in zip(values, schema, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def write_parts(folder: Path, tables: Iterable[pa.Table], meta: Mapping[str, object]) -> str:
    """Write an index into a new folder.

    Args:
        tables: its rows, sorted, those of a part each.
        meta: what is said of all of them.

    Returns:
        A hash of the rows.
    """
    folder.mkdir()
    digest = hashlib.sha256()
    parts: list[PartInfo] = []
    for number, table in enumerate(tables):
        [batch] = table.combine_chunks().to_batches()
        file = f"{number:05d}.arrow"
        with pa.ipc.new_file(str(folder / file), table.schema) as writer:
            writer.write_batch(batch)
        digest.update(file_sha256(folder / file).encode())
        size = (folder / file).stat().st_size
        parts.append(
            {"file": file, "bytes": size, "first": batch[NAME][0].as_py(), "rows": len(batch)}
        )
    text = json.dumps({"meta": meta, "parts": parts})
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return digest.hexdigest()


def write_index(path: Path, table: pa.Table, meta: Mapping[str, object]) -> None:
    """Write sorted rows and what is said of all of them, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(table), ROWS_PER_PART)
    with temporary_folder(path.parent) as folder:
        parts = (table.slice(start, ROWS_PER_PART) for start in starts)
        write_parts(folder / path.name, parts, meta)
        place_index(folder / path.name, path)


def place_index(folder: Path, path: Path) -> None:
    """Move an index to where it belongs, unless another process has."""
    shutil.rmtree(path, ignore_errors=True)  # it is damaged, or there would be no other
    try:
        os.rename(folder, path)
    except OSError:
        if not path.is_dir():
            raise


def copy_index(source: Path, target: Path) -> None:
    """Copy an index, whole or not at all, unless it is there. Raises OSError."""
    if target.is_dir():
        return
    with temporary_folder(target.parent) as folder:
        shutil.copytree(source, folder / target.name)
        place_index(folder / target.name, target)


def put_index(source: Path, target: StorePath) -> None:
    """Copy an index into a store unless it is there, its description last. Raises StoreError."""
    if (target / DESCRIPTION).head() is None:
        for file in sorted(source.glob("*.arrow")):
            (target / file.name).put(file)
        (target / DESCRIPTION).put(source / DESCRIPTION)


@dataclass(frozen=True)
class IndexReference:
    """An index by its name, in this machine's cache; a run may keep a copy in its folder or
    store.
    """

    name: str
    run: Location | None = None

    @property
    def path(self) -> Path:
        """The folder of the index on this machine, which need not exist yet."""
        return cache_folder().absolute() / "image-indexes" / self.name

    @cached_property
    def opened(self) -> FileIndex:
        """Return the index, whose parts are fetched as they are needed if this machine lacks them.

        Raises:
            StoreError: it cannot be read or fetched.
            UserError: the copy in the run's store is damaged.
        """
        copy = None if self.run is None else self.run / f".sgpipe/{self.name}"
        for path in (self.path, copy):
            if isinstance(path, Path):
                with suppress(OSError, ValueError, KeyError):
                    return FileIndex(path)
        if not isinstance(copy, StorePath):
            raise StoreError(
                f"the index {self.path} is missing or damaged; the same command makes it again"
            )
        try:
            return FileIndex(self.path, copy)
        except (ValueError, KeyError) as error:
            raise _damaged(copy, error) from None

    @property
    def exists(self) -> bool:
        """Whether it can be opened, also from the run's store."""
        with suppress(OSError, UserError):
            return self.opened is not None
        return False

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "run": self.run}


@dataclass(frozen=True)
class KeptListing:
    """A prefix that a run has listed: the name of its index, and when."""

    index: str
    listed: str


@dataclass(frozen=True)
class IndexFolder:
    """Where indexes are: in this machine's cache, or in a `run`.

    Attributes:
        versioned: prefixes are indexed, with versions.
        kept: prefixes that the run has listed before, by location.
        relists: these are listed again.
        inventory: the file that lists the images, instead of a listing.
    """

    run: Location | None = None
    progress: Progress = field(default_factory=Progress, compare=False)
    versioned: bool = False
    kept: Mapping[str, KeptListing] = field(default_factory=dict, compare=False)
    relists: bool = False
    inventory: Location | None = None

    def reference(self, stamp: object) -> IndexReference:
        """Return the index of what `stamp` describes in plain values, which need not exist."""
        digest = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()
        return self._named(f"images-{digest[:20]}")

    def kept_reference(self, location: str) -> IndexReference | None:
        """Return the index of a prefix as it was listed before; None: it was not, or it is lost."""
        if location not in self.kept:
            return None
        reference = self._named(self.kept[location].index)
        return reference if reference.exists else None

    def _named(self, name: str) -> IndexReference:
        return IndexReference(name, self.run and absolute_location(self.run))
